"""How small the part of a row is that a token-expert pair brings, from the experts that its tokens visit too.

A token with n experts on one target sends one row there: 1/n for each of its pairs. On a target with c slots an expert
has c - 1 companions at most, so over its own tokens n is on average no more than

    1 + (sum of the c - 1 largest numbers of tokens that it shares with another expert) / (its tokens)

and since 1/n is convex, the mean of 1/n is at least its value at this mean, taken between whole n in a straight line.
Shares that split an expert's tokens are a mean over placements in which every pair has its own copy, so it holds for
them too.

Shapes: E experts, P sampled tokens.
"""

from __future__ import annotations

import numpy as np

from planner.placement import FloatArray
from planner.wire import TokenSample


def co_visits(tokens: TokenSample) -> FloatArray:
    """Return how many tokens visit both of two experts [E, E]; on the diagonal, how many visit one."""
    expert_PE = tokens.expert_PE.toarray()
    together_EE: FloatArray = expert_PE.T @ expert_PE
    return together_EE


def companion_parts(together_EE: FloatArray, slots: int) -> FloatArray:
    """Return the least part of a row [E] that a pair of each expert brings to a target of so many slots."""
    visits_E = together_EE.diagonal()
    others_EE = together_EE - np.diag(visits_E)
    shared_E = -np.sort(-others_EE, axis=1)[:, : slots - 1].sum(axis=1)
    mean_E = 1.0 + shared_E / np.maximum(visits_E, 1.0)
    low_E = np.floor(mean_E)
    between_E: FloatArray = (2 * low_E + 1 - mean_E) / (low_E * (low_E + 1))
    return between_E
