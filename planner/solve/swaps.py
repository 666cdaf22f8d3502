"""Descent by swaps: trade the contents of two slots, or move one into a free slot, while the cost falls.

All swaps of the slots of one busy rank with every slot of every other rank are priced at once, to first order in the
rows (exact for `pairwise`); the most promising ones are checked against the true cost before one is kept.

Shapes: C source classes, E experts, R ranks, N links, S slots, T targets (ranks or domains), A slots of the busy rank,
B places on another rank (its slots, then one free slot if it has any).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from planner.cost import Leg, Phase
from planner.layer import LayerCost, LayerProblem
from planner.placement import BoolArray, FloatArray, IntArray, Placement
from planner.robust import Problem, RobustCost, RobustProblem, costs_of, evaluate_near, scenarios_of

MIN_GAIN = 1e-6  # a relative gain below this is not worth a step
DOUBLINGS = 6  # the maximum is followed through a mean of exponent 2^6: ties have a slope, no plateau stops the descent
LISTED = 64  # cheapest swaps that are looked at, of all that were priced
CHECKED = 6  # swaps whose true cost is worked out in one round


def descend_by_swaps(
    problem: Problem,
    placement: Placement,
    max_steps: int,
    deadline: float | None = None,
    reshare: Callable[[Placement], Placement] = lambda placement: placement,
) -> Placement:
    """Return a placement that no single swap from its busiest ranks improves, or the one after `max_steps` swaps.

    A slot takes its shares along; `reshare` may set them anew after each swap. `deadline` is a `time.monotonic()`
    moment that ends the descent early.
    """
    prices = [_LinkPrices(one) for one in scenarios_of(problem)]
    cost = problem.evaluate(placement)
    for _ in range(max_steps):
        if deadline is not None and time.monotonic() >= deadline:
            break
        for rank in _ranks_to_relieve(problem, placement, cost):
            better = _best_swaps(problem, prices, placement, cost, rank, reshare)
            if better is not None:
                placement, cost = better
                break
        else:
            break
    return placement


def soft_us(problem: Problem, cost: LayerCost | RobustCost) -> float:
    """Return the smooth stand-in for `layer_us` that the descent follows."""
    return float(_over_scenarios(problem, [np.array(soft_layer_us(one)) for one in costs_of(cost)]))


def soft_layer_us(cost: LayerCost) -> float:
    """Return the same of one scenario."""
    parts = (cost.dispatch_us_N, cost.compute_us_R, cost.combine_us_N)
    return cost.penalty_us + sum(float(_soft_max(part)) for part in parts if part.size)


def _over_scenarios(problem: Problem, soft_SX: Sequence[FloatArray]) -> FloatArray:
    """Return what costs in several scenarios are worth; the worst one smoothly, so that ties have a slope."""
    if not isinstance(problem, RobustProblem):
        return soft_SX[0]
    values_SX = np.stack(soft_SX)
    if problem.risk.tail(len(values_SX)) > 1.0:
        return problem.risk.of(values_SX)
    top_X = np.maximum(values_SX.max(axis=0), np.finfo(float).tiny)
    with np.errstate(invalid="ignore"):  # what is not allowed in one scenario is infinite in all
        soft_X: FloatArray = top_X * _power(values_SX / top_X).sum(axis=0) ** (0.5**DOUBLINGS)
    return np.where(np.isinf(top_X), np.inf, soft_X)


def _ranks_to_relieve(problem: Problem, placement: Placement, cost: LayerCost | RobustCost) -> list[int]:
    """Return the ranks that set the pace in each scenario, the worst scenario first."""
    pairs = list(zip(scenarios_of(problem), costs_of(cost), strict=True))
    pairs.sort(key=lambda pair: -pair[1].layer_us)
    ranks = [rank for one, its_cost in pairs for rank in _busiest_ranks(one, placement, its_cost)]
    return list(dict.fromkeys(ranks))


def _power(us_XN: FloatArray) -> FloatArray:
    for _ in range(DOUBLINGS):
        us_XN = np.square(us_XN)
    return us_XN


def _soft_max(us_XN: FloatArray) -> FloatArray:
    top = max(float(us_XN.max()), np.finfo(float).tiny)
    soft_X: FloatArray = top * _power(us_XN / top).sum(axis=-1) ** (0.5**DOUBLINGS)
    return soft_X


class _LinkPrices:
    """Dense prices of every leg: us_TCN[t, c, n] is the time on link n of a row from class c to target t."""

    def __init__(self, problem: LayerProblem) -> None:
        classes = len(problem.class_size_C)
        self.of_leg: dict[int, FloatArray] = {}
        for phase in (problem.cost.dispatch, problem.cost.combine):
            for leg in phase.legs:
                targets = leg.us_XN.shape[0] // classes  # named, since a single rank has no links
                us_CTN = leg.us_XN.toarray().reshape(classes, targets, len(phase.link_names))
                self.of_leg[id(leg)] = np.ascontiguousarray(us_CTN.transpose(1, 0, 2))


def _busiest_ranks(problem: LayerProblem, placement: Placement, cost: LayerCost) -> list[int]:
    """Return the ranks that set the pace of some phase, busiest first, without repeats."""
    ranks = [int(cost.compute_us_R.argmax())]
    for phase, us_N in ((cost.cost.dispatch, cost.dispatch_us_N), (cost.cost.combine, cost.combine_us_N)):
        if us_N.size:
            ranks += _ranks_behind(problem, cost, phase, int(us_N.argmax()))
    return [rank for rank in dict.fromkeys(ranks) if placement.slots_R[rank]]


def _ranks_behind(problem: LayerProblem, cost: LayerCost, phase: Phase, link: int) -> list[int]:
    """Return the two ranks whose experts put the most on a link."""
    weight_R = np.zeros(problem.num_ranks)
    for leg in phase.legs:
        weight_T = leg.us_XN[:, [link]].toarray().reshape(len(problem.class_size_C), -1).sum(axis=0)
        weight_R += weight_T if leg.target == "rank" else weight_T[problem.domain_R]
    order_R = np.argsort(-(weight_R * cost.load_R), kind="stable")
    return [int(rank) for rank in order_R[:2]]


def _best_swaps(
    problem: Problem,
    prices: Sequence[_LinkPrices],
    placement: Placement,
    cost: LayerCost | RobustCost,
    rank: int,
    reshare: Callable[[Placement], Placement],
) -> tuple[Placement, LayerCost | RobustCost] | None:
    """Return the placement after improving swaps with slots of `rank`, and its cost; None without one.

    The swaps are priced one by one but kept together: each that still lowers the true cost after those before it.
    """
    every = [_Swaps(one, placement, rank) for one in scenarios_of(problem)]
    soft_SX = [
        swaps.soft_us(*known) for swaps, known in zip(every, zip(prices, costs_of(cost), strict=True), strict=True)
    ]
    soft_ARB = _over_scenarios(problem, soft_SX)
    before = now = soft_us(problem, cost)
    kept: list[tuple[int, int, int]] = []
    for mine, theirs, other in every[0].most_promising(soft_ARB, now * (1 - MIN_GAIN)):
        trial = reshare(swapped(placement, [*kept, (mine, theirs, other)]))
        trial_cost = evaluate_near(problem, trial, cost)
        if soft_us(problem, trial_cost) < now * (1 - MIN_GAIN):
            kept.append((mine, theirs, other))
            best, cost, now = trial, trial_cost, soft_us(problem, trial_cost)
        elif not kept:
            break
    return (best, cost) if now < before else None


class _Swaps:
    """Every trade of a slot of one rank against a place on another: which are allowed, and what each would cost."""

    def __init__(self, problem: LayerProblem, placement: Placement, rank: int) -> None:
        self._problem, self._placement, self._rank = problem, placement, rank
        self.mine_A = np.flatnonzero(placement.rank_S == rank)
        self.place_RB, self._forbidden_RB = self._places()

    def _places(self) -> tuple[IntArray, BoolArray]:
        """Return the slot at each place (-1 = none), and whether it is no place at all."""
        placement, slots_R = self._placement, self._problem.slots_R
        used_R = placement.slots_R
        first_R = np.cumsum(used_R) - used_R
        column_B = np.arange(int(used_R.max()) + 1)[None, :]
        used_RB = column_B < used_R[:, None]
        place_RB = np.where(used_RB, first_R[:, None] + column_B, -1)
        free_RB = (column_B == used_R[:, None]) & (used_R < slots_R)[:, None]
        forbidden_RB = ~(used_RB | free_RB)
        forbidden_RB[self._rank] = True
        return place_RB, forbidden_RB

    def soft_us(self, prices: _LinkPrices, cost: LayerCost) -> FloatArray:
        """Return the smooth cost after each swap [A, R, B]; infinite where it is not allowed."""
        problem = self._problem
        gradients = {target: counted.gradient_CET for target, counted in cost.counted.items()}
        soft_ARB = self._compute_us(cost)
        for phase, us_N in ((problem.cost.dispatch, cost.dispatch_us_N), (problem.cost.combine, cost.combine_us_N)):
            if not us_N.size:
                continue
            change_ARN = np.zeros((len(self.mine_A), problem.num_ranks, len(us_N)))
            change_RBN = np.zeros((*self.place_RB.shape, len(us_N)))
            for leg in phase.legs:
                gradient_CET = gradients.get(leg.target) if leg.distinct else None
                by_mine, by_theirs = self._change(leg, prices.of_leg[id(leg)], gradient_CET)
                change_ARN += by_mine
                change_RBN += by_theirs
            after = us_N + change_ARN[:, :, None, :] + change_RBN[None]
            soft_ARB += _soft_max(np.maximum(after, 0.0))
        soft_ARB[self._not_allowed()] = np.inf
        return soft_ARB

    def most_promising(self, soft_ARB: FloatArray, ceiling_us: float) -> Iterator[tuple[int, int, int]]:
        """Yield (my slot, their slot or -1, other rank), cheapest first; no slot and no incoming expert twice."""
        flat = soft_ARB.ravel()
        best = np.argpartition(flat, min(LISTED, flat.size - 1))[:LISTED]
        best = best[np.lexsort((best, flat[best]))]
        mine_used: set[int] = set()
        incoming: set[int] = set()
        for a, r, b in zip(*np.unravel_index(best[flat[best] < ceiling_us], soft_ARB.shape), strict=True):
            mine, theirs = int(self.mine_A[a]), int(self.place_RB[r, b])
            expert = int(self._placement.expert_S[theirs]) if theirs >= 0 else -1 - int(r)  # one free slot a rank
            if mine in mine_used or expert in incoming:
                continue
            mine_used.add(mine)
            incoming.add(expert)
            yield mine, theirs, int(r)
            if len(mine_used) == CHECKED:
                return

    def _change(self, leg: Leg, us_TCN: FloatArray, gradient_CET: FloatArray | None) -> tuple[FloatArray, FloatArray]:
        """Return the change of every link when my slot leaves for rank r [A, R, N], and when theirs comes [R, B, N]."""
        problem, rank = self._problem, self._rank
        target_R = np.arange(problem.num_ranks) if leg.target == "rank" else problem.domain_R
        here_CN, there_RCN = us_TCN[target_R[rank]], us_TCN[target_R]
        mine_here_AC = self._rows(self.mine_A, target_R[[rank]], gradient_CET)[:, 0]
        mine_there_ARC = self._rows(self.mine_A, target_R, gradient_CET)
        their_S = np.maximum(self.place_RB, 0)
        theirs_here = self._rows(their_S.ravel(), target_R[[rank]], gradient_CET)[:, 0].reshape(*their_S.shape, -1)
        theirs_there = self._rows_at(their_S, target_R, gradient_CET)
        by_mine = (
            np.matmul(mine_there_ARC.transpose(1, 0, 2), there_RCN).transpose(1, 0, 2)
            - (mine_here_AC @ here_CN)[:, None]
        )
        by_theirs = theirs_here @ here_CN - np.matmul(theirs_there, there_RCN)
        by_theirs[self.place_RB < 0] = 0.0
        if leg.target == "domain":  # a move inside a domain changes nothing between domains
            inside_R = target_R == target_R[rank]
            by_mine[:, inside_R] = 0.0
            by_theirs[inside_R] = 0.0
        return by_mine, by_theirs

    def _rows(self, slot_X: IntArray, target_Y: IntArray, gradient_CET: FloatArray | None) -> FloatArray:
        """Return the rows [X, Y, C] that slots bring to targets."""
        expert_X, share_XC = self._placement.expert_S[slot_X], self._share_CS[:, slot_X].T
        if gradient_CET is None:
            rows_XC = self._problem.rows_CE[:, expert_X].T * share_XC
            return np.repeat(rows_XC[:, None, :], len(target_Y), axis=1)
        return gradient_CET[:, expert_X[:, None], target_Y[None, :]].transpose(1, 2, 0) * share_XC[:, None, :]

    def _rows_at(self, slot_RB: IntArray, target_R: IntArray, gradient_CET: FloatArray | None) -> FloatArray:
        """Return the rows [R, B, C] that each rank's own slots bring to it."""
        expert_RB, share_RBC = self._placement.expert_S[slot_RB], self._share_CS[:, slot_RB].transpose(1, 2, 0)
        if gradient_CET is None:
            return self._problem.rows_CE[:, expert_RB].transpose(1, 2, 0) * share_RBC
        return gradient_CET[:, expert_RB, target_R[:, None]].transpose(1, 2, 0) * share_RBC

    @property
    def _share_CS(self) -> FloatArray:
        return self._placement.share_DS[self._problem.class_domain_C]

    def _compute_us(self, cost: LayerCost) -> FloatArray:
        """Return the smooth maximum of the ranks' compute times after each swap [A, R, B]; two ranks change."""
        problem, us_R = self._problem, cost.compute_us_R
        load_S = np.einsum(
            "c,cs,cs->s", problem.class_size_C, problem.rows_CE[:, self._placement.expert_S], self._share_CS
        )
        active_S = problem.active_E[self._placement.expert_S]
        used_RB = self.place_RB >= 0
        load_ARB = np.where(used_RB, load_S[self.place_RB], 0.0)[None] - load_S[self.mine_A][:, None, None]
        active_ARB = np.where(used_RB, active_S[self.place_RB], 0.0)[None] - active_S[self.mine_A][:, None, None]
        row_us_R, slot_us_R = problem.cost.row_us_R, problem.cost.slot_us_R
        here = us_R[self._rank] + load_ARB * row_us_R[self._rank] + active_ARB * slot_us_R[self._rank]
        there = us_R[:, None] - load_ARB * row_us_R[:, None] - active_ARB * slot_us_R[:, None]
        top = max(float(us_R.max()), np.finfo(float).tiny)
        rest_R = _power(us_R / top)
        rest_R = np.maximum(rest_R.sum() - rest_R - rest_R[self._rank], 0.0)
        powers = _power(np.maximum(here, 0.0) / top) + _power(np.maximum(there, 0.0) / top) + rest_R[:, None]
        soft_ARB: FloatArray = top * powers ** (0.5**DOUBLINGS)
        return soft_ARB

    def _not_allowed(self) -> BoolArray:
        """Mask swaps that would put two copies of an expert on one rank, or use a place that is none."""
        placement = self._placement
        mine_E, their_RB = placement.expert_S[self.mine_A], placement.expert_S[self.place_RB]
        holds_RE = np.zeros((placement.num_ranks, placement.num_experts), dtype=bool)
        holds_RE[placement.rank_S, placement.expert_S] = True
        twice_there_AR = holds_RE[:, mine_E].T
        twice_here_RB = holds_RE[self._rank][their_RB] & (self.place_RB >= 0)
        forbidden_ARB: BoolArray = twice_there_AR[:, :, None] | (twice_here_RB | self._forbidden_RB)[None]
        return forbidden_ARB


def swapped(placement: Placement, swaps: Sequence[tuple[int, int, int]]) -> Placement:
    """Return the placement after each (mine, theirs, other) traded ranks (theirs = -1: a free slot of `other`)."""
    rank_S = placement.rank_S.copy()
    for mine, theirs, other in swaps:
        if theirs >= 0:
            rank_S[theirs] = rank_S[mine]
        rank_S[mine] = other
    order = np.argsort(rank_S, kind="stable")
    return Placement(
        placement.expert_S[order],
        rank_S[order],
        placement.share_DS[:, order],
        placement.num_experts,
        placement.num_ranks,
    )
