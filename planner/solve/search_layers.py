"""The search of many layers in parallel, and of a few layers under every exchange to find the fastest."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import joblib
import numpy as np

from planner.layer import LayerProblem
from planner.placement import Placement
from planner.solve.incumbents import Incumbents
from planner.solve.one_layer import UNTIL_DEADLINE, Budget, solve_layer
from planner.solve.solution import LayerSolution
from planner.timing import Exchange
from planner.workload import TokenSampler

PILOT_LAYERS = 4  # searched under every exchange to find the fastest
PILOT_TIME = 0.3  # part of a time limit that this may take

Found = dict[int, LayerSolution]  # by row of the workload


@dataclass(frozen=True, eq=False)
class LayerSearch:
    """How hard to search which layers.

    Attributes:
        budget: None for the default, which depends on whether there is a time limit.
        workers: layers searched at once; None for one a core.
        started, time_limit_s: `time.monotonic()` of the start, and the seconds from then on.

    """

    incumbents: Incumbents
    budget: Budget | None
    seed: int
    workers: int | None
    started: float
    time_limit_s: float | None

    def run(self, names: Sequence[Exchange], on_layer: Callable[[int], None]) -> tuple[Exchange, Found, bool]:
        """Search all layers under the fastest of some exchanges; name the most promising one first.

        Returns the exchange, what was found, and whether the search came to its end: not where Ctrl-C cut it short.
        """
        chosen, complete = names[0], True
        found: Found = {}
        if len(names) > 1 and self.incumbents.objective == "time":
            chosen, found, complete = self._fastest(names)
        if complete:
            everything = range(self.incumbents.workload.num_layers)
            complete = self._search(chosen, everything, found, self._end(1.0), on_layer)
        return chosen, found, complete

    def _fastest(self, names: Sequence[Exchange]) -> tuple[Exchange, Found, bool]:
        """Return the exchange with the least time after a search of a few layers, and those layers' solutions.

        An exchange whose lower bound is above what another reached on these layers is not searched at all.
        """
        last = self.incumbents.workload.num_layers - 1
        rows = sorted({int(row) for row in np.linspace(0, last, min(PILOT_LAYERS, last + 1)).round()})
        best: tuple[float, Exchange, Found] = (float("inf"), names[0], {})
        for turn, name in enumerate(names, start=1):
            if self.incumbents.bounds(name)[rows].sum() >= best[0]:
                continue
            found: Found = {}
            if not self._search(name, rows, found, self._end(PILOT_TIME * turn / len(names)), lambda _: None):
                return best[1], best[2], False
            total = sum(layer.objective for layer in found.values())
            if total < best[0]:
                best = (total, name, found)
        return best[1], best[2], True

    def _end(self, part: float) -> float | None:
        return None if self.time_limit_s is None else self.started + part * self.time_limit_s

    def _search(
        self, exchange: Exchange, rows: Sequence[int], found: Found, end: float | None, on_layer: Callable[[int], None]
    ) -> bool:
        """Search the layers that are not found yet, in parallel, and add them; return False where it was cut short.

        `end` is the `time.monotonic()` moment when all should be done.
        """
        rows = [row for row in rows if row not in found]
        if not rows:
            return True
        known, workload = self.incumbents, self.incumbents.workload
        workers = min(self.workers or joblib.cpu_count(), len(rows))
        budget = self.budget or (Budget() if self.time_limit_s is None else UNTIL_DEADLINE)
        calls = (
            joblib.delayed(_one_layer)(
                row,
                known.problem(exchange, row),
                known.starts(row),
                None if workload.routing.trace is not None else workload.sampler(row),
                budget,
                self.seed,
                end,
                (len(rows) - turn) / workers,
            )
            for turn, row in enumerate(rows)
        )
        jobs = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1)(calls)
        try:
            for row, solution in jobs:
                found[row] = solution
                on_layer(len(found))
        except (KeyboardInterrupt, BrokenProcessPool, MemoryError):  # Ctrl-C, a worker that was killed, no memory
            return False
        return True


def _one_layer(
    row: int,
    problem: LayerProblem,
    starts: list[Placement],
    sampler: TokenSampler | None,
    budget: Budget,
    seed: int,
    end: float | None,
    rounds_left: float,
) -> tuple[int, LayerSolution]:
    """Solve one layer within its part of the time left: on this worker `rounds_left` layers follow, this included."""
    if multiprocessing.current_process().name != "MainProcess":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which keeps what is done
    now = time.monotonic()
    deadline = None if end is None else now + max(end - now, 0.0) / max(rounds_left, 1.0)
    return row, solve_layer(problem, starts, budget, sampler=sampler, seed=seed, deadline=deadline)
