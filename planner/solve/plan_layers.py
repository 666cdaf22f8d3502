"""All layers of a workload: the best baselines, what a search makes of them, and which exchange carries them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from planner.coherent import coherent_step
from planner.placement import IntArray
from planner.solve.incumbents import Incumbents, place_baselines
from planner.solve.solution import LayerSolution, Objective, Solution
from planner.solve.solvers import solver_name
from planner.solve.verify import verify_plan
from planner.timing import EXCHANGES, Exchange, Overlap, PlanExchange, TimingProfile
from planner.workload import Workload
from topologies import BadInput

if TYPE_CHECKING:
    from planner.solve.one_layer import Budget
    from planner.solve.search_layers import Found

PLAIN_PART = 0.5  # of a time limit, for the plan that the search under the coherent exchange starts from


def solve(
    workload: Workload,
    profile: TimingProfile,
    slots: IntArray,
    *,
    even: bool = False,
    objective: Objective = "time",
    exchange: PlanExchange | Literal["auto"] = "auto",
    overlap: Overlap = "none",
    time_limit_s: float | None = None,
    seed: int = 0,
    workers: int | None = None,
    budget: Budget | None = None,
    on_layer: Callable[[int], None] = lambda _: None,
) -> Solution:
    """Place every layer at the least predicted cost; never worse, layer by layer, than the best baseline.

    `slots` are those of each rank [R], or of each rank in each layer [L, R]. With `even`, all of them are in use and
    copies serve equal shares, in the plan as in the baselines that it starts from: what engines can hold.
    Without a time limit the answer is the same for the same inputs and seed, whatever the number of workers. With one,
    each layer gets its part of it; at 0 the answer is the best baseline, duplicate replicas merged. Ctrl-C ends the
    search early and returns the best so far (`complete` is then False). `on_layer` is called with the number of
    layers done. `auto` takes the fastest plain exchange; `coherent` starts from its plan, and needs a trace of several
    layers. Raises Infeasible where the slots do not hold every expert, BadInput for what `coherent` cannot be.
    """
    started = time.monotonic()
    if exchange == "coherent":
        _check_coherent(workload, profile, objective, overlap, even=even)
        part_s = None if time_limit_s is None else PLAIN_PART * time_limit_s
        best = solve(
            workload, profile, slots, time_limit_s=part_s, seed=seed, workers=workers, budget=budget, on_layer=on_layer
        )
        from planner.solve.coherent import solve_coherent  # noqa: PLC0415 - few plans need it

        deadline = None if time_limit_s is None else started + time_limit_s
        return solve_coherent(best, workload, profile, slots, seed, deadline, on_layer)
    known = Incumbents(workload, profile, slots, objective, overlap, place_baselines(workload, slots), even=even)
    names = sorted(EXCHANGES if exchange == "auto" else (exchange,), key=known.start_us)
    if time_limit_s == 0:
        chosen, layers, complete, solver = names[0], known.layers(names[0]), True, "no search"
    else:
        from planner.solve.search_layers import LayerSearch  # noqa: PLC0415 - solvers load only where one searches

        search = LayerSearch(known, budget, seed, workers, started, time_limit_s)
        chosen, found, complete = search.run(names, on_layer)
        chosen, layers = _best_layers(known, names[0], chosen, found)
        solver = solver_name()
    placements = [layer.placement for layer in layers]
    verify_plan(placements, slots, workload.model, workload.layers, workload.cluster)
    if objective == "balance":
        chosen = min(names, key=lambda name: known.predict(placements, name).total_us)
    return Solution(
        objective=objective,
        exchange=chosen,
        layers=tuple(layers),
        baselines=known.baselines,
        predictions=(*known.baselines_predicted(chosen), known.predict(placements, chosen)),
        rival=known.rival(names),
        complete=complete,
        seconds=time.monotonic() - started,
        solver=solver,
        even=even,
    )


def _best_layers(
    known: Incumbents, promising: Exchange, chosen: Exchange, found: Found
) -> tuple[Exchange, list[LayerSolution]]:
    """Return what the search found, with the best start where it found nothing; or all starts where they are faster.

    That can be where Ctrl-C left most layers at their starts under an exchange that only a search makes the fastest.
    """
    starts = [] if len(found) == known.workload.num_layers else known.layers(chosen)
    layers = [found.get(row) or starts[row] for row in range(known.workload.num_layers)]
    if known.objective == "time" and sum(layer.objective for layer in layers) > known.start_us(promising):
        return promising, known.layers(promising)
    return chosen, layers


def _check_coherent(
    workload: Workload, profile: TimingProfile, objective: Objective, overlap: Overlap, *, even: bool
) -> None:
    """Refuse what the coherent exchange cannot be planned for, before any search."""
    if even or objective != "time" or overlap != "none":
        raise BadInput("exchange coherent: goes with the objective time, no overlap and slots that need not be even")
    coherent_step(workload, profile, "dedup")  # raises where there is no trace of several layers
