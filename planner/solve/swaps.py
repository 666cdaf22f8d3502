"""Descent by swaps: trade the contents of two slots, or move one into a free slot, while the cost falls.

All swaps of the slots of one rank with the slots of every other rank are priced at once, to first order in the rows
(exact for `pairwise`); the best is checked against the true cost before it is kept.

Shapes: C source classes, R ranks, N links, S slots, A and B slots of the two ranks of a swap.
"""

from __future__ import annotations

import time

import numpy as np

from planner.cost import Phase
from planner.layer import LayerCost, LayerProblem
from planner.placement import FloatArray, IntArray, Placement

MIN_GAIN = 1e-6  # a relative gain below this is not worth a step
SOFTNESS = 64  # exponent of the mean that stands for the maximum: ties have a slope, and no plateau stops the descent
CHECKED = 4  # candidates whose true cost is worked out before a rank is given up


def descend_by_swaps(
    problem: LayerProblem, placement: Placement, max_steps: int, deadline: float | None = None
) -> Placement:
    """Return a placement that no single swap from its busiest ranks improves, or the one after `max_steps` swaps.

    `deadline` is a `time.monotonic()` moment that ends the descent early.
    """
    cost = problem.evaluate(placement)
    for _ in range(max_steps):
        if deadline is not None and time.monotonic() >= deadline:
            break
        for rank in _busiest_ranks(problem, placement, cost):
            better = _best_swap(problem, placement, cost, rank)
            if better is not None:
                placement, cost = better
                break
        else:
            break
    return placement


def soft_us(cost: LayerCost) -> float:
    """Return the smooth stand-in for `layer_us` that the descent follows."""
    parts = (cost.dispatch_us_N, cost.compute_us_R, cost.combine_us_N)
    return sum(float(_soft_max(part[None, :])[0]) for part in parts if part.size)


def _soft_max(us_XN: FloatArray) -> FloatArray:
    top_X = np.maximum(us_XN.max(axis=1), np.finfo(float).tiny)
    power_XN = us_XN / top_X[:, None]
    for _ in range(int(np.log2(SOFTNESS))):
        np.square(power_XN, out=power_XN)
    soft_X: FloatArray = top_X * power_XN.sum(axis=1) ** (1 / SOFTNESS)
    return soft_X


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


def _best_swap(
    problem: LayerProblem, placement: Placement, cost: LayerCost, rank: int
) -> tuple[Placement, LayerCost] | None:
    """Return the placement after the best improving swap with a slot of `rank`, and its cost; None without one."""
    move = _SwapPrices(problem, placement, cost, rank)
    now = soft_us(cost)
    candidates = []
    for other in range(problem.num_ranks):
        if other != rank and problem.slots_R[other]:
            candidates += move.with_rank(other, now * (1 - MIN_GAIN))
    candidates.sort(key=lambda candidate: candidate[0])
    for _, mine, theirs, other in candidates[:CHECKED]:
        trial = _swapped(placement, mine, theirs, other)
        trial_cost = problem.evaluate(trial)
        if soft_us(trial_cost) < now * (1 - MIN_GAIN):
            return trial, trial_cost
    return None


class _SwapPrices:
    """Prices of trading each slot of one rank against each slot (or a free slot) of another."""

    def __init__(self, problem: LayerProblem, placement: Placement, cost: LayerCost, rank: int) -> None:
        self._problem, self._placement, self._cost, self._rank = problem, placement, cost, rank
        counted = problem.distinct_rows(placement)
        self._gradient = {target: rows.gradient_CET() for target, rows in counted.items()}
        self._share_CS = placement.share_DS[problem.class_domain_C]
        self._mine_A = np.flatnonzero(placement.rank_S == rank)

    def with_rank(self, other: int, ceiling_us: float) -> list[tuple[float, int, int, int]]:
        """Return (soft cost, my slot, their slot or -1 for a free one, other rank) of the best swap below the ceiling."""
        placement = self._placement
        theirs_B = np.flatnonzero(placement.rank_S == other)
        if len(theirs_B) < self._problem.slots_R[other]:
            theirs_B = np.append(theirs_B, -1)
        soft_AB = self._price(other, theirs_B)
        soft_AB[self._forbidden(other, theirs_B)] = np.inf
        a, b = np.unravel_index(int(soft_AB.argmin()), soft_AB.shape)
        if not soft_AB[a, b] < ceiling_us:
            return []
        return [(float(soft_AB[a, b]), int(self._mine_A[a]), int(theirs_B[b]), other)]

    def _forbidden(self, other: int, theirs_B: IntArray) -> FloatArray:
        """Mark the swaps that would put two copies of an expert on one rank, or change nothing."""
        expert_S, rank_S = self._placement.expert_S, self._placement.rank_S
        mine_A, on_other = expert_S[self._mine_A], expert_S[rank_S == other]
        their_expert_B = np.where(theirs_B >= 0, expert_S[theirs_B], -1)
        return np.isin(mine_A, on_other)[:, None] | np.isin(their_expert_B, mine_A)[None, :]

    def _price(self, other: int, theirs_B: IntArray) -> FloatArray:
        """Return the soft cost after each swap [A, B]."""
        problem, cost = self._problem, self._cost
        shape = (len(self._mine_A), len(theirs_B))
        soft_AB = np.zeros(shape)
        for phase, us_N in ((problem.cost.dispatch, cost.dispatch_us_N), (problem.cost.combine, cost.combine_us_N)):
            if not us_N.size:
                continue
            change_ABN = np.zeros((*shape, len(us_N)))
            for leg in phase.legs:
                here, there = self._rank, other
                if leg.target == "domain":
                    here, there = int(problem.domain_R[self._rank]), int(problem.domain_R[other])
                    if here == there:
                        continue
                targets = problem.num_ranks if leg.target == "rank" else problem.num_domains
                rows_C = np.arange(len(problem.class_size_C)) * targets
                gradient = self._gradient[leg.target] if leg.distinct else None
                change_ABN += self._delta(theirs_B, gradient, here) @ leg.us_XN[rows_C + here].toarray()
                change_ABN -= self._delta(theirs_B, gradient, there) @ leg.us_XN[rows_C + there].toarray()
            soft_AB += _soft_max((us_N + change_ABN).reshape(-1, len(us_N))).reshape(shape)
        return soft_AB + self._compute(other, theirs_B)

    def _delta(self, theirs_B: IntArray, gradient_CET: FloatArray | None, target: int) -> FloatArray:
        """Return rows [A, B, C] that their slot would bring to a target less those that mine would."""

        def brought(slot_X: IntArray) -> FloatArray:
            expert_X = self._placement.expert_S[slot_X]
            rows_CX = self._problem.rows_CE[:, expert_X] if gradient_CET is None else gradient_CET[:, expert_X, target]
            return np.where(slot_X >= 0, rows_CX * self._share_CS[:, slot_X], 0.0)

        return (brought(theirs_B)[:, None, :] - brought(self._mine_A)[:, :, None]).transpose(1, 2, 0)

    def _compute(self, other: int, theirs_B: IntArray) -> FloatArray:
        problem, placement, us_R = self._problem, self._placement, self._cost.compute_us_R

        def brought(slot_X: IntArray) -> tuple[FloatArray, FloatArray]:
            expert_X = placement.expert_S[slot_X]
            load_X = (problem.class_size_C[:, None] * problem.rows_CE[:, expert_X] * self._share_CS[:, slot_X]).sum(axis=0)
            active_X = problem.active_E[expert_X]
            return np.where(slot_X >= 0, load_X, 0.0), np.where(slot_X >= 0, active_X, 0.0)

        (load_A, active_A), (load_B, active_B) = brought(self._mine_A), brought(theirs_B)
        load_AB, active_AB = load_B[None, :] - load_A[:, None], active_B[None, :] - active_A[:, None]
        after_ABR = np.tile(us_R, (*load_AB.shape, 1))
        for rank, sign in ((self._rank, 1.0), (other, -1.0)):
            after_ABR[:, :, rank] += sign * (load_AB * problem.cost.row_us_R[rank] + active_AB * problem.cost.slot_us_R[rank])
        return _soft_max(after_ABR.reshape(-1, len(us_R))).reshape(load_AB.shape)


def _swapped(placement: Placement, mine: int, theirs: int, other: int) -> Placement:
    """Return the placement after slots `mine` and `theirs` traded ranks (theirs = -1: a free slot of `other`)."""
    rank_S = placement.rank_S.copy()
    if theirs >= 0:
        rank_S[theirs] = rank_S[mine]
    rank_S[mine] = other
    order = np.argsort(rank_S, kind="stable")
    return Placement(
        placement.expert_S[order], rank_S[order], placement.share_DS[:, order], placement.num_experts, placement.num_ranks
    )
