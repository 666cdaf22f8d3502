"""Which of a layer's placements to take in every layer, when moves cost something or only so many are allowed.

A multiple-choice knapsack (`planner.solve.knapsack`): one option a layer, the least sum of (objective + price * moves),
moves at most a limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.placement import Placement
from planner.solve.knapsack import cheapest_within
from topologies import Infeasible


@dataclass(frozen=True, eq=False)
class Option:
    """A placement of one layer, what it costs a step, and how many experts would have to travel for it."""

    placement: Placement
    objective: float
    moves: int


def worthwhile(options: Sequence[Option]) -> list[Option]:
    """Return the options that no other one with as few moves beats, by moves; the first of equals."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda option: (option.moves, option.objective)):
        if not kept or option.objective < kept[-1].objective:
            kept.append(option)
    return kept


def choose(options: Sequence[Sequence[Option]], price: float = 0.0, max_moves: int | None = None) -> list[Option]:
    """Return one option of each layer at the least total objective + price * moves, with at most `max_moves` moves.

    Raises Infeasible where even the fewest moves are too many.
    """
    if max_moves is None:
        return [
            min(layer, key=lambda option: (option.objective + price * option.moves, option.moves)) for layer in options
        ]
    fewest = sum(min(option.moves for option in layer) for layer in options)
    if fewest > max_moves:
        raise Infeasible(
            f"max moves {max_moves}: {fewest} slots have to be filled anew at least (slots or ranks are gone); nearest "
            f"feasible: --max-moves {fewest}"
        )
    costs = [np.array([option.objective + price * option.moves for option in layer]) for layer in options]
    moves = [np.array([option.moves for option in layer]) for layer in options]
    return [layer[taken] for layer, taken in zip(options, cheapest_within(costs, moves, max_moves), strict=True)]
