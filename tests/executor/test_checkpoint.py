"""Checkpoints: saved under one plan and number of ranks, loaded under others, bit for bit, and training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from executor.checkpoint import load_checkpoint, save_checkpoint
from executor.parallelize import apply_expert_parallel
from executor.replicas import check_replicas_equal
from executor.whole_state import gather_state_dict
from planner import Plan
from tests.executor.adapters.families import model_of
from tests.executor.adapters.steps import PATIENCE_S, mesh, plan_with_replicas, reduce_gradients
from tests.executor.adapters.test_dispatching import Expert, Model
from tests.executor.models import HIDDEN, TinyModel
from tests.executor.ranks import on_ranks
from topologies import BadInput


def build(kind: str, seed: int) -> nn.Module:
    """Return a model of 8 experts a layer: ours, or one whose experts are a list."""
    if kind == "ours":
        return TinyModel(8, 2, torch.float64, seed)
    model = Model("listed")
    with torch.no_grad():
        for param in model.parameters():
            param.add_(seed)
    return model


def steps(rank: int, size: int, model: nn.Module, optimizer: Any, first: int, last: int) -> list[float]:
    """Train on tokens that the step alone decides, dealt to the ranks; return the sums of their losses."""
    losses = []
    for step in range(first, last):
        g = torch.Generator().manual_seed(step)
        x = torch.randn(12, HIDDEN, generator=g, dtype=torch.float64)[rank * 12 // size : (rank + 1) * 12 // size]
        y: Tensor = model(x)
        loss = (y * y).sum()
        optimizer.zero_grad()
        loss.backward()
        if size > 1:
            reduce_gradients(model)
        total = loss.detach().clone()
        if size > 1:
            dist.all_reduce(total)
        for param in model.parameters():  # an expert in a list, without tokens, on one rank
            param.grad = torch.zeros_like(param) if param.grad is None else param.grad
        optimizer.step()
        losses.append(float(total))
    return losses


def save(rank: int, size: int, kind: str, plan: Plan | None, path: Path) -> tuple[dict[str, Tensor], list[float]]:
    """Train, save, and go on; return the whole model as saved, and the losses afterwards."""
    model = build(kind, 0)
    apply_expert_parallel(model, mesh(size), plan)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    steps(rank, size, model, optimizer, 0, 3)
    save_checkpoint(path, model, optimizer)
    return gather_state_dict(model), steps(rank, size, model, optimizer, 3, 6)


def load(rank: int, size: int, kind: str, plan: Plan | None, path: Path) -> tuple[dict[str, Tensor], list[float]]:
    """Load into another model under another plan; return the whole model as loaded, and the losses afterwards."""
    model = build(kind, 1)
    if size > 1:
        apply_expert_parallel(model, mesh(size), plan)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    load_checkpoint(path, model, optimizer)
    check_replicas_equal(model)
    return gather_state_dict(model), steps(rank, size, model, optimizer, 3, 6)


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["ours", "list"])
def test_any_plan_and_number_of_ranks(kind: str, tmp_path: Path) -> None:
    """Saved by 4 ranks under a plan with copies; loaded by 2 under another, by 2 without a plan, and by one."""
    path = tmp_path / "step-3"
    saved = on_ranks(4, save, kind, plan_with_replicas(4), path, timeout_s=PATIENCE_S)
    assert [bool(state) for state, _ in saved] == [True, False, False, False]
    assert saved[0][0].keys() == build(kind, 0).state_dict().keys()
    loaded = [on_ranks(2, load, kind, plan, path, timeout_s=PATIENCE_S)[0] for plan in (plan_with_replicas(2), None)]
    for state, losses in [*loaded, load(0, 1, kind, None, path)]:
        assert same_bits(state, saved[0][0])
        assert losses == pytest.approx(saved[0][1], rel=1e-10)


def hugging_face(rank: int, size: int, family: str, path: Path) -> None:
    model: Any = model_of(family, torch.float32)
    apply_expert_parallel(model, mesh(size), plan_with_replicas(size))
    state = gather_state_dict(model)
    if rank == 0:
        model.save_pretrained(path, state_dict=state)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_to_and_from_plain_safetensors(family: str, tmp_path: Path) -> None:
    """What 4 ranks write, transformers reads as any model of its own, bit for bit."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    on_ranks(4, hugging_face, family, tmp_path / "model", timeout_s=PATIENCE_S)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert same_bits(model.state_dict(), model_of(family, torch.float32).state_dict())


def load_more(_rank: int, size: int, path: Path) -> str:
    """Load 8 experts into a model of 10: only the last rank has experts that the checkpoint lacks."""
    model = Model("listed")
    for layer in model.layers:
        layer.experts.extend(Expert().double() for _ in range(2))
    apply_expert_parallel(model, mesh(size))
    try:
        load_checkpoint(path, model)
    except BadInput as error:
        return str(error)
    return ""


def test_a_rank_without_its_experts_stops_all(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "eight", Model("listed"))
    wanted = f"{tmp_path}/eight has no layers.0.experts.8.gate_proj.weight: it is of another model"
    assert on_ranks(2, load_more, tmp_path / "eight", timeout_s=PATIENCE_S) == [wanted] * 2


def other_disks(rank: int, size: int, path: Path) -> list[str]:
    """Save where something is on rank 1's disk alone, then load what is on rank 0's alone; return what was said."""
    model, said = TinyModel(8, 2, torch.float64), []
    apply_expert_parallel(model, mesh(size), None)
    taken = path / f"disk{rank}"
    if rank == 1:
        taken.mkdir(parents=True)
    for verb, place in ((save_checkpoint, taken), (load_checkpoint, path / ("saved" if rank == 0 else "none"))):
        try:
            verb(place, model)
        except BadInput as error:
            said.append(str(error).removeprefix(f"{place} "))
    return said


def test_disks_that_differ_stop_all(tmp_path: Path) -> None:
    """No rank waits for one that has found something else at the path."""
    save_checkpoint(tmp_path / "saved", TinyModel(8, 2, torch.float64))
    wanted = [
        "exists already; a checkpoint is written into a new folder",
        "holds no checkpoint of epplan (no file .metadata)",
    ]
    assert on_ranks(2, other_disks, tmp_path) == [wanted] * 2


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    model = TinyModel(4, 2, torch.float32)
    save_checkpoint(tmp_path / "small", model)
    with pytest.raises(BadInput, match=r"small exists already"):
        save_checkpoint(tmp_path / "small", model)
    with pytest.raises(BadInput, match=r"nothing holds no checkpoint"):
        load_checkpoint(tmp_path / "nothing", model)
    with pytest.raises(BadInput, match=r"small has .*router.* as \(4, 8\), the model as \(6, 8\)"):
        load_checkpoint(tmp_path / "small", TinyModel(6, 2, torch.float32))
    with pytest.raises(BadInput, match=r"small has no .*: it is of another model"):
        load_checkpoint(tmp_path / "small", nn.Linear(2, 2))
    with pytest.raises(BadInput, match=r"small has no state of an optimizer: it was saved without"):
        load_checkpoint(tmp_path / "small", model, torch.optim.SGD(model.parameters()))


def load_damaged(_rank: int, size: int, path: Path) -> str:
    model = Model("listed")
    apply_expert_parallel(model, mesh(size))
    try:
        load_checkpoint(path, model)
    except BadInput as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kept", [0, 0.5])
def test_damage_is_said_on_all_ranks(kept: float, tmp_path: Path) -> None:
    """A description that ends early, then tensors that do: of each file half is left, or nothing."""
    for damaged, words in ((".metadata", "is damaged: its .metadata cannot be read"), ("*.distcp", "is damaged: rank")):
        path = tmp_path / damaged.strip("*.")
        save_checkpoint(path, Model("listed"))
        for file in path.glob(damaged):
            file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
        for said in on_ranks(2, load_damaged, path, timeout_s=PATIENCE_S):
            assert said.startswith(f"{path} {words}")
            assert "\n" not in said
