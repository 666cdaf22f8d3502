"""Ranks on this machine: spawns them, runs one function on all of them, and names the rank that went wrong.

    with RankPool(4) as pool:                      # 4 processes that keep torch imported between runs
        sums = pool.run(work, 17, timeout_s=60)    # [work(0, 4, 17), work(1, 4, 17), ...], each in its own process

`work` is a function of a module; when it starts, its rank is in a process group of this run. The parent holds the
store, on a port that the system chose, so that no two jobs can meet. No rank outlives the parent.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypeVar

from executor.failures import Failure, rank_failed
from executor.worker import Place, Seat, distributed, serve
from topologies.errors import BadInput

T = TypeVar("T")
HOST = "127.0.0.1"
START_TIMEOUT_S = 300.0  # importing torch takes seconds, and many ranks may share few cores
GRACE_S = 1.0  # after the first failure: time for the others to report theirs, so that the cause can be told
LATE_S = 60.0  # by which collectives wait longer than the run: the parent is first to notice, and knows all stacks


def run_ranks(
    target: Callable[..., T],
    world_size: int,
    *args: Any,
    timeout_s: float = 120.0,
    backend: str = "gloo",
    threads: int = 1,
) -> list[T]:
    """Call `target(rank, world_size, *args)` in `world_size` new processes; return the results by rank.

    Raises as `RankPool.run` does.
    """
    with RankPool(world_size, backend=backend, threads=threads) as pool:
        return pool.run(target, *args, timeout_s=timeout_s)


@dataclass(frozen=True)
class _Rank:
    """One process, our end of its pipe, and the file into which it writes its stack when asked to."""

    process: SpawnProcess
    pipe: Connection
    stack_file: Path


class RankPool:
    """Processes that wait for functions to run; started by the first run, and anew after a failed one.

    Attributes:
        world_size: number of ranks.
        backend: of the process group: gloo, or nccl with the GPUs dealt out in turn.
        threads: of each rank's OpenMP pool, set before torch is imported there.
        places: network namespace of each rank (`executor.lab.Lab.places`), or None for this machine's own network.

    """

    def __init__(
        self, world_size: int, *, backend: str = "gloo", threads: int = 1, places: Sequence[Place] | None = None
    ) -> None:
        self.world_size, self.backend, self.threads, self.places = world_size, backend, threads, places
        self._ranks: list[_Rank] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._store: Any = None
        self._runs = 0

    def __enter__(self) -> RankPool:
        """Return the pool itself; its processes start with the first run."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all ranks."""
        self.close()

    def run(self, target: Callable[..., T], *args: Any, timeout_s: float = 120.0) -> list[T]:
        """Call `target(rank, world_size, *args)` on every rank; return the results by rank.

        Raises:
            BadInput, Infeasible: a rank raised it; it is passed on as it is.
            RankFailed: a rank raised anything else, died, or did not return within `timeout_s`; its text names the
                rank and what happened, its notes carry the ranks' tracebacks. All ranks are stopped.

        """
        if not self._ranks:
            self._start()
        self._runs += 1
        job = pickle.dumps((target, args, f"run{self._runs}", timeout_s + LATE_S))
        try:
            for rank in self._ranks:
                with contextlib.suppress(OSError):  # a rank that died while it waited is found below
                    rank.pipe.send_bytes(job)
            return self._collect(timeout_s)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop all ranks; the next run starts new ones."""
        for rank in self._ranks:
            rank.process.kill()
        for rank in self._ranks:
            rank.process.join()
            rank.process.close()
            rank.pipe.close()
        self._ranks, self._store = [], None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        if self.world_size < 1:
            raise BadInput(f"{self.world_size} ranks; at least 1 is needed")
        self._store = self._make_store()
        self._folder = tempfile.TemporaryDirectory(prefix="epplan-ranks-")
        try:
            with _environment(_rank_environment(self.threads)):
                for rank in range(self.world_size):
                    self._ranks.append(self._spawn(rank, Path(self._folder.name) / f"rank{rank}"))
            self._collect(START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    @property
    def _host(self) -> str:
        return self.places[0].address if self.places else HOST

    def _make_store(self) -> Any:
        def make() -> Any:
            return distributed().TCPStore(self._host, 0, is_master=True, wait_for_workers=False)

        return self.places[0].inside(make) if self.places else make()

    def _spawn(self, rank: int, stack_file: Path) -> _Rank:
        context = get_context("spawn")
        stack_file.touch()
        place = self.places[rank] if self.places else None
        seat = Seat(rank, self.world_size, self.backend, self._host, self._store.port, stack_file, place)
        ours, theirs = context.Pipe()
        process = context.Process(
            target=serve,
            args=(theirs, seat),
            name=f"epplan-rank-{rank}",
            daemon=True,
        )
        process.start()
        theirs.close()
        return _Rank(process, ours, stack_file)

    def _collect(self, timeout_s: float) -> list[Any]:
        """Return every rank's answer; raise what `run` raises where one is missing."""
        deadline = time.monotonic() + timeout_s
        results: dict[int, Any] = {}
        failures: dict[int, Failure] = {}
        waiting = dict(enumerate(self._ranks))
        while waiting and (ready := _ready(waiting, deadline)):
            for rank in ready:
                answer = _answer(rank, waiting.pop(rank))
                if isinstance(answer, Failure):
                    failures[rank] = answer
                    deadline = min(deadline, time.monotonic() + GRACE_S)
                else:
                    results[rank] = answer[0]
        if waiting or failures:
            raise rank_failed(failures.values(), _stacks(waiting), self.world_size, timeout_s)
        return [results[rank] for rank in range(self.world_size)]


def _ready(waiting: Mapping[int, _Rank], deadline: float) -> list[int]:
    """Return the ranks that have answered or ended; none when the time is up."""
    rank_of = {end: rank for rank, one in waiting.items() for end in (one.pipe, one.process.sentinel)}
    ends = connection.wait(list(rank_of), timeout=max(deadline - time.monotonic(), 0.0))
    return sorted({rank_of[end] for end in ends})  # type: ignore[index]  # wait returns what it was given


def _answer(rank: int, one: _Rank) -> Failure | tuple[Any]:
    """Return what a rank sent, or how it ended."""
    try:
        answer: Failure | tuple[Any] = pickle.loads(one.pipe.recv_bytes())  # written by our own child
        return answer
    except (EOFError, OSError):
        one.process.join()
        return Failure.of_exit(rank, one.process.exitcode)


def _stacks(waiting: Mapping[int, _Rank]) -> dict[int, str]:
    """Ask ranks where they stand; empty for one that does not say so in time."""
    for one in waiting.values():
        if one.process.pid is not None:
            os.kill(one.process.pid, signal.SIGUSR1)
    until = time.monotonic() + GRACE_S
    while time.monotonic() < until and not all(one.stack_file.stat().st_size for one in waiting.values()):
        time.sleep(0.02)
    time.sleep(0.05 if waiting else 0.0)  # a stack is written line by line
    return {rank: one.stack_file.read_text(errors="replace") for rank, one in waiting.items()}


def _rank_environment(threads: int) -> dict[str, str]:
    """Return the variables of a rank: its threads, and gloo on the loopback interface, whatever the host is called."""
    variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback is not None and "GLOO_SOCKET_IFNAME" not in os.environ:
        variables["GLOO_SOCKET_IFNAME"] = loopback
    return variables


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that start meanwhile: they are there before anything is imported."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
