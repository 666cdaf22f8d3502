"""A rank of a pool: a process that answers one job after the other. Runs in the children of `executor.launch`."""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from executor.failures import Failure


class Place(Protocol):
    """A network namespace that a process can enter."""

    @property
    def address(self) -> str:
        """At which the others reach it."""

    def enter(self) -> None:
        """Move this process there."""

    def inside(self, work: Callable[[], Any]) -> Any:
        """Run a function there and return its result."""


@dataclass(frozen=True)
class Seat:
    """What a new process must know to be a rank.

    Attributes:
        rank, world_size, backend: of its process group.
        host, port: of the store, which the parent holds.
        place: the network namespace to live in (`executor.lab.Place`), or None.
        stack_file: into which faulthandler writes where the rank stands, at SIGUSR1.

    """

    rank: int
    world_size: int
    backend: str
    host: str
    port: int
    stack_file: Path
    place: Place | None


def serve(pipe: Connection, seat: Seat) -> None:
    """Answer one job after the other until the parent hangs up or a job fails.

    Answers are pickles of (result,) or of a `Failure`; the first answers nothing but that the rank is there.
    """
    if seat.place is not None:
        seat.place.enter()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with seat.stack_file.open("w", encoding="utf-8") as stacks:
        faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=False)
        job: Callable[[], Any] = partial(_take_seat, seat)
        while _answered(pipe, seat.rank, job):
            try:
                job = partial(_run, seat, pipe.recv_bytes())
            except EOFError:
                return
        threading.Event().wait()  # leaving would close our sockets, and others fail of it before the cause is told


def distributed() -> Any:
    """Import torch.distributed when it is needed: it takes seconds, and hides its stores from type checkers."""
    from torch import distributed as dist  # noqa: PLC0415

    return dist


def _answered(pipe: Connection, rank: int, job: Callable[[], Any]) -> bool:
    """Do a job and send its result or its failure; return whether it went well."""
    try:
        answer = pickle.dumps((job(),))
    except BaseException as error:  # whatever it is, the parent must hear of it
        pipe.send_bytes(pickle.dumps(Failure.of_exception(rank, error, time.monotonic())))
        return False
    pipe.send_bytes(answer)
    return True


def _end_with_parent() -> None:
    """End this process when its parent is gone, wherever it hangs."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@cache
def _store(host: str, port: int) -> Any:
    return distributed().TCPStore(host, port, is_master=False)


def _take_seat(seat: Seat) -> None:
    import torch  # noqa: PLC0415 - in the child, where the environment is set

    if seat.backend == "nccl":
        torch.cuda.set_device(seat.rank % torch.cuda.device_count())
    _store(seat.host, seat.port)


def _run(seat: Seat, job: bytes) -> Any:
    """Join the process group of this run, call the function, and leave."""
    target, args, name, timeout_s = pickle.loads(job)  # written by our parent
    dist = distributed()
    dist.init_process_group(
        seat.backend,
        store=dist.PrefixStore(name, _store(seat.host, seat.port)),
        rank=seat.rank,
        world_size=seat.world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    result = target(seat.rank, seat.world_size, *args)
    dist.destroy_process_group()
    return result
