"""All layers of a workload: choose the exchange, solve every layer in parallel, keep the best so far on Ctrl-C."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import joblib
import numpy as np

from planner.baselines import BASELINES, baseline
from planner.cost import step_cost
from planner.layer import LayerProblem, layer_problem
from planner.placement import IntArray, Placement
from planner.predict import Prediction, predict
from planner.solve.bounds import lower_bound
from planner.solve.milp import solver_name
from planner.solve.one_layer import UNTIL_DEADLINE, Budget, LayerSolution, solve_layer
from planner.timing import EXCHANGES, Exchange, Overlap, TimingProfile
from planner.workload import TokenSampler, Workload
from topologies import Infeasible

Objective = Literal["time", "balance"]
PILOT_LAYERS = 4  # searched under every exchange to find the fastest
PILOT_TIME = 0.3  # part of a time limit that this may take
OBJECTIVES: tuple[Objective, ...] = ("time", "balance")


@dataclass(frozen=True, eq=False)
class Solution:
    """Placements of all layers and how good they are proven to be.

    Attributes:
        exchange: the exchange algorithm that the placements are made for.
        layers: one solution a layer; objective and bound in microseconds (`time`) or as imbalance (`balance`).
        baselines: what people use today on the same workload and slots, for comparison.
        complete: False where the search was interrupted and some layers hold their best start.
        seconds: wall-clock time of the whole search.
        solver: what searched, with versions.

    """

    objective: Objective
    exchange: Exchange
    layers: tuple[LayerSolution, ...]
    baselines: Mapping[str, list[Placement]]
    complete: bool
    seconds: float
    solver: str

    @property
    def placements(self) -> list[Placement]:
        """Return the placement of every layer."""
        return [layer.placement for layer in self.layers]


def solve(
    workload: Workload,
    profile: TimingProfile,
    slots_R: IntArray,
    *,
    objective: Objective = "time",
    exchange: Exchange | Literal["auto"] = "auto",
    overlap: Overlap = "none",
    time_limit_s: float | None = None,
    seed: int = 0,
    workers: int | None = None,
    budget: Budget | None = None,
    on_layer: Callable[[int], None] = lambda _: None,
) -> Solution:
    """Place every layer at the least predicted cost; never worse, layer by layer, than the best baseline.

    Without a time limit the answer is the same for the same inputs and seed, whatever the number of workers. With one,
    each layer gets its part of it; at 0 the answer is the best baseline, duplicate replicas merged. Ctrl-C ends the
    search early and returns the best so far (`complete` is then False). `on_layer` is called with the number of
    layers done. Raises Infeasible where no baseline fits the slots.
    """
    started = time.monotonic()
    baselines = _baselines(workload, slots_R)
    starts = {name: [placement.without_duplicates() for placement in rows] for name, rows in baselines.items()}
    search = _Search(
        workload, profile, slots_R, starts, objective, overlap, budget or _budget(time_limit_s), seed, workers
    )
    end = None if time_limit_s is None else started + time_limit_s
    names = EXCHANGES if exchange == "auto" else (exchange,)
    first = min(names, key=search.start_us)
    chosen, complete = first, True
    known: dict[int, LayerSolution] = {}
    if time_limit_s != 0 and objective == "time" and len(names) > 1:
        ordered = sorted(names, key=search.start_us)
        chosen, known, complete = _fastest_exchange(search, ordered, started, time_limit_s)
    if time_limit_s != 0 and complete:
        complete = search.run(chosen, range(workload.num_layers), known, end, on_layer)
    layers = [known.get(row) or search.unsearched(chosen, row) for row in range(workload.num_layers)]
    if objective == "time" and sum(layer.objective for layer in layers) > search.start_us(first):
        chosen, layers = first, [search.unsearched(first, row) for row in range(workload.num_layers)]
    if objective == "balance":
        placements = [layer.placement for layer in layers]
        chosen = min(names, key=lambda name: predict("plan", placements, workload, profile, name).total_us)
    seconds = time.monotonic() - started
    return Solution(objective, chosen, tuple(layers), baselines, complete, seconds, solver_name())


def _budget(time_limit_s: float | None) -> Budget:
    return Budget() if time_limit_s is None else UNTIL_DEADLINE


def _fastest_exchange(
    search: _Search, names: Sequence[Exchange], started: float, time_limit_s: float | None
) -> tuple[Exchange, dict[int, LayerSolution], bool]:
    """Return the exchange with the least time after a search of a few layers, and those layers' solutions.

    An exchange whose lower bound is above what another reached on these layers is not searched at all. The last value
    is False where Ctrl-C cut the search short.
    """
    count = min(PILOT_LAYERS, search.workload.num_layers)
    rows = sorted({int(row) for row in np.linspace(0, search.workload.num_layers - 1, count).round()})
    best: tuple[float, Exchange, dict[int, LayerSolution]] = (float("inf"), names[0], {})
    for turn, name in enumerate(names, start=1):
        if sum(lower_bound(search.problem(name, row)) for row in rows) >= best[0]:
            continue
        found: dict[int, LayerSolution] = {}
        end = None if time_limit_s is None else started + PILOT_TIME * time_limit_s * turn / len(names)
        if not search.run(name, rows, found, end, lambda _: None):
            return best[1], best[2], False
        total = sum(layer.objective for layer in found.values())
        if total < best[0]:
            best = (total, name, found)
    return best[1], best[2], True


@dataclass(frozen=True, eq=False)
class _Search:
    """What is searched, whichever exchange and layers."""

    workload: Workload
    profile: TimingProfile
    slots_R: IntArray
    starts: Mapping[str, list[Placement]]
    objective: Objective
    overlap: Overlap
    budget: Budget
    seed: int
    workers: int | None

    @cached_property
    def _predicted(self) -> dict[Exchange, list[Prediction]]:
        return {}

    def predicted(self, exchange: Exchange) -> list[Prediction]:
        """Return the prediction of every start under an exchange."""
        if exchange not in self._predicted:
            self._predicted[exchange] = [
                predict(name, rows, self.workload, self.profile, exchange, overlap=self.overlap)
                for name, rows in self.starts.items()
            ]
        return self._predicted[exchange]

    def start_us(self, exchange: Exchange) -> float:
        """Return the total of each layer's best start: no baseline under this exchange is better."""
        return sum(min(us) for us in _by_layer(self.predicted(exchange), "layer_us"))

    def problem(self, exchange: Exchange, row: int) -> LayerProblem:
        """Return a layer's problem under an exchange."""
        cost = step_cost(self.workload, self.profile, exchange, overlap=self.overlap)
        problem = layer_problem(self.workload, cost, self.slots_R, row)
        return problem.for_balance() if self.objective == "balance" else problem

    def unsearched(self, exchange: Exchange, row: int) -> LayerSolution:
        """Return the best start of a layer."""
        started = time.monotonic()
        field = "layer_us" if self.objective == "time" else "imbalance"
        values = [getattr(prediction.layers[row], field) for prediction in self.predicted(exchange)]
        best = int(np.argmin(values))
        bound = lower_bound(self.problem(exchange, row))
        return LayerSolution(list(self.starts.values())[best][row], values[best], bound, time.monotonic() - started)

    def run(
        self,
        exchange: Exchange,
        rows: Sequence[int],
        known: dict[int, LayerSolution],
        end: float | None,
        on_layer: Callable[[int], None],
    ) -> bool:
        """Search the layers that are not known yet, in parallel, and add them; return False where it was cut short.

        `end` is the `time.monotonic()` moment when all should be done.
        """
        rows = [row for row in rows if row not in known]
        if not rows:
            return True
        workers = min(self.workers or joblib.cpu_count(), len(rows))
        traced = self.workload.routing.trace is not None
        calls = (
            joblib.delayed(_one_layer)(
                row,
                self.problem(exchange, row),
                [placements[row] for placements in self.starts.values()],
                None if traced else self.workload.sampler(row),
                self.budget,
                self.seed,
                end,
                (len(rows) - turn) / workers,
            )
            for turn, row in enumerate(rows)
        )
        jobs = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1)(calls)
        try:
            for row, solution in jobs:
                known[row] = solution
                on_layer(len(known))
        except (KeyboardInterrupt, BrokenProcessPool):
            return False
        return True


def _baselines(workload: Workload, slots_R: IntArray) -> dict[str, list[Placement]]:
    """Return the placements of every baseline that fits the slots."""
    placements, reasons = {}, []
    for name in BASELINES:
        try:
            placements[name] = baseline(name, workload, slots_R)
        except Infeasible as error:
            reasons.append(str(error))
    if not placements:
        raise Infeasible(reasons[0])
    return placements


def _by_layer(predictions: Sequence[Prediction], field: str) -> list[tuple[float, ...]]:
    """Return a predicted field of every start, for each layer."""
    return list(zip(*([getattr(layer, field) for layer in one.layers] for one in predictions), strict=True))


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
