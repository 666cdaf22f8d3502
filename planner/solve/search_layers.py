"""The search of many layers in parallel, and of a few layers under every exchange to find the fastest.

With a time limit every layer gets its part of the time, but no less than a search takes to find anything: where that
is not enough for all, the layers with most to gain come first. What is left over is spread over all, to search on.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

import joblib
import numpy as np

from planner.layer import LayerProblem
from planner.placement import Placement
from planner.solve.incumbents import Incumbents
from planner.solve.one_layer import CLOSE_ENOUGH, UNTIL_DEADLINE, Budget, solve_layer
from planner.solve.solution import LayerSolution
from planner.timing import Exchange
from planner.workload import TokenSampler

PILOT_LAYERS = 4  # searched under every exchange to find the fastest
PILOT_TIME = 0.3  # part of a time limit that this may take
LEAST_S = 0.25  # of a time limit for a layer: in less a search finds next to nothing (256 experts, 32 ranks)
POOL_START_S = 1.5  # until worker processes answer (measured: 0.8 to 1.7 s on two busy cores)

FURTHER = replace(UNTIL_DEADLINE, proof=False)  # of a layer that has its bound

Found = dict[int, LayerSolution]  # by row of the workload


@dataclass(frozen=True, eq=False)
class LayerSearch:
    """How hard to search which layers.

    Attributes:
        budget: None for the usual amount of work, and with a time limit for as much after it as there is time for.
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
        Layers that a time limit leaves no time for are not among what was found.
        """
        chosen, complete = names[0], True
        found: Found = {}
        if len(names) > 1 and self.incumbents.objective == "time":
            chosen, found, complete = self._fastest(names)
        rows = self._by_promise(chosen)
        end = self._end(1.0)
        if complete:
            complete = self._search(chosen, [row for row in rows if row not in found], found, end, on_layer)
        if complete and end is not None:
            open_rows = [row for row in rows if row in found and found[row].gap > CLOSE_ENOUGH]
            complete = self._search(chosen, open_rows, found, end, lambda _: None)
            on_layer(len(rows))
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
            start_L = self.incumbents.starts_L(name)
            total = sum(found[row].objective if row in found else float(start_L[row]) for row in rows)
            if total < best[0]:
                best = (total, name, found)
        return best[1], best[2], True

    def _end(self, part: float) -> float | None:
        return None if self.time_limit_s is None else self.started + part * self.time_limit_s

    def _by_promise(self, exchange: Exchange) -> list[int]:
        """Return all layers, those first whose best start is farthest from its bound."""
        promise_L = self.incumbents.starts_L(exchange) - self.incumbents.bounds(exchange)
        return [int(row) for row in np.argsort(-promise_L, kind="stable")]

    def _search(
        self, exchange: Exchange, rows: Sequence[int], found: Found, end: float | None, on_layer: Callable[[int], None]
    ) -> bool:
        """Search layers, on from what was found, until `time.monotonic()` is `end`; False where it was cut short."""
        known, workload, workers = self.incumbents, self.incumbents.workload, self._workers(len(rows))
        calls = (
            joblib.delayed(_one_layer)(
                row,
                known.problem(exchange, row),
                [found[row].placement] if row in found else known.starts(row),
                None if workload.routing.trace is not None else workload.sampler(row),
                self.budget or (FURTHER if row in found else Budget()),
                self.seed + (row in found),  # a search that goes on draws other tokens
                end,
                (len(rows) - turn) / workers,
            )
            for turn, row in enumerate(rows)
            if end is None or time.monotonic() < end
        )
        jobs = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1)(calls)
        try:
            for row, solution in jobs:
                found[row] = _better(found.get(row), solution)
                on_layer(len(found))
        except (KeyboardInterrupt, BrokenProcessPool, MemoryError):  # Ctrl-C, a worker that was killed, no memory
            return False
        return True

    def _workers(self, layers: int) -> int:
        """Return how many processes to search in; a single one, this one, where more would be too late to help."""
        workers, limit_s = max(min(self.workers or joblib.cpu_count(), layers), 1), self.time_limit_s
        return workers if limit_s is None or workers * (limit_s - POOL_START_S) > limit_s else 1


def _better(old: LayerSolution | None, new: LayerSolution) -> LayerSolution:
    """Return the better of two solutions of a layer, under the higher of their bounds."""
    if old is None:
        return new
    best = new if new.objective < old.objective else old
    return replace(best, bound=max(old.bound, new.bound), seconds=old.seconds + new.seconds)


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
    deadline = None if end is None else min(end, now + max((end - now) / max(rounds_left, 1.0), LEAST_S))
    return row, solve_layer(problem, starts, budget, sampler=sampler, seed=seed, deadline=deadline)
