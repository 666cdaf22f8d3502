"""A training job of 4 gloo ranks in which one rank fails on purpose, as a job sees it: nobody above the ranks helps.

The ranks are processes of their own with a store in the parent, as under torchrun. What each of them ends with is
written down: its exit code, its last words, and how long it took from the fault on.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial, partialmethod
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.device_mesh import init_device_mesh

from executor.checkpoint import load_checkpoint, save_checkpoint
from executor.migrate import migrate_to
from executor.moe_layers import find_moe_layers
from executor.parallelize import apply_expert_parallel
from executor.replicas import sum_replica_gradients
from executor.worker import Place
from tests.executor.layers import Case
from tests.executor.models import HIDDEN, TinyModel, plan_of
from topologies.errors import EpplanError

RANKS, CULPRIT, EXPERTS = 4, 2, 8
TIMEOUT_S, STALL_TIMEOUT_S = 60.0, 15.0
"""Of every collective; a rank that is killed is noticed at once, one that stalls by this alone."""
SLACK_S = 40.0
"""For reading the roster and ending, on a machine with more ranks than cores."""


@dataclass(frozen=True)
class Fault:
    """What the culprit does, and where: when it passes a mark of its layers, or is about to make a collective.

    Attributes:
        how: "kill", "stall" or "raise".
        mark: of `executor.measure.MARKS`, with "backward " before it on the way back; or empty.
        call: how the name of a collective begins, or "checkpoint" before or after it has written its part; or empty.
        step: from which on.

    """

    how: str
    mark: str = ""
    call: str = ""
    step: int = 2

    def strike(self) -> None:
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.how == "stall":
            time.sleep(600)
        else:
            raise ValueError("an error of its own")


@dataclass(frozen=True)
class End:
    """How a rank ended: exit code, last words, losses by step, and when."""

    code: int | None
    said: str
    losses: dict[int, float]
    seconds: float


WRITE_DATA = FileSystemWriter.write_data


class Striker:
    """The clock and the guard of the culprit's layers: strikes when the moment has come."""

    device = torch.device("cpu")

    def __init__(self, fault: Fault | None) -> None:
        self.fault, self.step = fault, 0

    def note(self, name: str, *, backward: bool) -> None:
        if self._is_due() and self.fault is not None and self.fault.mark == ("backward " if backward else "") + name:
            self.fault.strike()

    def check(self, call: str, _sends: Any = (), _receives: Any = ()) -> None:
        if self._is_due() and self.fault is not None and self.fault.call and call.startswith(self.fault.call):
            self.fault.strike()

    def _is_due(self) -> bool:
        return self.fault is not None and self.step >= self.fault.step


def _write_data(writer: FileSystemWriter, striker: Striker, *args: Any) -> Any:
    """Stand in for the writer's own."""
    striker.check("checkpoint begins")
    written = WRITE_DATA(writer, *args)
    striker.check("checkpoint ends")
    return written


def plan(seed: int) -> Any:
    return plan_of(Case((8,) * RANKS, experts=EXPERTS, top_k=2, replicas=0.3, domains=2, seed=seed))


def train(rank: int, size: int, folder: Path, fault: Fault | None, steps: int, losses: dict[int, float]) -> None:
    """Train, saving every 2 steps and migrating at 3, from the last checkpoint on if there is one."""
    striker = Striker(fault if rank == CULPRIT else None)
    if rank == CULPRIT:
        FileSystemWriter.write_data = partialmethod(_write_data, striker)  # type: ignore[method-assign,assignment]  # a fault
    model: nn.Module = TinyModel(EXPERTS, 2, torch.float64)
    saved = sorted(int(path.name.split("-")[1]) for path in folder.glob("step-*") if path.suffix != ".partial")
    first = saved[-1] if saved else 0
    apply_expert_parallel(model, init_device_mesh("cpu", (size,), mesh_dim_names=("ep",)), plan(1), guard=striker)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    if saved:
        load_checkpoint(folder / f"step-{first}", model, optimizer)
    for layer in find_moe_layers(model).values():
        layer.clock = striker  # type: ignore[assignment]  # it has what layers ask of a clock
    for step in range(first, steps):
        striker.step = step
        if step == 3:
            migrate_to(model, plan(2), optimizer, memory_bytes=4096)
        losses[step] = one_step(rank, model, optimizer, step)
        if step % 2:
            save_checkpoint(folder / f"step-{step + 1}", model, optimizer)


def one_step(rank: int, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> float:
    g = torch.Generator().manual_seed(100 * step + rank)
    y: Tensor = model(torch.randn(4 + rank, HIDDEN, generator=g, dtype=torch.float64))
    loss = (y * y).mean()
    optimizer.zero_grad()
    loss.backward()
    sum_dense_gradients(model)
    sum_replica_gradients(model)
    optimizer.step()
    return float(loss.detach())


def sum_dense_gradients(model: nn.Module) -> None:
    """Sum the gradients of what is no expert, by a collective of the job's own that the roster knows of."""
    layers = find_moe_layers(model).values()
    of_experts = {id(param) for layer in layers for param in layer.held.parameters()}
    with next(iter(layers)).exchange.transport.inside("dense gradients"):
        for param in model.parameters():
            if id(param) not in of_experts:
                dist.all_reduce(param.grad)


def _rank(
    rank: int,
    place: Place | None,
    store_at: tuple[str, int],
    timeout_s: float,
    folder: Path,
    work: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    """Run in a process of its own: a rank, whose last words go into a file."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if place is not None:
        place.enter()
    torch.set_num_threads(1)
    untyped: Any = dist  # hides its stores from type checkers
    store = untyped.TCPStore(*store_at, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=timeout_s))
    faulthandler.register(signal.SIGUSR1, file=(folder / f"stack-{rank}").open("w"))
    losses: dict[int, float] = {}
    began, said = time.monotonic(), ""
    try:
        work(rank, RANKS, folder, *args, losses)
    except EpplanError as error:
        said = f"{type(error).__name__}: {error}"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    (folder / f"end-{rank}").write_bytes(pickle.dumps((said, losses, time.monotonic() - began)))
    os._exit(1 if said else 0)


def run_job(
    folder: Path,
    work: Callable[..., None],
    *args: Any,
    stalls: bool = False,
    places: Sequence[Place] = (),
    meanwhile: Callable[[], object] = lambda: None,
    patience_s: float = 300.0,
) -> list[End]:
    """Run `work(rank, size, folder, *args, losses)` on all ranks; return how each of them ended.

    Ranks are forked from a server that has torch imported and does nothing else: a spawned one takes seconds, and each
    of these jobs loses its ranks.

    Args:
        folder: of the job's files.
        work: what the ranks do.
        args: for it.
        stalls: whether collectives have to time out, and the culprit is to be killed once the others have ended.
        places: network namespaces of the ranks, or none.
        meanwhile: called once the first checkpoint is written.
        patience_s: after which a rank hangs.

    """
    folder.mkdir(exist_ok=True)
    store = places[0].inside(partial(_store, places[0].address)) if places else _store("127.0.0.1")
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.executor.faults.job"])
    host = places[0].address if places else "127.0.0.1"
    timeout_s = STALL_TIMEOUT_S if stalls else TIMEOUT_S
    seats = [
        (rank, places[rank] if places else None, (host, store.port), timeout_s, folder, work, args)
        for rank in range(RANKS)
    ]
    ranks = [context.Process(target=_rank, args=seat, daemon=True) for seat in seats]
    for process in ranks:
        process.start()
    until = time.monotonic() + patience_s
    while places and not list(folder.glob("step-?")) and time.monotonic() < until:
        time.sleep(0.05)
    meanwhile()
    awaited = [rank for rank in range(RANKS) if not (stalls and rank == CULPRIT)]
    for rank in awaited:
        ranks[rank].join(max(until - time.monotonic(), 0.0))
    hung = {rank: _stack(ranks[rank].pid, folder / f"stack-{rank}") for rank in awaited if ranks[rank].is_alive()}
    for process in ranks:
        process.kill()
        process.join()
    assert not hung, f"had not ended after {patience_s} s: {hung}"
    return [_end(folder / f"end-{rank}", process.exitcode) for rank, process in enumerate(ranks)]


def _store(host: str) -> Any:
    untyped: Any = dist  # hides its stores from type checkers
    return untyped.TCPStore(host, 0, is_master=True, wait_for_workers=False)


def _stack(pid: int | None, path: Path) -> str:
    """Ask a rank where it stands."""
    assert pid is not None
    os.kill(pid, signal.SIGUSR1)
    time.sleep(1.0)
    return path.read_text()


def _end(path: Path, code: int | None) -> End:
    if not path.exists():
        return End(code, "", {}, 0.0)
    said, losses, seconds = pickle.loads(path.read_bytes())
    path.unlink()
    return End(code, said, losses, seconds)
