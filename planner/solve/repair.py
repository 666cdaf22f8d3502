"""A placement in force, brought to slots and ranks that changed: as little as it takes to make it valid again.

Shapes: E experts, R ranks, S slots.
"""

from __future__ import annotations

import numpy as np

from planner.layer import LayerProblem
from planner.placement import Placement
from planner.solve.start import local_shares
from topologies import Infeasible


def adapted(problem: LayerProblem, old: Placement) -> Placement:
    """Return `old` where it is valid; else with what does not fit dropped and what is missing put somewhere.

    1. A rank with too many slots drops the experts with the most copies, of equals those with the least load.
    2. An expert without a copy goes, heaviest first, to the rank with room that has the least load; without any room it
       replaces the redundant copy with the least load.
    3. Shares are local first; where the layer has to be even, slots are filled and shares are equal.
    """
    if (old.copies_E > 0).all() and (old.slots_R <= problem.slots_R).all():
        return problem.fitted(old)
    repair = _Repair(problem, old.slots())
    repair.drop_what_does_not_fit()
    for expert in np.argsort(-problem.load_E, kind="stable").tolist():
        if not repair.copies_E[expert]:
            repair.put(expert)
    placement = Placement.equal_shares(repair.held, problem.num_experts, problem.num_domains)
    return problem.fitted(placement.with_shares(local_shares(placement, problem.domain_R)))


class _Repair:
    """The experts that each rank holds, on the way from one placement to a valid one."""

    def __init__(self, problem: LayerProblem, held: list[list[int]]) -> None:
        self.problem, self.held = problem, held
        self.copies_E = np.bincount([e for row in held for e in row], minlength=problem.num_experts)

    def drop_what_does_not_fit(self) -> None:
        """Empty slots that are no more."""
        for row, slots in zip(self.held, self.problem.slots_R.tolist(), strict=True):
            while len(row) > slots:
                dropped = max(row, key=lambda e: (self.copies_E[e], -self.problem.load_E[e], e))
                row.remove(dropped)
                self.copies_E[dropped] -= 1

    def put(self, expert: int) -> None:
        """Give an expert without a copy a slot."""
        room = [r for r, row in enumerate(self.held) if len(row) < self.problem.slots_R[r]]
        if room:
            rank = min(room, key=lambda r: (self._load(self.held[r]) * self.problem.cost.row_us_R[r], r))
            self.held[rank].append(expert)
        else:
            rank, slot = self._least_needed()
            self.copies_E[self.held[rank][slot]] -= 1
            self.held[rank][slot] = expert
        self.copies_E[expert] += 1

    def _least_needed(self) -> tuple[int, int]:
        spare = [
            (self._load([e]), rank, slot)
            for rank, row in enumerate(self.held)
            for slot, e in enumerate(row)
            if self.copies_E[e] > 1
        ]
        if not spare:
            raise Infeasible(f"{int(self.problem.slots_R.sum())} slots for {self.problem.num_experts} experts")
        return min(spare)[1:]

    def _load(self, row: list[int]) -> float:
        return float(sum(self.problem.load_E[e] / self.copies_E[e] for e in row))
