"""Experts that survive the loss of a host: those with copies on two hosts.

A copy that only stands by costs a slot and no time: a rank reads the weights of experts that get tokens. What it costs
is that the slot cannot relieve a busier rank or keep traffic inside a domain.

Shapes: E experts, R ranks, S slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.placement import BoolArray, IntArray, Placement

PENALTY_US = 1e9  # for each expert that is missing: more than any layer takes


@dataclass(frozen=True, eq=False)
class Backups:
    """What a layer's placement has to survive.

    Attributes:
        host_R: host of each rank.
        wanted: experts that have to have copies on two hosts.

    """

    host_R: IntArray
    wanted: int

    def penalty_us(self, placement: Placement) -> float:
        """Return what is added to the cost of a placement that falls short."""
        return PENALTY_US * max(self.wanted - int(survivors_E(placement, self.host_R).sum()), 0)


def survivors_E(placement: Placement, host_R: IntArray) -> BoolArray:
    """Return which experts have copies on two hosts or more."""
    H = int(host_R.max()) + 1
    pairs = np.unique(placement.expert_S * H + host_R[placement.rank_S])
    survivors: BoolArray = np.bincount(pairs // H, minlength=placement.num_experts) > 1
    return survivors
