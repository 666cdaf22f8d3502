"""The multiple-choice knapsack: one option of each layer, the least total cost within a total weight.

Solved exactly, by dynamic programming over the weight spent so far.

Shapes: L layers, O options of a layer, W weights from 0 to the limit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.placement import FloatArray, IntArray


def cheapest_within(costs: Sequence[FloatArray], weights: Sequence[IntArray], limit: int) -> list[int]:
    """Return the option of each layer at the least total cost with a total weight of at most `limit`.

    Args:
        costs: for each layer, the cost of its options [O]; of options that cost the same the first is taken.
        weights: for each layer, their weights [O], whole numbers from 0 on.
        limit: at least the sum of the layers' lightest options.

    """
    assert sum(int(weight_O.min()) for weight_O in weights) <= limit, "no choice is light enough"
    room = min(limit, sum(int(weight_O.max()) for weight_O in weights))
    best_W = np.zeros(room + 1)  # least cost of the layers so far with a weight of at most w
    taken = []
    for cost_O, weight_O in zip(costs, weights, strict=True):
        cost_OW = np.full((len(cost_O), room + 1), np.inf)
        for option, (cost, weight) in enumerate(zip(cost_O.tolist(), weight_O.tolist(), strict=True)):
            if weight <= room:
                cost_OW[option, weight:] = best_W[: room + 1 - weight] + cost
        taken.append(cost_OW.argmin(axis=0))
        best_W = cost_OW.min(axis=0)
    chosen, left = [], room
    for weight_O, option_W in zip(reversed(weights), reversed(taken), strict=True):
        option = int(option_W[left])
        chosen.append(option)
        left -= int(weight_O[option])
    return chosen[::-1]
