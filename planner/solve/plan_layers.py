"""All layers of a workload: choose the exchange, solve every layer in parallel, keep the best so far on Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Literal

import joblib

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
    names = EXCHANGES if exchange == "auto" else (exchange,)
    predicted = {
        name: [predict(start, rows, workload, profile, name, overlap=overlap) for start, rows in starts.items()]
        for name in names
    }
    # the search starts from these, so the exchange with the best starts is no worse than any baseline under its own
    chosen = min(predicted, key=lambda name: sum(min(us) for us in _by_layer(predicted[name], "layer_us")))
    cost = step_cost(workload, profile, chosen, overlap=overlap)
    problems = [layer_problem(workload, cost, slots_R, row) for row in range(workload.num_layers)]
    if objective == "balance":
        problems = [problem.for_balance() for problem in problems]
    starts_of_layer = [list(row) for row in zip(*starts.values(), strict=True)]

    solutions: list[LayerSolution | None] = [None] * len(problems)
    complete = True
    if time_limit_s is None or time_limit_s > 0:
        budget = budget or (Budget() if time_limit_s is None else UNTIL_DEADLINE)
        end = None if time_limit_s is None else started + time_limit_s
        samplers = [workload.sampler(row) if workload.routing.trace is None else None for row in range(len(problems))]
        jobs = _layer_jobs(problems, starts_of_layer, samplers, budget, seed, end, workers or joblib.cpu_count())
        complete = _collect(jobs, solutions, on_layer)
    values = _by_layer(predicted[chosen], "layer_us" if objective == "time" else "imbalance")
    finished = [
        done or _unsearched(problems[row], starts_of_layer[row], values[row]) for row, done in enumerate(solutions)
    ]
    return Solution(objective, chosen, tuple(finished), baselines, complete, time.monotonic() - started, solver_name())


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


def _layer_jobs(
    problems: list[LayerProblem],
    starts: list[list[Placement]],
    samplers: list[TokenSampler | None],
    budget: Budget,
    seed: int,
    end: float | None,
    workers: int,
) -> Iterator[tuple[int, LayerSolution]]:
    """Yield (row, solution) as layers are done; `end` is the `time.monotonic()` moment when all should be."""
    workers = min(workers, len(problems))
    calls = (
        joblib.delayed(_one_layer)(
            row, problem, starts[row], samplers[row], budget, seed, end, (len(problems) - row) / workers
        )
        for row, problem in enumerate(problems)
    )
    jobs: Iterator[tuple[int, LayerSolution]] = joblib.Parallel(
        n_jobs=workers, return_as="generator_unordered", batch_size=1
    )(calls)
    return jobs


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
    now = time.monotonic()
    deadline = None if end is None else now + max(end - now, 0.0) / max(rounds_left, 1.0)
    return row, solve_layer(problem, starts, budget, sampler=sampler, seed=seed, deadline=deadline)


def _collect(
    jobs: Iterator[tuple[int, LayerSolution]], solutions: list[LayerSolution | None], on_layer: Callable[[int], None]
) -> bool:
    """Fill in solutions as they come; return False where Ctrl-C or the death of a worker cut the search short."""
    try:
        for done, (row, solution) in enumerate(jobs, start=1):
            solutions[row] = solution
            on_layer(done)
    except (KeyboardInterrupt, BrokenProcessPool):
        return False
    return True


def _unsearched(problem: LayerProblem, starts: list[Placement], values: tuple[float, ...]) -> LayerSolution:
    """Return the best start of a layer that was not searched; `values` are their predicted objectives."""
    started = time.monotonic()
    best = min(range(len(starts)), key=values.__getitem__)
    return LayerSolution(starts[best], values[best], lower_bound(problem), time.monotonic() - started)
