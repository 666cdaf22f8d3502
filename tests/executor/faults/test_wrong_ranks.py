"""A rank that is not like the others, or whose router goes wrong: all ranks end with it named, nothing half done."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.device_mesh import init_device_mesh

from executor.checkpoint import NotSaved, load_checkpoint, save_checkpoint
from executor.deployment import BadRouting
from executor.dispatch_and_compute import ep_dispatch_and_compute
from executor.failures import RankLost
from executor.moe_layers import find_moe_layers
from executor.parallelize import apply_expert_parallel
from executor.replicas import check_replicas_equal
from tests.executor.faults.job import CULPRIT, EXPERTS, RANKS, SLACK_S, TIMEOUT_S, one_step, plan, run_job
from tests.executor.layers import Case
from tests.executor.models import HIDDEN, TinyModel, plan_of
from tests.executor.ranks import on_ranks
from topologies import BadInput


def deployed(rank: int, size: int, wrong: str) -> str:
    """Deploy; the culprit has another plan, model, type, or mesh than the others. Return what is said."""
    is_culprit = rank == CULPRIT
    experts = 6 if is_culprit and wrong == "model" else EXPERTS
    model: nn.Module = TinyModel(experts, 2, torch.float64)
    if is_culprit and wrong == "type":
        model.float()
    chosen: Any = plan(2 if is_culprit and wrong == "plan" else 1)
    if wrong == "mesh":
        chosen = plan_of(Case((8,) * 6, experts=EXPERTS, top_k=2))
    if wrong == "no plan" or (wrong == "model" and not is_culprit):
        chosen = None
    if wrong == "wide":
        chosen = None
        if is_culprit:
            model = TinyModel(EXPERTS, 2, torch.float64)
            for layer in find_moe_layers(model).values():
                layer.experts.down = nn.Parameter(torch.zeros(EXPERTS, HIDDEN, 14, dtype=torch.float64))  # type: ignore[attr-defined]  # ours
    before = [param.detach().clone() for param in model.parameters()]
    try:
        apply_expert_parallel(model, init_device_mesh("cpu", (size,), mesh_dim_names=("ep",)), chosen)
    except BadInput as error:
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), "nothing was touched"
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("plan", f"rank {CULPRIT}: its plan is not that of the other ranks"),
        ("model", f"rank {CULPRIT}: layers.0: 6 experts, the plan has 8"),
        ("mesh", "rank 0: the plan is for 6 ranks (test), the ep dimension has 4"),
        (
            "type",
            f"rank {CULPRIT} has layers.0 with 8 experts, top_k 2, hidden 8, intermediate 12, float32, most ranks have"
            " layers.0 with 8 experts, top_k 2, hidden 8, intermediate 12, float64",
        ),
        (
            "wide",
            f"rank {CULPRIT} has layers.0 with 8 experts, top_k 2, hidden 8, intermediate 14, float64, most ranks have"
            " layers.0 with 8 experts, top_k 2, hidden 8, intermediate 12, float64",
        ),
    ],
)
def test_a_rank_unlike_the_others_is_refused_on_all(wrong: str, said: str) -> None:
    assert on_ranks(RANKS, deployed, wrong, timeout_s=120) == [said] * RANKS


def train_with_nan(rank: int, size: int, folder: Path, losses: dict[int, float]) -> None:
    """Save after a step; then the culprit's router turns out NaN."""
    model: nn.Module = TinyModel(EXPERTS, 2, torch.float64)
    apply_expert_parallel(model, init_device_mesh("cpu", (size,), mesh_dim_names=("ep",)), plan(1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses[0] = one_step(rank, model, optimizer, 0)
    save_checkpoint(folder / "step-1", model, optimizer)
    if rank == CULPRIT:
        with torch.no_grad():
            next(iter(find_moe_layers(model).values())).router.weight[3] = float("nan")  # type: ignore[attr-defined]  # ours
    losses[1] = one_step(rank, model, optimizer, 1)


def dispatch_wrong_ids(rank: int, size: int, _folder: Path, _losses: dict[int, float]) -> None:
    """Call the bare function; the culprit names an expert that there is not."""
    moe: Any = nn.Module()
    moe.ep_world_size, moe.ep_group, moe.local_expert_start, moe.num_local_experts = 1, None, 0, EXPERTS
    moe.experts = TinyModel(EXPERTS, 2, torch.float64).layers[0].experts
    model = nn.Sequential(moe)
    apply_expert_parallel(model, init_device_mesh("cpu", (size,), mesh_dim_names=("ep",)), plan_of_one_layer())
    ids = torch.randint(0, EXPERTS, (5, 2))
    if rank == CULPRIT:
        ids[3, 1] = EXPERTS + 91
    x, weights = torch.ones(5, HIDDEN, dtype=torch.float64), torch.ones(5, 2, dtype=torch.float64)
    ep_dispatch_and_compute(
        x, weights, ids, moe, moe.ep_group, moe.local_expert_start, moe.num_local_experts, moe.ep_world_size
    )


def plan_of_one_layer() -> Any:
    whole = plan(1)
    return whole.model_copy(update={"layers": whole.layers[:1]})


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (train_with_nan, r"rank 2, layer 0: its router sends token 0 to expert \d of 0..7 with weight nan"),
        pytest.param(
            dispatch_wrong_ids,
            r"rank 2, layer 0: its router sends token 3 to expert 99 of 0..7 with weight 1",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["nan", "ids"],
)
def test_routing_that_is_none_is_named_on_all_ranks(work: Any, said: str, tmp_path: Path) -> None:
    ends = run_job(tmp_path, work)
    assert re.fullmatch(f"{BadRouting.__name__}: {said}", ends[CULPRIT].said)
    for rank in set(range(RANKS)) - {CULPRIT}:
        assert ends[rank].said.startswith(RankLost.__name__)
        assert re.search(f"{said}$", ends[rank].said)
        assert ends[rank].seconds < TIMEOUT_S + SLACK_S


def save_on_a_full_disk(rank: int, size: int, folder: Path, disk: Path | None, losses: dict[int, float]) -> None:
    """Save, find the disk full, go on training, and load what was saved before."""
    model: nn.Module = TinyModel(EXPERTS, 2, torch.float64)
    apply_expert_parallel(model, init_device_mesh("cpu", (size,), mesh_dim_names=("ep",)), plan(1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses[0] = one_step(rank, model, optimizer, 0)
    save_checkpoint(folder / "step-1", model, optimizer)
    if disk is None and rank == CULPRIT:

        def full(*_: Any) -> Any:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        FileSystemWriter.write_data = full  # type: ignore[method-assign]  # the fault
    where = folder if disk is None else disk
    try:
        save_checkpoint(where / "step-2", model, optimizer)
    except NotSaved as error:
        assert f"{where}/step-2 is not saved: rank {CULPRIT if disk is None else 0}" in str(error)
        losses[1] = float(not list(where.glob("step-2*")))
    load_checkpoint(folder / "step-1", model, optimizer)
    check_replicas_equal(model)
    losses[2] = one_step(rank, model, optimizer, 1)


def test_a_full_disk_under_a_checkpoint(tmp_path: Path) -> None:
    """All ranks hear whose write failed, nothing is left of it, and the job can go on."""
    ends = run_job(tmp_path, save_on_a_full_disk, None)
    assert [end.said for end in ends] == [""] * RANKS
    assert [end.losses[1] for end in ends] == [1.0] * RANKS
    assert not list(tmp_path.glob("step-2*"))
    assert (tmp_path / "step-1").is_dir()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A tmpfs of 16 KiB under the second checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mount: {mounted.stderr.strip()}")
    try:
        ends = run_job(tmp_path, save_on_a_full_disk, disk)
    finally:
        subprocess.run(["umount", disk], check=True)
    assert [end.said for end in ends] == [""] * RANKS
    assert [end.losses[1] for end in ends] == [1.0] * RANKS
