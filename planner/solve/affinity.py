"""Ranks for the experts of all layers at once, so that tokens find their next expert near the one that they come from.

Where a token stays on the rank of its last expert (context-coherent inference, ExFlow: Yao et al., arXiv 2401.08383) a
layer costs its tokens the way from rank to rank:

    sum over layers, experts e of one and f of the next   flow[l,e,f] * price[rank of e, rank of f]

With its two neighbours fixed, the best ranks of a layer's experts are an assignment problem, solved exactly. Sweeps
over the layers, there and back, end where no layer improves; the best of several starts is taken.

Shapes: L layers, E experts (of every layer), R ranks, S = E slots, all in use.
"""

from __future__ import annotations

import numpy as np

from planner.placement import FloatArray, IntArray
from topologies import BadInput

STARTS = 8
SWEEPS = 50  # an end for sweeps; most take 5 to 15
MIN_GAIN = 1e-9  # a relative gain below this is rounding


def follow(flow_LEE: FloatArray, price_RR: FloatArray, seed: int = 0, starts: int = STARTS) -> IntArray:
    """Return the rank [L, E] of every expert, the same number of experts of each layer on every rank.

    Args:
        flow_LEE: float64 [L - 1, E, E], tokens that go from expert e of a layer to expert f of the next.
        price_RR: float64 [R, R], what a token costs from rank to rank; 0 to itself.
        seed: of the starts; the same inputs and seed give the same ranks.
        starts: sweeps from so many different orders of the experts.

    Raises:
        BadInput: experts that the ranks do not divide.

    """
    E, R = flow_LEE.shape[1], len(price_RR)
    if E % R:
        raise BadInput(f"experts ({E}) must be a multiple of ranks ({R}) for every rank to hold as many")
    rng = np.random.default_rng(seed)
    best_LE, best = np.empty(0, dtype=np.int64), float("inf")
    for start in range(max(starts, 1)):
        order_E = np.arange(E) if start == 0 else rng.permutation(E)
        first_E = np.empty(E, dtype=np.int64)
        first_E[order_E] = np.arange(E) * R // E
        rank_LE = _swept(flow_LEE, price_RR, first_E)
        cost = travel(flow_LEE, price_RR, rank_LE)
        if cost < best:
            best_LE, best = rank_LE, cost
    return best_LE


def travel(flow_LEE: FloatArray, price_RR: FloatArray, rank_LE: IntArray) -> float:
    """Return what all tokens cost on their way through the layers."""
    return float(
        sum(
            (flow_EE * price_RR[here_E[:, None], next_E[None, :]]).sum()
            for flow_EE, here_E, next_E in zip(flow_LEE, rank_LE[:-1], rank_LE[1:], strict=True)
        )
    )


def _swept(flow_LEE: FloatArray, price_RR: FloatArray, first_E: IntArray) -> IntArray:
    """Lay out one layer after the other from a first one, then improve them in turn until none does."""
    L = len(flow_LEE) + 1
    rank_LE = np.tile(first_E, (L, 1))
    for layer in range(1, L):
        rank_LE[layer] = _assigned(flow_LEE[layer - 1].T @ price_RR[rank_LE[layer - 1]])
    cost = travel(flow_LEE, price_RR, rank_LE)
    for _ in range(SWEEPS):
        for layer in (*range(L - 1, -1, -1), *range(1, L)):
            cost_ER = np.zeros((len(first_E), len(price_RR)))
            if layer > 0:
                cost_ER += flow_LEE[layer - 1].T @ price_RR[rank_LE[layer - 1]]
            if layer < L - 1:
                cost_ER += flow_LEE[layer] @ price_RR.T[rank_LE[layer + 1]]
            rank_LE[layer] = _assigned(cost_ER)
        before, cost = cost, travel(flow_LEE, price_RR, rank_LE)
        if cost >= before * (1 - MIN_GAIN):
            break
    return rank_LE


def _assigned(cost_ER: FloatArray) -> IntArray:
    """Return the rank of each expert at the least total cost, with as many experts on every rank."""
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - a tenth of a second, and few plans need it

    E, R = cost_ER.shape
    expert_S, slot_S = linear_sum_assignment(np.repeat(cost_ER, E // R, axis=1))
    rank_E = np.empty(E, dtype=np.int64)
    rank_E[expert_S] = slot_S // (E // R)
    return rank_E
