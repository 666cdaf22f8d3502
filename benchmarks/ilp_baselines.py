"""Published integer programs for expert placement, written from their papers and solved by our solver (HiGHS).

MoETuner (Go and Mahajan, arXiv 2502.06643), first stage: the experts of a layer in equal clusters, one for each GPU, so
that the loads deviate least from their mean. The second stage, which cluster goes to which GPU, changes no load.

    min sum over c of dev_c     dev_c >= +-(sum of load_e x[c,e] - mean)     sum_c x[c,e] = 1     sum_e x[c,e] = E / R

ExFlow (Yao et al., arXiv 2401.08383): tokens that find their next expert where the last one was do not travel. From the
experts that tokens visit first (top-1) in consecutive layers, T[l,e,f]; every part holds as many experts of each layer:

    min sum over l, e, f of T[l,e,f] cost[l,e,f]     cost[l,e,f] >= +-(x[l,e] - x[l+1,f])     sum_e x[l,e] = E / 2

by recursive bisection (hosts first, then GPUs), as the paper does it where a model is too large in one piece.

Shapes: L layers, E experts, R ranks, T tokens, J parts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pulp

from planner.placement import BoolArray, FloatArray, IntArray
from planner.solve.milp import SolveResult, solve_milp


@dataclass(frozen=True, eq=False)
class Clustered:
    """What an integer program found: the part of each expert, the seconds, and whether it is proven best."""

    part_E: IntArray
    seconds: float
    proven: bool


def balanced_clusters(load_E: FloatArray, parts: int, time_limit_s: float, relative_gap: float = 0.005) -> Clustered:
    """Return equal clusters of a layer's experts with the least sum of deviations (MoETuner's first stage)."""
    E, mean = len(load_E), float(load_E.sum() / parts)
    lp = pulp.LpProblem("clusters", pulp.LpMinimize)
    x = {(c, e): lp.add_variable(f"x_{c}_{e}", 0, 1, cat="Integer") for c in range(parts) for e in range(E)}
    deviation = [lp.add_variable(f"d_{c}", 0) for c in range(parts)]
    lp += pulp.lpSum(deviation)
    for e in range(E):
        lp += pulp.lpSum(x[c, e] for c in range(parts)) == 1
    for c in range(parts):
        load = pulp.lpSum(float(load_E[e] / mean) * x[c, e] for e in range(E))
        lp += pulp.lpSum(x[c, e] for e in range(E)) == E // parts
        lp += deviation[c] >= load - 1.0
        lp += deviation[c] >= 1.0 - load
    order_E = np.argsort(-load_E, kind="stable")
    start = {f"x_{turn % parts}_{e}": 1.0 for turn, e in enumerate(order_E.tolist())}
    result = solve_milp(lp, warm_start=start, time_limit_s=time_limit_s, relative_gap=relative_gap)
    x_CE = np.array([[result.values[f"x_{c}_{e}"] for e in range(E)] for c in range(parts)])
    return Clustered(x_CE.argmax(axis=0), result.seconds, result.proven_optimal)


def deviation(load_E: FloatArray, rank_E: IntArray, ranks: int) -> float:
    """Return MoETuner's objective: the sum of the ranks' deviations from the mean load, as parts of it."""
    load_R = np.bincount(rank_E, weights=load_E, minlength=ranks)
    return float(np.abs(load_R / load_R.mean() - 1.0).sum())


def transitions(top1_LT: IntArray, experts: int) -> FloatArray:
    """Return the part of the tokens [L - 1, E, E] that go from an expert of one layer to one of the next."""
    counts = np.zeros((len(top1_LT) - 1, experts, experts))
    for layer, (here_T, next_T) in enumerate(itertools.pairwise(top1_LT)):
        np.add.at(counts[layer], (here_T, next_T), 1.0)
    counts /= top1_LT.shape[1]
    return counts


def crossings(flow_LEE: FloatArray, part_LE: IntArray) -> float:
    """Return ExFlow's objective: how often a token's next expert is in another part, in all layers together."""
    return float(
        sum(
            (flow_EE * (here_E[:, None] != next_E[None, :])).sum()
            for flow_EE, here_E, next_E in zip(flow_LEE, part_LE[:-1], part_LE[1:], strict=True)
        )
    )


def affine_parts(flow_LEE: FloatArray, parts: int, time_limit_s: float) -> tuple[IntArray, float]:
    """Return the part of every expert of every layer [L, E], and the seconds (ExFlow by recursive bisection).

    `flow_LEE` is what `transitions` returns, `parts` a power of two, `time_limit_s` that of each bisection.
    """
    L, E = len(flow_LEE) + 1, flow_LEE.shape[1]
    part_LE, seconds, halves = np.zeros((L, E), dtype=np.int64), 0.0, 1
    while halves < parts:
        halved_LE = part_LE * 2
        for part in range(halves):
            second_LE, result = _bisected(flow_LEE, part_LE == part, time_limit_s)
            halved_LE += second_LE
            seconds += result.seconds
        part_LE, halves = halved_LE, 2 * halves
    return part_LE, seconds


def _bisected(flow_LEE: FloatArray, mine_LE: BoolArray, time_limit_s: float) -> tuple[IntArray, SolveResult]:
    """Return which experts [L, E] of a part go to its second half."""
    lp = pulp.LpProblem("bisection", pulp.LpMinimize)
    names = [(layer, e) for layer, mine_E in enumerate(mine_LE) for e in np.flatnonzero(mine_E).tolist()]
    x = {key: lp.add_variable(f"x_{key[0]}_{key[1]}", 0, 1, cat="Integer") for key in names}
    cost = []
    for layer, flow_EE in enumerate(flow_LEE):
        for e, f in np.argwhere((flow_EE > 0) & mine_LE[layer][:, None] & mine_LE[layer + 1][None, :]).tolist():
            crossing = lp.add_variable(f"c_{layer}_{e}_{f}", 0)
            lp += crossing >= x[layer, e] - x[layer + 1, f]
            lp += crossing >= x[layer + 1, f] - x[layer, e]
            cost.append(float(flow_EE[e, f]) * crossing)
    lp.setObjective(pulp.lpSum(cost))
    start: dict[str, float] = {}
    for layer, mine_E in enumerate(mine_LE):
        experts = np.flatnonzero(mine_E).tolist()
        lp += pulp.lpSum(x[layer, e] for e in experts) == len(experts) // 2
        start |= {f"x_{layer}_{e}": 1.0 for e in experts[: len(experts) // 2]}
    lp += x[names[0]] == 1  # the halves are alike: name one
    result = solve_milp(lp, warm_start=start, time_limit_s=time_limit_s)
    second_LE = np.zeros(mine_LE.shape, dtype=np.int64)
    for layer, e in names:
        second_LE[layer, e] = round(result.values[f"x_{layer}_{e}"])
    return second_LE, result
