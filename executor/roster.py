"""Roster: every rank says, twice a second, that it lives and where it stands, so that failures name who is to blame.

A collective that fails says at best that some connection was closed, and one that hangs says nothing: the ranks that
wait are not those that are to blame. So a thread of each rank keeps one line in the job's key-value store, which is not
part of the collectives. The rank whose collective fails first reads all lines, twice, and writes down its verdict; the
others adopt it:

    rank 2 of 4 gives no sign of life ...                    its line stands still: killed, stopped, or cut off
    rank 2 of 4 has been outside any exchange for 61 s: ...  its line moves on, but it does not come
"""

from __future__ import annotations

import atexit
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from executor.failures import RankLost, name_ranks, where

T = TypeVar("T")
BEAT_S = 0.5
WITHOUT_SIGN_S = 4 * BEAT_S  # after which a line that stands still is that of a rank that is gone
STORE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Line:
    """What a rank says of itself.

    Attributes:
        beat: counts the lines.
        calls: collectives that it has begun.
        call: the one in which it stands; empty outside.
        for_s: how long it has stood there.
        place: in its program, where it has stood still for a while.
        verdict: why it gave up; empty while it runs.

    """

    beat: int
    calls: int
    call: str
    for_s: float
    place: str
    verdict: str


class Roster:
    """The lines of all ranks of a job.

    Attributes:
        store: a `torch.distributed.Store` of these ranks.
        rank, size: of this rank among all.

    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self._beat = self._calls = 0
        self._call, self._since, self._verdict = "", time.monotonic(), ""
        self._main = threading.main_thread().ident
        self._lock, self._ended = threading.Lock(), threading.Event()

    def start(self, world: Any) -> None:
        """Keep this rank's line until the process group `world` is no longer the job's, or the process ends."""
        self._write()
        keeper = threading.Thread(target=self._keep, args=(world,), name="epplan-roster", daemon=True)
        keeper.start()
        atexit.register(self._end, keeper)

    def _end(self, keeper: threading.Thread) -> None:
        """Let the thread come back from the store: Python's end inside a call of C++ would abort the process."""
        self._ended.set()
        keeper.join(WITHOUT_SIGN_S)

    @contextmanager
    def inside(self, call: str) -> Iterator[None]:
        """Say that this rank stands in a collective; where that fails, raise RankLost that names who is to blame."""
        self._calls, self._call, self._since = self._calls + 1, call, time.monotonic()
        try:
            yield
        except RuntimeError as error:
            verdict = self._judge(call)
            text = " ".join(str(error).split())[:200]
            self.give_up(verdict or f"rank {self.rank} of {self.size} raised {type(error).__name__} in {call}: {text}")
            if not verdict:
                raise
            raise RankLost(f"{call} on rank {self.rank}: {verdict}") from error
        finally:
            self._call, self._since = "", time.monotonic()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Say, inside a collective, that this rank is at its own part of it: should it hang, it is the one to blame."""
        call, self._call, self._since = self._call, "", time.monotonic()
        try:
            yield
        finally:
            self._call, self._since = call, time.monotonic()

    def give_up(self, verdict: str) -> None:
        """Leave word for the others why this rank ends."""
        self._verdict = self._verdict or verdict
        _in_time(self._write, None)  # the store may have gone first

    def _keep(self, world: Any) -> None:
        with suppress(RuntimeError):
            while dist.is_initialized() and dist.group.WORLD is world and not self._ended.wait(BEAT_S):
                self._write()

    def _write(self) -> None:
        with self._lock:
            self._beat += 1
            for_s = time.monotonic() - self._since
            place = self._place() if for_s > WITHOUT_SIGN_S and not self._call else ""
            line = Line(self._beat, self._calls, self._call, for_s, place, self._verdict)
            self.store.set(str(self.rank), json.dumps(asdict(line)))

    def _place(self) -> str:
        """Return where the program stands, outside the libraries."""
        frame = sys._current_frames().get(self._main or 0)
        frames = [f'  File "{one.filename}", line {one.lineno} in {one.name}' for one in traceback.extract_stack(frame)]
        return where(reversed(frames))

    def _read(self) -> list[Line | None]:
        keys = [str(rank) for rank in range(self.size)]
        there = [self.store.check([key]) for key in keys]
        texts = iter(self.store.multi_get([key for key, found in zip(keys, there, strict=True) if found]))
        return [Line(**json.loads(next(texts))) if found else None for found in there]

    def _judge(self, call: str) -> str:
        """Say which ranks are to blame for a failed collective; empty where none can be told."""
        silent = "the job's store gives no answer: this rank is cut off from it, or the process that held it has ended"
        return _in_time(lambda: self._read_and_judge(call), silent)

    def _read_and_judge(self, call: str) -> str:
        before = self._read()
        until = time.monotonic() + WITHOUT_SIGN_S
        while time.monotonic() < until:
            told = next((line.verdict for line in self._read() if line is not None and line.verdict), "")
            if told:
                return told
            time.sleep(BEAT_S / 2)
        after = self._read()
        gone = [rank for rank, (a, b) in enumerate(zip(before, after, strict=True)) if b is None or a == b]
        if gone:
            last = {line.call or "its own work" for line in (after[rank] for rank in gone) if line is not None}
            seen = f"; last seen in {', '.join(sorted(last))}" if last else ""
            return f"{name_ranks(gone)} of {self.size} gives no sign of life (ended, killed, stopped, or cut off){seen}"
        return _stragglers(call, [line for line in after if line is not None])


def _in_time(work: Callable[[], T], otherwise: T) -> T:
    """Return what work on the store returns; `otherwise` where the store is gone, or silent for STORE_TIMEOUT_S.

    A connection that was cut is silent for a quarter of an hour, whatever time limit torch's stores are given.
    """
    found = [otherwise]

    def run() -> None:
        with suppress(RuntimeError):
            found[0] = work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(STORE_TIMEOUT_S)
    return found[0]


def _stragglers(call: str, lines: Sequence[Line]) -> str:
    """Name the ranks that live and do not come: those outside any exchange, else those in another one."""
    outside = [rank for rank, line in enumerate(lines) if not line.call]
    if outside:
        first = lines[outside[0]]
        place = f": {first.place}" if first.place else ""
        which = name_ranks(outside)
        return f"{which} of {len(lines)} has been outside any exchange for {first.for_s:.0f} s{place}"
    other = [rank for rank, line in enumerate(lines) if line.call != call]
    if other:
        return f"{name_ranks(other)} of {len(lines)} stands in {lines[other[0]].call}"
    return ""


_latest: list[tuple[Any, Roster]] = []
"""The default process group that had a roster last, and its roster."""


def roster_of_job() -> Roster | None:
    """Return the roster of the ranks of the default process group; it is started when it is first asked for."""
    if not dist.is_initialized():
        return None
    untyped: Any = dist  # hides its stores from type checkers
    world = untyped.group.WORLD
    if not _latest or _latest[0][0] is not world:
        store = untyped.distributed_c10d._get_default_store().clone()  # torch has no public way to it
        roster = Roster(untyped.PrefixStore("epplan-roster", store), dist.get_rank(), dist.get_world_size())
        roster.start(world)
        _latest[:] = [(world, roster)]
    return _latest[0][1]
