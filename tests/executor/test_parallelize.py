"""A plan in force: what is refused before a weight moves, what conformance catches, and training as in one process."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.checkpoint import checkpoint

from executor.conformance import Conformance, NotConforming, check_deployed
from executor.exchange import make_exchange
from executor.moe_layers import find_moe_layers
from executor.parallelize import apply_expert_parallel
from executor.replicas import check_replicas_equal, clip_grad_norm_, sum_replica_gradients
from planner.timing import EXCHANGES
from tests.executor.layers import Case, relative
from tests.executor.models import HIDDEN, LAYERS, TinyModel, plan_of
from tests.executor.ranks import on_ranks
from topologies import BadInput


def mesh(size: int) -> Any:
    return init_device_mesh("cpu", (size,), mesh_dim_names=("ep",))


def tokens(size: int, step: int, dtype: torch.dtype) -> list[Tensor]:
    """Return the tokens of every rank in a step; their numbers differ, and some ranks have none."""
    g = torch.Generator().manual_seed(step)
    return [torch.randn((3 * r + step) % 5, HIDDEN, generator=g, dtype=torch.float64).to(dtype) for r in range(size)]


def loss_of(model: nn.Module, x: Tensor, recompute: bool = False) -> Tensor:
    y = checkpoint(model, x, use_reentrant=False) if recompute else model(x)
    assert isinstance(y, Tensor)
    return (y * y).sum() / 40 + y.sum()


def train(rank: int, size: int, exchange: str, recompute: bool, optimizer: str, dtype: torch.dtype) -> dict[str, float]:
    """Train 50 steps beside a dense copy that sees all tokens; return the largest differences on the way."""
    case = Case((8,) * size, experts=6, top_k=2, replicas=0.5, domains=2, seed=3)
    dense, model = TinyModel(6, 2, dtype), TinyModel(6, 2, dtype)
    apply_expert_parallel(model, mesh(size), plan_of(case, exchange))
    make = {
        "adam": lambda params: torch.optim.Adam(params, lr=1e-2),
        "sgd": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9),
    }[optimizer]
    ours, theirs = make(model.parameters()), make(dense.parameters())
    layers = list(find_moe_layers(model).values())
    worst = {"loss": 0.0, "norm": 0.0, "weights": 0.0}
    for step in range(50):
        batch = tokens(size, step, dtype)
        loss = loss_of(model, batch[rank], recompute)
        ours.zero_grad()
        loss.backward()
        of_experts = {id(param) for moe in layers for param in moe.experts.parameters()}
        for param in model.parameters():
            if id(param) not in of_experts:
                assert param.grad is not None
                dist.all_reduce(param.grad)
        sum_replica_gradients(model)
        norm = clip_grad_norm_(model, 1.0)
        ours.step()
        dense_losses = [loss_of(dense, x) for x in batch]
        theirs.zero_grad()
        torch.stack(dense_losses).sum().backward()
        dense_norm = nn.utils.clip_grad_norm_(dense.parameters(), 1.0)
        theirs.step()
        worst["loss"] = max(worst["loss"], relative(loss.detach(), dense_losses[rank].detach()))
        worst["norm"] = max(worst["norm"], relative(norm, dense_norm))
    check_replicas_equal(model)
    for moe, reference in zip(layers, find_moe_layers(dense).values(), strict=True):
        mine = torch.tensor(moe.exchange.layout.my_experts, dtype=torch.int64)
        worst["weights"] = max(worst["weights"], relative(moe.experts.gate_up, reference.experts.gate_up[mine]))
    return worst


@pytest.mark.parametrize(
    ("size", "exchange", "recompute", "optimizer"),
    [
        (2, "pairwise", False, "adam"),
        (4, "dedup", False, "adam"),
        (4, "two-level", True, "adam"),
        (4, "pairwise", True, "sgd"),
    ],
)
def test_fifty_steps_stay_on_the_dense_trajectory(size: int, exchange: str, recompute: bool, optimizer: str) -> None:
    """fp64: losses, clipped norms and weights as in one process, with replicas, empty ranks, and recomputation."""
    for worst in on_ranks(size, train, exchange, recompute, optimizer, torch.float64, timeout_s=120):
        assert worst["loss"] < 1e-9, worst
        assert worst["norm"] < 1e-9, worst
        assert worst["weights"] < 1e-9, worst


def test_fifty_steps_in_fp32() -> None:
    """Weights and norms stay within rounding; the loss passes near zero, where its relative error says little."""
    for worst in on_ranks(4, train, "dedup", False, "adam", torch.float32, timeout_s=120):
        assert worst["weights"] < 1e-4, worst
        assert worst["norm"] < 1e-3, worst


def same_batch(_rank: int, size: int) -> float:
    """Return the error of the experts' gradients where all ranks run the same tokens."""
    dense, model = TinyModel(6, 2, torch.float64), TinyModel(6, 2, torch.float64)
    plan = plan_of(Case((8,) * size, experts=6, top_k=2, replicas=0.0))
    apply_expert_parallel(model, mesh(size), plan, batch="same")
    x = tokens(2, 4, torch.float64)[0]
    loss_of(model, x).backward()
    loss_of(dense, x).backward()
    errors = []
    for moe, reference in zip(find_moe_layers(model).values(), find_moe_layers(dense).values(), strict=True):
        mine = torch.tensor(moe.exchange.layout.my_experts, dtype=torch.int64)
        assert isinstance(moe.experts.down, Tensor)
        errors.append(relative(moe.experts.down.grad, reference.experts.down.grad[mine]))
    return max(errors)


def test_same_batch_on_all_ranks_has_scale_one() -> None:
    assert max(on_ranks(2, same_batch)) < 1e-12


def contiguous(rank: int, size: int) -> bool:
    """Return whether the contiguous plan gives the same bits as no plan, forward and backward, for every exchange."""
    plan = plan_of(Case((8,) * size, experts=7, top_k=3, contiguous=True))
    x, same = tokens(size, 2, torch.float32)[rank], True
    for exchange in EXCHANGES:
        bits = []
        for chosen in (None, plan):
            model = TinyModel(7, 3, torch.float32)
            apply_expert_parallel(model, mesh(size), chosen, exchange=exchange)
            y = model(x)
            (y * y).sum().backward()
            bits.append([y.detach(), *(param.grad for param in model.parameters())])
        same &= all(torch.equal(a, b) for a, b in zip(*bits, strict=True))
    return same


def test_contiguous_plan_is_plain_expert_parallelism() -> None:
    assert all(on_ranks(4, contiguous))


def deploy(rank: int, size: int, change: str) -> tuple[str, bool]:
    """Return the error of a deployment gone wrong on rank 1, and whether all weights are as they were."""
    case = Case((8,) * size, experts=6, top_k=2, replicas=0.3)
    plan, model = plan_of(case), TinyModel(5 if change == "experts" else 6, 2, torch.float32)
    if change == "plan" and rank == 1:
        plan = plan_of(replace(case, seed=77))
    if change == "ranks":
        plan = plan_of(replace(case, tokens=(8,) * (size + 1)))
    if change == "top_k" and rank == 1:
        model.layers[1].router.config = replace(model.layers[1].router.config, top_k=1)
    if change == "hidden":
        plan = plan.model_copy(update={"model": plan.model.model_copy(update={"hidden": 9})})
    if change == "layers":
        plan = plan.model_copy(update={"layers": plan.layers[:1]})
    before = [param.clone() for param in model.parameters()]
    try:
        apply_expert_parallel(model, mesh(size), plan)
    except BadInput as error:
        now = list(model.parameters())
        return str(error), len(now) == len(before) and all(map(torch.equal, now, before))
    return "", False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("plan", "rank 1: its plan is not that of the other ranks"),
        ("experts", r"rank 0: layers.0: 5 experts, the plan has 6"),
        ("ranks", r"rank 0: the plan is for 4 ranks \(test\), the ep dimension has 3"),
        ("top_k", r"rank 1: layers.1: top_k is 1, the plan is for tiny with 2"),
        ("hidden", "rank 0: layers.0: hidden is 8, the plan is for tiny with 9"),
        ("layers", "2 MoE layers"),
    ],
)
def test_what_does_not_fit_is_refused_on_all_ranks(change: str, message: str) -> None:
    for error, untouched in on_ranks(3, deploy, change):
        assert re.search(message, error), error
        assert untouched


def ask(rank: int, size: int, change: str) -> tuple[str, bool]:
    """Return the error where rank 1 asks for something else, or has another model; and whether all weights stayed."""
    model, asked = TinyModel(6, 2, torch.float32), {"exchange": "dedup", "batch": "own"}
    if change == "sharing":
        model.layers[1].experts.down = model.layers[0].experts.down
    elif rank == 1:
        asked |= {"no exchange": {"exchange": "ring"}, "no batch": {"batch": "xyz"}}.get(change, {})
        asked |= {"exchange": {"exchange": "pairwise"}, "batch": {"batch": "same"}}.get(change, {})
        if change == "layers":
            del model.layers[1]
        if change == "frozen":
            model.layers[1].experts.down.requires_grad_(False)
    before = list(model.parameters())
    try:
        apply_expert_parallel(model, mesh(size), **asked)  # type: ignore[arg-type]  # some are wrong
    except BadInput as error:
        return str(error), all(a is b for a, b in zip(before, model.parameters(), strict=True))
    return "", False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no exchange", "rank 1: unknown exchange 'ring'; known: dedup, pairwise, two-level"),
        ("no batch", "rank 1: unknown batch 'xyz'; known: own, same"),
        ("exchange", "rank 1 has exchange pairwise and batch own, most ranks have exchange dedup and batch own"),
        ("batch", "rank 1 has exchange dedup and batch same, most ranks have exchange dedup and batch own"),
        ("layers", "rank 1 has 1 MoE layers, most ranks have 2 MoE layers"),
        ("sharing", "rank 0: layers.1: shares tensors of its experts with layers.0; every layer needs its own"),
        (
            "frozen",
            "rank 1 has layers.1 with 6 experts, top_k 2, hidden 8, intermediate 12, float32, down frozen, most",
        ),
    ],
)
def test_ranks_that_ask_for_different_things_are_refused(change: str, message: str) -> None:
    for error, untouched in on_ranks(3, ask, change):
        assert error.startswith(message), error
        assert untouched


def no_op(_rank: int, size: int) -> bool:
    model = TinyModel(6, 2, torch.float32)
    before = list(model.parameters())
    apply_expert_parallel(model, None)
    apply_expert_parallel(model, init_device_mesh("cpu", (size,), mesh_dim_names=("dp",)))
    apply_expert_parallel(model, init_device_mesh("cpu", (size, 1), mesh_dim_names=("dp", "ep")))
    return all(a is b for a, b in zip(before, model.parameters(), strict=True))


def test_no_ep_dimension_is_a_no_op() -> None:
    assert all(on_ranks(2, no_op))


def conform(rank: int, size: int, fault: str) -> list[str]:
    """Return what conformance finds in a step of every exchange, with a fault on rank 1."""
    case, found = Case((8,) * size, experts=6, top_k=2, replicas=0.4, domains=2, seed=5), []
    for exchange in EXCHANGES:
        plan, model = plan_of(case, exchange), TinyModel(6, 2, torch.float32)
        apply_expert_parallel(model, mesh(size), plan)
        layers = find_moe_layers(model)
        if fault and rank == 1:
            _break(model, fault)
        with Conformance(layers, plan) as watched:
            model(tokens(size, 3, torch.float32)[rank])
        verdicts = watched.verdicts()
        assert [verdict.layer for verdict in verdicts] == list(range(LAYERS))
        found += [problem for verdict in verdicts for problem in verdict.problems]
    return found


def _break(model: TinyModel, fault: str) -> None:
    """Give this rank other shares than the plan's: rows go astray, and nothing crashes."""
    layout = model.layers[0].exchange.layout
    share_DS = layout.placement.share_DS.copy()
    copies_E = layout.placement.copies_E
    for expert in np.flatnonzero(copies_E > 1):
        slots = np.flatnonzero(layout.placement.expert_S == expert)
        share_DS[:, slots] = 0.0
        share_DS[:, slots[-1 if fault == "last" else 0]] = 1.0
    wrong = replace(layout, placement=layout.placement.with_shares(share_DS))
    model.layers[0].exchange = make_exchange(model.layers[0].exchange.name, wrong, model.layers[0].exchange.transport)


def test_every_exchange_conforms() -> None:
    assert on_ranks(4, conform, "") == [[]] * 4


def test_wrong_shares_on_one_rank_are_caught_with_the_rank_named() -> None:
    for found in on_ranks(4, conform, "last"):
        assert "rank 1 has another layout than most ranks" in found
        assert any(problem.startswith("rank 1 sent ") and "the plan says" in problem for problem in found)
        others = ("rank 0 sent", "rank 2 sent", "rank 3 sent")
        assert not any(problem.startswith(others) for problem in found if "(dispatch)" in problem)


def swapped(rank: int, size: int) -> str:
    """Deploy, then exchange two slots of rank 1 by hand: what would compute wrong outputs without a word."""
    model = TinyModel(6, 2, torch.float32)
    apply_expert_parallel(model, mesh(size), plan_of(Case((8,) * size, experts=6, top_k=2, contiguous=True)))
    moe = model.layers[0]
    if rank == 1:
        expert_S = moe.exchange.layout.placement.expert_S.copy()
        first = moe.exchange.layout.first_slot_R[1]
        expert_S[[first, first + 1]] = expert_S[[first + 1, first]]
        wrong = replace(moe.exchange.layout, placement=replace(moe.exchange.layout.placement, expert_S=expert_S))
        moe.exchange = make_exchange("pairwise", wrong, moe.exchange.transport)
    try:
        check_deployed(find_moe_layers(model))
    except NotConforming as error:
        return str(error)
    return ""


def test_swapped_slots_are_caught() -> None:
    assert on_ranks(3, swapped) == ["layers.0: rank 1 has another layout than most ranks"] * 3
