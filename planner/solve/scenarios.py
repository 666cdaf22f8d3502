"""One plan for several scenarios: statistics of other hours, other traffic, or windows of one recording.

1. The scenarios' mean is planned as any workload: it gives the exchange and a start that none of them is far from.
2. Each layer is searched again, from that start or a baseline of any scenario, for the least of what its times in all
   scenarios are worth together (see `planner.robust`): shares, swaps between domains, shares, swaps between ranks.

What a layer's scenarios are worth is decided layer by layer; the worst layer times may come from different scenarios.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from planner.placement import FloatArray, IntArray, Placement, check_placement
from planner.predict import Prediction
from planner.robust import Risk, RobustProblem
from planner.routing import Routing
from planner.solve.domains import has_domain_traffic, improve_domains
from planner.solve.incumbents import Incumbents, place_baselines
from planner.solve.one_layer import Budget, search_problem
from planner.solve.plan_layers import solve
from planner.solve.shares import best_shares
from planner.solve.solution import LayerSolution, Objective, Solution
from planner.solve.swaps import descend_by_swaps
from planner.timing import EXCHANGES, Exchange, Overlap, TimingProfile, plain
from planner.workload import TokenSampler, Workload, build_workload
from topologies import BadInput

MEAN_PART = 0.5  # of a time limit, for the plan of the mean


@dataclass(frozen=True, eq=False)
class RobustSolution:
    """A plan for several scenarios.

    Attributes:
        solution: objective and bound of each layer are what its scenarios are worth; its predictions are those of the
            scenario in which the plan takes longest.
        workloads: the scenarios.
        worst: index of that scenario.
        table: predictions of plans in every scenario: baselines placed on the mean, the plan of the mean, this one.

    """

    solution: Solution
    workloads: tuple[Workload, ...]
    worst: int
    table: dict[str, tuple[Prediction, ...]]


def mean_workload(workloads: Sequence[Workload]) -> Workload:
    """Return the workload that sends what the scenarios send on average.

    Raises BadInput where they do not name the same layers or the same sources.
    """
    first = workloads[0]
    for other in workloads[1:]:
        if other.layers != first.layers:
            raise BadInput(
                f"scenarios: {first.routing.name} has {len(first.layers)} layers from {first.layers[0]}, "
                f"{other.routing.name} {len(other.layers)} from {other.layers[0]}; they must be the same"
            )
        if other.routing.counts.shape[1] != first.routing.counts.shape[1]:
            raise BadInput(
                f"scenarios: {first.routing.name} names {first.routing.counts.shape[1]} sources, "
                f"{other.routing.name} {other.routing.counts.shape[1]}; sum them into one"
            )
    counts = [w.routing.counts / w.routing.counts.sum(axis=(1, 2), keepdims=True) for w in workloads]
    total = float(np.mean([w.routing.counts.sum() for w in workloads]))
    routing = Routing(first.layers, np.mean(counts, axis=0) * total, name="mean of scenarios")
    tokens = float(np.mean([w.tokens_per_rank for w in workloads]))
    return build_workload(first.model, first.cluster, routing, tokens, first.seed)


def solve_scenarios(
    workloads: Sequence[Workload],
    profile: TimingProfile,
    slots: IntArray,
    risk: Risk,
    *,
    even: bool = False,
    objective: Objective = "time",
    exchange: Exchange | Literal["auto"] = "auto",
    overlap: Overlap = "none",
    time_limit_s: float | None = None,
    seed: int = 0,
    workers: int | None = None,
    budget: Budget | None = None,
    on_layer: Callable[[int], None] = lambda _: None,
) -> RobustSolution:
    """Place every layer at the least worth of its times in all scenarios.

    Never worse, by that measure and under the exchange chosen for the mean, than any baseline placed on any scenario or
    on their mean. Deterministic as `solve` is. Raises BadInput where the scenarios do not go together.
    """
    started = time.monotonic()
    mean = mean_workload(workloads)
    of_mean = solve(
        mean, profile, slots,
        even=even, objective=objective, exchange=exchange, overlap=overlap, seed=seed, workers=workers,
        time_limit_s=None if time_limit_s is None else MEAN_PART * time_limit_s, budget=budget, on_layer=on_layer,
    )  # fmt: skip
    known = [
        Incumbents(one, profile, slots, objective, overlap, place_baselines(one, slots), even=even) for one in workloads
    ]
    name = plain(of_mean.exchange)
    deadline = None if time_limit_s is None else started + time_limit_s
    found = _searched(of_mean, known, name, risk, budget or Budget(), seed, workers, deadline)
    bound_L: FloatArray = risk.of(np.stack([one.bounds(name, thorough=time_limit_s != 0) for one in known]))
    layers = tuple(
        LayerSolution(placement, worth, bound, 0.0)
        for (placement, worth), bound in zip(found, bound_L.tolist(), strict=True)
    )
    table = _table(known, of_mean, [layer.placement for layer in layers], name)
    worst = int(np.argmax([prediction.total_us for prediction in table["this plan"]]))
    solution = replace(
        of_mean,
        layers=layers,
        baselines=known[worst].baselines,
        predictions=(*known[worst].baselines_predicted(name), table["this plan"][worst]),
        rival=known[worst].rival(EXCHANGES if exchange == "auto" else (exchange,)),
        seconds=time.monotonic() - started,
    )
    return RobustSolution(solution, tuple(workloads), worst, table)


def _searched(
    of_mean: Solution,
    known: Sequence[Incumbents],
    name: Exchange,
    risk: Risk,
    budget: Budget,
    seed: int,
    workers: int | None,
    deadline: float | None,
) -> list[tuple[Placement, float]]:
    """Return the best placement of every layer and its worth, searched in parallel."""
    import joblib  # noqa: PLC0415 - a tenth of a second, and not every plan needs it

    calls = (
        joblib.delayed(_one_layer)(
            RobustProblem(tuple(one.problem(name, row) for one in known), risk),
            [None if one.workload.routing.trace is not None else one.workload.sampler(row) for one in known],
            [
                of_mean.placements[row],
                *_baselines(of_mean, row, known[0]),
                *(p for one in known for p in one.starts(row)),
            ],
            budget,
            seed,
            deadline,
        )
        for row in range(known[0].workload.num_layers)
    )
    found: list[tuple[Placement, float]] = joblib.Parallel(n_jobs=workers or joblib.cpu_count())(calls)
    return found


def _baselines(of_mean: Solution, row: int, known: Incumbents) -> list[Placement]:
    return replace(known, baselines=of_mean.baselines).starts(row)


def _table(
    known: Sequence[Incumbents], of_mean: Solution, placements: Sequence[Placement], exchange: Exchange
) -> dict[str, tuple[Prediction, ...]]:
    """Predict every plan in every scenario."""
    plans = {**of_mean.baselines, "plan of the mean": of_mean.placements, "this plan": placements}
    return {
        name: tuple(replace(one.predict(made, exchange), name=name) for one in known) for name, made in plans.items()
    }


def _one_layer(
    problem: RobustProblem,
    samplers: Sequence[TokenSampler | None],
    starts: Sequence[Placement],
    budget: Budget,
    seed: int,
    deadline: float | None,
) -> tuple[Placement, float]:
    """Search a layer; what is found is judged, as its starts are, over tokens that the search did not see."""
    searched = RobustProblem(
        tuple(search_problem(one, sampler, seed) for one, sampler in zip(problem.scenarios, samplers, strict=True)),
        problem.risk,
    )
    candidates = list(starts)
    if deadline is None or time.monotonic() < deadline:
        placement = min(starts, key=lambda start: searched.evaluate(start).layer_us)
        placement = best_shares(searched, placement, budget.share_rounds)
        candidates.append(placement)
        candidates.append(_descended(searched, placement, budget, deadline))
        if has_domain_traffic(searched):
            placement = improve_domains(searched, placement, budget.domain_swaps, deadline)
            placement = best_shares(searched, placement, budget.share_rounds)
            candidates.append(_descended(searched, placement, budget, deadline))
    worths = [problem.evaluate(candidate).layer_us for candidate in candidates]
    best = candidates[int(np.argmin(worths))]
    check_placement(best, problem.slots_R, where="search over scenarios")
    return best, min(worths)


def _descended(problem: RobustProblem, placement: Placement, budget: Budget, deadline: float | None) -> Placement:
    placement = descend_by_swaps(problem, placement, budget.swaps, deadline)
    return best_shares(problem, placement, budget.share_rounds)
