"""FSDP2 after expert parallelism, with and without tensor parallelism: as in one process."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from executor.fsdp import apply_fsdp
from executor.parallelize import apply_expert_parallel
from planner import Plan
from tests.executor.adapters.families import model_of
from tests.executor.adapters.steps import PATIENCE_S
from tests.executor.parallel_steps import Layout, on_trajectory, one_step, train
from tests.executor.planned import plan_for
from tests.executor.ranks import on_ranks
from topologies import BadInput

pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("qwen3_moe", Layout(ep=2, fsdp=1)),
        ("qwen3_moe", Layout(fsdp=2)),
        ("mixtral", Layout(ep=2, fsdp=2)),
        ("mixtral", Layout(ep=2, fsdp=2, batch="same")),
        ("deepseek_v3", Layout(tp=2, ep=2, fsdp=1, sequence=True, recompute=True)),
        ("qwen3_moe", Layout(tp=2, fsdp=2, sequence=True)),
    ],
)
def test_one_step_equals_the_single_process(family: str, layout: Layout) -> None:
    """Gradients are means over different batches, for experts and for all else."""
    for errors in on_ranks(layout.ranks, one_step, family, layout, plan_for(layout.ep, "ours"), timeout_s=PATIENCE_S):
        assert all(error < 1e-5 for error in errors.values()), errors


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("mixtral", Layout(ep=2, fsdp=2)),
        pytest.param("deepseek_v3", Layout(tp=2, fsdp=2, sequence=True, recompute=True), marks=pytest.mark.slow),
    ],
)
def test_twenty_steps_stay_on_the_trajectory(family: str, layout: Layout) -> None:
    """Adam over DTensors of two meshes, clipping, copies of experts, and recomputation."""
    for most in on_ranks(layout.ranks, train, family, layout, plan_for(layout.ep, "ours"), timeout_s=PATIENCE_S):
        assert on_trajectory(most), most


def refused(rank: int, size: int, fault: str, plans: tuple[Plan | None, Plan | None]) -> tuple[str, bool]:
    """Return the error of a fault, and whether the model is as it was."""
    shape, first = (4, 1) if fault == "sizes" else (2, 2), "dp" if fault == "no fsdp" else "fsdp"
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=(first, "ep"))
    sizes = {"sizes": {"hidden_size": 10}, "nothing": {"num_local_experts": 1, "num_experts_per_tok": 1}}
    model = model_of("mixtral", torch.float32, **sizes.get(fault, {}))
    before = list(model.parameters())
    try:
        apply_expert_parallel(model, mesh, plans[rank * 2 // size])
        apply_fsdp(model, mesh)
    except BadInput as error:
        return str(error), all(a is b for a, b in zip(before, model.parameters(), strict=True))
    return "", False


def test_two_plans_along_fsdp_are_refused_on_all_ranks() -> None:
    """Ranks that would share the shards of an expert must mean the same one."""
    wanted = ("fsdp 1: its plan is not that of the other ranks", True)
    plans = plan_for(2, "ours"), plan_for(2, "linear")
    assert on_ranks(4, refused, "plan", plans, timeout_s=PATIENCE_S) == [wanted] * 4


def test_what_fsdp_cannot_shard_is_refused() -> None:
    for message, _ in on_ranks(4, refused, "no fsdp", (plan_for(2, "ours"),) * 2, timeout_s=PATIENCE_S):
        assert message == "apply_fsdp needs a dimension named fsdp, the mesh has dp, ep"
    for message, untouched in on_ranks(4, refused, "sizes", (None, None), timeout_s=PATIENCE_S):
        assert message == "model.layers.0.mlp.experts.down_proj: dimension 1 is 10, which 4 ranks do not divide"
        assert untouched
    for message, _ in on_ranks(4, refused, "nothing", (None, None), timeout_s=PATIENCE_S):
        assert message == (
            "model.layers.0.mlp: ep rank 0 holds no expert, and FSDP2 cannot shard nothing: give it a slot"
        )
