"""Which rule picks copies in a plan whose slots and shares are found: the shares themselves, or a cover.

A cover saves rows where several experts of a token have copies on one rank or in one domain, and pays with the balance
that the shares were made for. Which of them wins is predicted, not guessed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from planner.cost import Phase, step_cost
from planner.layer import layer_problem
from planner.predict import predict
from planner.solve.bounds import lower_bound
from planner.solve.solution import LayerSolution, Solution
from planner.timing import TimingProfile, plain
from planner.workload import Workload


def choose_copies(
    solution: Solution, workload: Workload, profile: TimingProfile, choice: Literal["cover", "auto"]
) -> Solution:
    """Return the plan under the replica choice `cover`; with `auto`, as it was unless that is predicted faster."""
    old = solution.predictions[-1]
    covering = [replace(placement, replica_choice="cover") for placement in solution.placements]
    found = predict(old.name, covering, workload, profile, plain(solution.exchange), overlap=old.overlap)
    if choice == "auto" and found.total_us >= old.total_us:
        return solution
    in_us = solution.objective == "time"
    holds = solution.exchange == "pairwise" or not in_us  # rows by pairs and loads: a cover only deals them otherwise
    layers = tuple(
        LayerSolution(
            placement,
            layer.layer_us if in_us else layer.imbalance,
            before.bound if holds else _compute_bound(solution, workload, profile, row),
            before.seconds,
        )
        for row, (placement, layer, before) in enumerate(zip(covering, found.layers, solution.layers, strict=True))
    )
    return replace(solution, layers=layers, predictions=(*solution.predictions[:-1], found))


def _compute_bound(solution: Solution, workload: Workload, profile: TimingProfile, row: int) -> float:
    """Return a bound that holds for any choice of copies: exchanges take their start-up, experts what they must.

    The bounds on rows of `planner.solve.bounds` take tokens to pick each copy on its own; a cover does not.
    """
    cost = step_cost(workload, profile, plain(solution.exchange), overlap=solution.predictions[-1].overlap)
    dispatch, combine = (Phase(phase.alpha_us, (), ()) for phase in (cost.dispatch, cost.combine))
    slots_R = np.full(workload.num_ranks, workload.num_experts)
    bare = layer_problem(workload, replace(cost, dispatch=dispatch, combine=combine), slots_R, row)
    return lower_bound(bare)
