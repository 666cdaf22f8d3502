"""Checkpoints under tensor parallelism, expert slices and FSDP2: from any layout to any other, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from executor.checkpoint import load_checkpoint, save_checkpoint
from executor.fsdp import parameter_groups
from executor.replicas import check_replicas_equal, clip_grad_norm_
from executor.whole_state import gather_state_dict
from planner import Plan
from tests.executor.adapters.families import forward
from tests.executor.adapters.steps import PATIENCE_S
from tests.executor.parallel_steps import Layout, batch_of, build, reduce, split
from tests.executor.planned import plan_for
from tests.executor.ranks import on_ranks

pytest.importorskip("transformers", reason="transformers is not installed")

State = dict[str, Tensor]


def made(family: str, layout: Layout, plan: Plan | None, seed: int) -> tuple[Any, torch.optim.Adam, Any]:
    """Return a model in a layout, its optimizer, and the mesh."""
    mesh = layout.mesh()
    model = split(build(family, seed), layout, mesh, plan)
    return model, torch.optim.Adam(parameter_groups(model), lr=1e-2), mesh


def step(model: Any, optimizer: torch.optim.Adam, family: str, layout: Layout, mesh: Any) -> None:
    """Take one step, so that the optimizer has state."""
    forward(model, family, batch_of(layout, 0)[layout.my_batch(mesh)]).loss.backward()
    reduce(model, layout, mesh)
    clip_grad_norm_(model, 1.0)
    optimizer.step()


@torch.no_grad()
def moments(model: Any, optimizer: torch.optim.Adam) -> State:
    """Return the optimizer's moments as states of a model, in which they stand for the parameters."""
    state: State = {}
    for what in ("exp_avg", "exp_avg_sq"):
        for param in model.parameters():
            param.copy_(optimizer.state[param][what])
        state |= {f"{what} {name}": one for name, one in gather_state_dict(model).items()}
    return state


def save(_rank: int, _size: int, family: str, layout: Layout, plan: Plan | None, path: Path) -> tuple[State, State]:
    """Train a step, save, and return the whole model, and its moments."""
    model, optimizer, mesh = made(family, layout, plan, 0)
    step(model, optimizer, family, layout, mesh)
    save_checkpoint(path, model, optimizer)
    return gather_state_dict(model), moments(model, optimizer)


def load(_rank: int, _size: int, family: str, layout: Layout, plan: Plan | None, path: Path) -> tuple[State, State]:
    """Load into another model in another layout; return the whole model, and its moments."""
    model, optimizer, _ = made(family, layout, plan, 1)
    load_checkpoint(path, model, optimizer)
    check_replicas_equal(model)
    return gather_state_dict(model), moments(model, optimizer)


def same_bits(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


EP4 = Layout(ep=4)
OTHERS = (
    Layout(ep=2, tp=2),
    Layout(ep=2, tp=2, sequence=True, slices=True),
    Layout(fsdp=2, ep=2),
    Layout(fsdp=2, tp=2, slices=True),
    Layout(fsdp=1, ep=2, tp=2),
)


@pytest.mark.parametrize(
    ("family", "layouts"),
    [
        ("mixtral", OTHERS[:2]),
        ("gpt_oss", OTHERS[3:4]),
        *(
            pytest.param(one, OTHERS, marks=pytest.mark.slow)
            for one in ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")
        ),
    ],
)
def test_from_ep4_to_other_layouts_and_back(family: str, layouts: tuple[Layout, ...], tmp_path: Path) -> None:
    """Plan A at EP4; then others at EP2 with TP2, with expert slices, with FSDP2; from each back; and to one rank."""
    args = (family, EP4, plan_for(4, "ours"))
    saved = on_ranks(4, save, *args, tmp_path / "ep4", timeout_s=PATIENCE_S)
    assert [bool(state) for state, _ in saved] == [True, False, False, False]
    assert {name: one.shape for name, one in saved[0][0].items()} == {
        name: one.shape for name, one in build(family).state_dict().items()
    }
    for number, layout in enumerate(layouts):
        there = (family, layout, plan_for(layout.ep, "eplb"))
        found = on_ranks(4, load, *there, tmp_path / "ep4", timeout_s=PATIENCE_S)
        assert [bool(state) for state, _ in found] == [True, False, False, False]
        assert same_bits(found[0][0], saved[0][0]), layout
        assert same_bits(found[0][1], saved[0][1]), layout
        theirs = on_ranks(4, save, *there, tmp_path / str(number), timeout_s=PATIENCE_S)[0]
        back = on_ranks(4, load, *args, tmp_path / str(number), timeout_s=PATIENCE_S)[0]
        assert same_bits(back[0], theirs[0]), layout
        assert same_bits(back[1], theirs[1]), layout
        model: Any = build(family, 1)
        load_checkpoint(tmp_path / str(number), model)
        assert same_bits(gather_state_dict(model), theirs[0]), layout


def hugging_face(rank: int, _size: int, family: str, layout: Layout, plan: Plan | None, path: Path) -> None:
    model: Any = split(build(family), layout, layout.mesh(), plan)
    state = gather_state_dict(model)
    if rank == 0:
        model.save_pretrained(path, state_dict=state)


@pytest.mark.parametrize(
    ("family", "layout"),
    [("gpt_oss", Layout(ep=2, tp=2, slices=True)), ("qwen3_moe", Layout(fsdp=2, tp=2, sequence=True, slices=True))],
)
def test_to_and_from_plain_safetensors(family: str, layout: Layout, tmp_path: Path) -> None:
    """What 4 ranks write from slices, transformers reads as any model of its own, bit for bit."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    on_ranks(4, hugging_face, family, layout, plan_for(layout.ep, "ours"), tmp_path / "model", timeout_s=PATIENCE_S)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert same_bits(model.state_dict(), build(family).state_dict())
