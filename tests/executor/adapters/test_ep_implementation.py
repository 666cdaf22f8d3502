"""Ours beside Hugging Face's own expert parallelism, through DistributedConfig and by plan: the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from executor.adapters.ep_implementation import use_plan
from executor.conformance import Conformance
from executor.moe_layers import find_moe_layers
from executor.parallelize import apply_expert_parallel
from planner import Plan
from tests.executor.adapters.families import EXPERTS, TOP_K, batches, forward, model_of
from tests.executor.adapters.steps import PATIENCE_S, mesh, plan_with_replicas, worst
from tests.executor.layers import Case
from tests.executor.models import plan_of
from tests.executor.ranks import on_ranks
from topologies import BadInput

library = pytest.importorskip("transformers.distributed.expert_parallel", reason="no transformers, or an old one")
if not hasattr(library, "EPImplementationInterface"):
    pytest.skip("transformers before 5.23", allow_module_level=True)


def distributed(family: str, implementation: str, **sizes: int) -> nn.Module:
    """Return the model as `from_pretrained(distributed_config=...)` spreads it."""
    from transformers.distributed import DistributedConfig  # noqa: PLC0415  # takes seconds; only ranks need it

    model: Any = model_of(family, torch.float32, num_key_value_heads=2)
    config = DistributedConfig(**sizes, ep_implementation=implementation)
    config, _, meshes = type(model).prepare_distribute_model(config)
    distributed_model: nn.Module = type(model).maybe_distribute_model(model, config, meshes)
    return distributed_model


def whole(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def step(model: nn.Module, family: str, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return logits, and the gradients of all parameters, gathered from all ranks."""
    out = forward(model, family, ids)
    out.loss.backward()
    return out.logits.detach(), [whole(param.grad) for param in model.parameters() if param.grad is not None]


def beside_theirs(rank: int, size: int, family: str, sizes: dict[str, int]) -> dict[str, float]:
    """Return the differences to their all-to-all of ours in DistributedConfig, and of ours under plans."""
    ids = batches(1, 3)[0] if sizes.get("tp_size", 1) == size else batches(size, 3)[rank // sizes.get("tp_size", 1)]
    wanted, gradients = step(distributed(family, "all_to_all", **sizes), family, ids)
    found: dict[str, float] = {}
    for plan in (None, plan_of(Case((8,) * size, experts=EXPERTS, top_k=TOP_K, contiguous=True, domains=2), "dedup")):
        use_plan(plan)
        model = distributed(family, "epplan", **sizes)
        name = "no plan" if plan is None else plan.exchange
        layers = find_moe_layers(model)
        with Conformance(layers, plan) as watched:
            logits, ours = step(model, family, ids)
        found[f"rows, {name}"] = sum(len(verdict.problems) for verdict in watched.verdicts())
        found[f"logits, {name}"] = worst([(logits, wanted)])
        assert len(ours) == len(gradients) == len(list(model.parameters()))
        found[f"gradients, {name}"] = worst(list(zip(ours, gradients, strict=True)))
    for exchange in ("pairwise", "dedup", "two-level"):
        model = model_of(family, torch.float32, num_key_value_heads=2)
        apply_expert_parallel(model, mesh(size), plan_with_replicas(size, exchange))
        found[exchange] = worst([(forward(model, family, ids).logits.detach(), wanted)])
    return found


@pytest.mark.parametrize(
    ("family", "size", "sizes"),
    [
        ("mixtral", 4, {"fsdp_size": 4, "ep_size": 4}),
        ("qwen3_moe", 4, {"fsdp_size": 4, "ep_size": 4}),
        ("deepseek_v3", 4, {"fsdp_size": 4, "ep_size": 4}),
        ("gpt_oss", 4, {"tp_size": 2, "fsdp_size": 2, "ep_size": 4}),
        ("qwen3_moe", 2, {"tp_size": 2, "ep_size": 2}),
    ],
)
def test_equal_to_their_all_to_all(family: str, size: int, sizes: dict[str, int]) -> None:
    """Same weights, same tokens, through their `DistributedConfig` and ours, by plans with copies too."""
    for found in on_ranks(size, beside_theirs, family, sizes, timeout_s=PATIENCE_S):
        gradients = {what: error for what, error in found.items() if what.startswith("gradients")}
        assert all(error < 1e-5 for error in gradients.values()), found
        assert all(error < 1e-6 for what, error in found.items() if what not in gradients), found


def refused(_rank: int, size: int, plan: Plan) -> str:
    use_plan(plan)
    try:
        distributed("mixtral", "epplan", fsdp_size=size, ep_size=size)
    except BadInput as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (plan_with_replicas(2), "layer 0: the plan moves or copies experts"),
        (plan_with_replicas(3), "the plan is for 8 experts on 3 ranks, the model has 8 on ep_size 2"),
    ],
)
def test_plans_that_transformers_cannot_lay_out_are_refused(plan: Plan, message: str) -> None:
    assert all(error.startswith(message) for error in on_ranks(2, refused, plan, timeout_s=PATIENCE_S))
