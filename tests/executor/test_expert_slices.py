"""Expert tensor parallelism: tp ranks share every expert, whatever way its gate and up columns are stored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from executor.expert_slices import takes_turns
from executor.tensor_parallel import apply_tensor_parallel
from tests.executor.adapters.families import model_of
from tests.executor.adapters.steps import PATIENCE_S
from tests.executor.models import INTERMEDIATE
from tests.executor.parallel_steps import Layout, on_trajectory, one_step, train
from tests.executor.planned import plan_for
from tests.executor.ranks import on_ranks
from topologies import BadInput

pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("gpt_oss", Layout(tp=2, ep=2, slices=True)),
        ("gpt_oss", Layout(tp=2, sequence=True)),
        ("mixtral", Layout(tp=2, sequence=True, slices=True)),
        ("deepseek_v3", Layout(tp=2, ep=2, sequence=True, slices=True)),
        ("qwen3_moe", Layout(tp=2, fsdp=2, slices=True)),
    ],
)
def test_one_step_equals_the_single_process(family: str, layout: Layout) -> None:
    """Both ways to store gate and up, transposed matrices, biases, and attention sinks among them."""
    for errors in on_ranks(layout.ranks, one_step, family, layout, plan_for(layout.ep, "ours"), timeout_s=PATIENCE_S):
        assert all(error < 1e-5 for error in errors.values()), errors


def test_twenty_steps_stay_on_the_trajectory() -> None:
    """A bias that every rank holds whole stays the same on all of them."""
    layout = Layout(tp=2, ep=2, slices=True)
    for most in on_ranks(layout.ranks, train, "gpt_oss", layout, plan_for(2, "eplb"), timeout_s=PATIENCE_S):
        assert on_trajectory(most), most


def test_how_gate_and_up_stand_is_found_by_trying() -> None:
    def one_after_the_other(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return gate * up

    assert takes_turns(lambda x: x[..., ::2] * x[..., 1::2])
    assert not takes_turns(one_after_the_other)


def refused(_rank: int, size: int) -> str:
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("tp",))
    model: Any = model_of("qwen3_moe", torch.float32, num_key_value_heads=2, moe_intermediate_size=INTERMEDIATE + 1)
    before = list(model.parameters())
    try:
        apply_tensor_parallel(model, mesh, expert_slices=True)
    except BadInput as error:
        assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
        return str(error)
    return ""


def test_an_intermediate_size_that_does_not_divide_is_refused() -> None:
    wanted = "model.layers.0.mlp.experts: intermediate is 13, which 2 tp ranks do not divide"
    assert on_ranks(2, refused, timeout_s=PATIENCE_S) == [wanted] * 2
