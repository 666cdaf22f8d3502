"""Hugging Face models over ranks: outputs, gradients and training as in one process; what does not fit is refused.

transformers is no dependency of ours; where it is installed, its models are the independent answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from executor.conformance import Conformance
from executor.moe_layers import find_moe_layers
from executor.parallelize import apply_expert_parallel
from executor.replicas import check_replicas_equal, clip_grad_norm_
from planner import Plan
from tests.executor.adapters.families import EXPOSES_LOGITS, FAMILIES, batches, forward, model_of
from tests.executor.adapters.steps import PATIENCE_S, mesh, pairs_of, plan_with_replicas, reduce_gradients, worst
from tests.executor.ranks import on_ranks
from topologies import BadInput

pytest.importorskip("transformers", reason="transformers is not installed")


def one_step(
    rank: int, size: int, family: str, plans: Sequence[Plan | None], dtype: torch.dtype
) -> list[dict[str, float]]:
    """Return the errors of outputs, recorded router logits and gradients under each plan, and unfit rows."""
    ids, found = batches(size, 0), []
    dense = model_of(family, dtype)
    losses = []
    for one in ids:
        losses.append(forward(dense, family, one))
        losses[-1].loss.backward()
    wanted = losses[rank]
    for plan in plans:
        model = model_of(family, dtype)
        apply_expert_parallel(model, mesh(size), plan)
        layers = find_moe_layers(model)
        with Conformance(layers, plan) as watched:
            out = forward(model, family, ids[rank])
        errors = {"rows": float(sum(len(verdict.problems) for verdict in watched.verdicts()))}
        out.loss.backward()
        reduce_gradients(model)
        errors["logits"] = worst([(out.logits.detach(), wanted.logits.detach())])
        if family in EXPOSES_LOGITS:
            errors["router"] = worst(list(zip(out.router_logits, wanted.router_logits, strict=True)))
            errors["aux"] = worst([(out.aux_loss.detach(), wanted.aux_loss.detach())])
        errors["gradients"] = worst(pairs_of(model, dense, grad=True))
        found.append(errors)
    return found


@pytest.mark.parametrize(
    ("family", "size", "dtype"),
    [
        *((family, 2 + 2 * (i % 2), torch.float32) for i, family in enumerate(FAMILIES)),
        *((family, 4, torch.float64) for family in ("mixtral", "deepseek_v3", "gpt_oss")),
        ("qwen3_moe", 8, torch.float32),
    ],
)
def test_one_step_equals_the_single_process(family: str, size: int, dtype: torch.dtype) -> None:
    """Without a plan, and with replicas: outputs, what the router records, and every gradient."""
    exchange = {2: "pairwise", 4: "two-level", 8: "dedup"}[size]
    plans = [None, plan_with_replicas(size, exchange)]
    limit = 1e-5 if dtype == torch.float32 else 1e-10
    for found in on_ranks(size, one_step, family, plans, dtype, timeout_s=PATIENCE_S):
        for errors in found:
            assert all(error < limit for error in errors.values()), errors


def train(rank: int, size: int, family: str, exchange: str, recompute: bool, dtype: torch.dtype) -> dict[str, float]:
    """Train 20 steps beside a dense copy that sees the tokens of all ranks; return the largest differences."""
    dense, model = model_of(family, dtype).train(), model_of(family, dtype).train()
    apply_expert_parallel(model, mesh(size), plan_with_replicas(size, exchange))
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ours, theirs = (torch.optim.Adam(one.parameters(), lr=1e-2, eps=1e-4) for one in (model, dense))
    most = {"loss": 0.0, "norm": 0.0}
    for step in range(20):
        ids = batches(size, step)
        ours.zero_grad()
        theirs.zero_grad()
        loss = forward(model, family, ids[rank]).loss
        loss.backward()
        reduce_gradients(model)
        norm = clip_grad_norm_(model, 1.0)
        losses = [forward(dense, family, one).loss for one in ids]
        torch.stack(losses).sum().backward()
        dense_norm = nn.utils.clip_grad_norm_(dense.parameters(), 1.0)
        ours.step()
        theirs.step()
        most["loss"] = max(most["loss"], worst([(loss.detach(), losses[rank].detach())]))
        most["norm"] = max(most["norm"], worst([(norm, dense_norm)]))
    check_replicas_equal(model)
    return most | {"weights": worst(pairs_of(model, dense, grad=False)), "fell": float(losses[rank])}


@pytest.mark.parametrize(
    ("family", "size", "exchange", "recompute", "dtype"),
    [
        ("mixtral", 4, "pairwise", True, torch.float32),
        ("qwen3_moe", 2, "dedup", False, torch.float32),
        ("deepseek_v3", 4, "two-level", False, torch.float32),
        ("gpt_oss", 2, "pairwise", False, torch.float64),
    ],
)
def test_twenty_steps_stay_on_the_trajectory(
    family: str, size: int, exchange: str, recompute: bool, dtype: torch.dtype
) -> None:
    """Adam with clipping, copies of experts, and recomputation; Adam divides rounding noise by rounding noise."""
    limit = 1e-5 if dtype == torch.float32 else 1e-8
    for most in on_ranks(size, train, family, exchange, recompute, dtype, timeout_s=PATIENCE_S):
        assert most["loss"] < limit, most
        assert most["norm"] < limit, most
        assert most["weights"] < limit, most


def kept(_rank: int, size: int) -> list[str]:
    """Return what a deployment has changed that it should not."""
    model, before = model_of("deepseek_v3", torch.float32), model_of("deepseek_v3", torch.float32)
    modules = dict(model.named_modules())
    apply_expert_parallel(model, mesh(size), plan_with_replicas(size))
    changed = [name for name, module in model.named_modules() if module is not modules[name]]
    state, wanted = model.state_dict(), before.state_dict()
    changed += sorted(state.keys() ^ wanted.keys())
    changed += [name for name in state if ".experts." not in name and not torch.equal(state[name], wanted[name])]
    assert any(name.endswith("mlp.gate.e_score_correction_bias") and tensor.any() for name, tensor in state.items())
    for name, layer in find_moe_layers(model).items():
        rows = state[f"{name}.experts.down_proj"]
        assert torch.equal(rows, wanted[f"{name}.experts.down_proj"][layer.exchange.layout.my_experts])
    return changed


def test_only_the_experts_change() -> None:
    """Routers, their correction biases, and all names stay; experts are this rank's, under the names they had."""
    assert on_ranks(2, kept, timeout_s=PATIENCE_S) == [[], []]


def refused(rank: int, size: int) -> tuple[str, bool]:
    """Return the error where one block of rank 1 is expert-parallel already, and whether all weights are as before."""
    model = model_of("mixtral", torch.float32)
    if rank == 1:
        model.model.layers[1].mlp.experts._is_expert_parallel = True
    before = list(model.parameters())
    try:
        apply_expert_parallel(model, mesh(size), plan_with_replicas(size))
    except BadInput as error:
        return str(error), all(a is b for a, b in zip(before, model.parameters(), strict=True))
    return "", False


def test_one_bad_block_on_one_rank_is_refused_on_all() -> None:
    wanted = "rank 1: model.layers.1.mlp: its experts are expert-parallel already, by transformers"
    assert on_ranks(2, refused, timeout_s=PATIENCE_S) == [(wanted, True)] * 2
