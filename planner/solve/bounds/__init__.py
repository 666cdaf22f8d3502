"""Lower bounds on the cost of every placement of a layer: what the gap in plan.json is measured against.

`lower_bounds` prices many layers at once in milliseconds (see `priced`). Where rows are counted by distinct target,
`lower_bound(problem, thorough=True)` also looks at which experts tokens visit together, a tenth of a second a layer:
what part of a row a pair brings at least (`companions` for each expert by itself, `cohesion` for all of them together).
"""

from __future__ import annotations

import numpy as np

from planner.layer import LayerProblem
from planner.placement import FloatArray, IntArray
from planner.solve.bounds.cohesion import cohesive_parts
from planner.solve.bounds.companions import co_visits, companion_parts
from planner.solve.bounds.layers import BoundedLayers, target_slots
from planner.solve.bounds.priced import pigeonhole_loads, priced_bounds

__all__ = ["BoundedLayers", "imbalance_bounds", "lower_bound", "lower_bounds"]


def lower_bound(problem: LayerProblem, *, thorough: bool = False) -> float:
    """Return a proven lower bound on `layer_us` over every placement with these slots and any shares."""
    quick = float(lower_bounds(BoundedLayers.of_problem(problem))[0])
    if not thorough or problem.tokens is None or problem.tokens.class_P is not None:  # by class: too few tokens each
        return quick
    together_EE = co_visits(problem.tokens)
    slots = target_slots(problem.cost, problem.domain_R, problem.slots_R)
    parts = [companion_parts(together_EE, slots), cohesive_parts(together_EE, slots)]
    return max(quick, *(float(lower_bounds(BoundedLayers.of_problem(problem, part_E))[0]) for part_E in parts))


def lower_bounds(layers: BoundedLayers) -> FloatArray:
    """Return the lower bound of each layer [L]."""
    cost = layers.cost
    fixed_us = cost.dispatch.alpha_us + cost.launch_us + cost.combine.alpha_us
    return cost.layer_bound_us(fixed_us + priced_bounds(layers))


def imbalance_bounds(load_LE: FloatArray, slots_R: IntArray) -> FloatArray:
    """Return the least imbalance (max over ranks / mean of token-expert pairs) of each layer [L] in these slots."""
    mean_L = load_LE.sum(axis=1) / len(slots_R)
    bound_L: FloatArray = np.maximum(pigeonhole_loads(load_LE, slots_R) / np.maximum(mean_L, np.finfo(float).tiny), 1.0)
    return bound_L
