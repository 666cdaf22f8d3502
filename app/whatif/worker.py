"""The background process of one long task: `python -m app.whatif.worker FD` talks to `app.whatif.jobs` over a pipe.

It gets a task, and sends ("progress", done), ("row", one result of a sweep), and at the end ("done", result) or
("failed", one line). SIGINT ends a search early; it then sends the best so far.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

from app.whatif.cases import Case
from app.whatif.sweeps import Point, Row, point_row
from planner import Solution, Workload
from topologies import EpplanError

Send = Callable[[str, Any], None]


class Task(Protocol):
    """Something that takes long."""

    @property
    def total(self) -> int:
        """Return how many steps it has."""

    def run(self, send: Send) -> Any:
        """Do it, telling of every step, and return its result."""


@dataclass(frozen=True)
class Search:
    """The search for a plan.

    Attributes:
        time_limit_s: None for a fixed amount of work, the same plan every time.
        workers: layers searched at once.

    """

    case: Case
    workload: Workload
    time_limit_s: float | None
    workers: int

    @property
    def total(self) -> int:
        """Layers."""
        return self.workload.num_layers

    def run(self, send: Send) -> Solution:
        """Search all layers."""
        return self.case.search(
            self.workload,
            time_limit_s=self.time_limit_s,
            workers=self.workers,
            on_layer=lambda done: send("progress", done),
        )


@dataclass(frozen=True)
class Sweep:
    """A plan for every point of a grid, each searched for `time_limit_s` seconds; 0 takes the best baselines."""

    points: tuple[Point, ...]
    time_limit_s: float

    @property
    def total(self) -> int:
        """Points."""
        return len(self.points)

    def run(self, send: Send) -> list[Row]:
        """Plan point after point; a point that cannot be planned says why."""
        rows, drawn = [], dict[str, Workload]()
        for done, point in enumerate(self.points, start=1):
            row = point_row(point, self.time_limit_s, drawn)
            rows.append(row)
            send("row", row)
            send("progress", done)
        return rows


def main(handle: int) -> None:
    """Do the one task that comes through the pipe."""
    pipe = Connection(handle)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a server started by `nohup` or `&` hands down "ignore"

    def send(what: str, content: Any) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a message goes out whole
        try:
            pipe.send((what, content))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    try:
        task: Task = pipe.recv()
        result = task.run(send)
    except EpplanError as error:
        send("failed", str(error))
    except KeyboardInterrupt:
        send("failed", "cancelled before there was anything to keep")
    else:
        send("done", result)


if __name__ == "__main__":
    main(int(sys.argv[1]))
