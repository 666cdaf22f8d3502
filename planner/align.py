"""The same plan with less to carry: ranks that are alike trade their contents, and experts that stay keep their slots.

Which rank of a domain holds which of the domain's sets of experts rarely matters to the predicted time, nor which
domain holds which sets where all domains send alike. Among such orders the one in which the fewest experts arrive is an
assignment problem; it is solved for the ranks of every pair of domains, and for the domains on top of that.

Shapes: E experts, R ranks, D domains, S slots, N ranks of one domain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from planner.layer import LayerProblem
from planner.placement import FloatArray, IntArray, Placement

ROUNDING = 1e-9  # relative; orders that are alike differ in the order of sums
UNLIKE = -1e9  # gain of a trade between ranks that are not alike


def held_RE(placement: Placement) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Return which rank holds which expert, [R, E]."""
    held = np.zeros((placement.num_ranks, placement.num_experts), dtype=bool)
    held[placement.rank_S, placement.expert_S] = True
    return held


def arrivals(old: Placement, new: Placement) -> int:
    """Return the number of experts that arrive on ranks which do not hold them yet."""
    return int((held_RE(new) & ~held_RE(old)).sum())


def align(problem: LayerProblem, old: Placement, new: Placement) -> Placement:
    """Return `new` with the contents of like ranks traded so that the fewest experts arrive at no higher cost.

    Experts that stay on a rank keep their slot there. `old` may lack experts (those of lost ranks).
    """
    ceiling = problem.evaluate(new).layer_us * (1 + ROUNDING)
    orders = [_reordered(new, *order) for order in _orders(problem, old, new)]
    for candidate in sorted(orders, key=lambda placement: arrivals(old, placement)):
        if arrivals(old, candidate) >= arrivals(old, new):
            break
        if problem.evaluate(candidate).layer_us <= ceiling:
            return in_old_slots(old, candidate)
    return in_old_slots(old, new)


def in_old_slots(old: Placement, new: Placement) -> Placement:
    """Return `new` with every expert that stays on a rank in the slot it had there, newcomers in the slots between."""
    order: list[int] = []
    ends = np.cumsum(new.slots_R)
    for first, end, before in zip(ends - new.slots_R, ends, old.slots(), strict=True):
        slot_of = {int(new.expert_S[slot]): slot for slot in range(first, end)}
        row = [slot_of.pop(expert, -1) for expert in before[: end - first]]
        row += [-1] * (end - first - len(row))
        rest = iter(slot_of.values())
        order += [slot if slot >= 0 else next(rest) for slot in row]
    return Placement(new.expert_S[order], new.rank_S, new.share_DS[:, order], new.num_experts, new.num_ranks)


def _reordered(placement: Placement, rank_R: IntArray, domain_D: IntArray) -> Placement:
    """Move the contents of each rank r to rank_R[r], and the shares of each source domain d to domain_D[d]."""
    rank_S = rank_R[placement.rank_S]
    order = np.argsort(rank_S, kind="stable")
    share_DS = np.empty_like(placement.share_DS)
    share_DS[domain_D] = placement.share_DS
    return Placement(
        placement.expert_S[order], rank_S[order], share_DS[:, order], placement.num_experts, placement.num_ranks
    )


def _orders(problem: LayerProblem, old: Placement, new: Placement) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield (where the contents of each rank go, where those of each domain go): orders that may cost the same.

    Each with the domains traded or not, and with the ranks of every domain ordered on their own or all domains' alike
    (on a rail fabric only that leaves the traffic of every rail as it was).
    """
    gain_RR = _gains(problem, old, new)
    members = [np.flatnonzero(problem.domain_R == d) for d in range(problem.num_domains)]
    stay_D = np.arange(problem.num_domains)
    for domain_D in (_best_domains(gain_RR, members), stay_D):
        blocks = [gain_RR[np.ix_(members[domain_D[d]], members[d])] for d in stay_D]
        if len({block.shape for block in blocks}) == 1:
            together = _assigned(np.sum(blocks, axis=0))
            yield _rank_order([together] * len(blocks), members, domain_D), domain_D
        yield _rank_order([_assigned(block) for block in blocks], members, domain_D), domain_D


def _gains(problem: LayerProblem, old: Placement, new: Placement) -> FloatArray:
    """Return the experts that need not travel if rank g gets the contents of rank r, [g, r]."""
    kept_RR = held_RE(old).astype(np.float64) @ held_RE(new).T
    traits_RX = np.stack([problem.slots_R, problem.cost.slot_us_R, problem.cost.row_us_R], axis=1)
    like_RR = (traits_RX[:, None] == traits_RX[None]).all(axis=2)
    gain_RR: FloatArray = np.where(like_RR, kept_RR, UNLIKE)
    return gain_RR


def _best_domains(gain_RR: FloatArray, members: Sequence[IntArray]) -> IntArray:
    """Return the domain to which the contents of each domain go, each domain's ranks in their best order."""
    gain_DD = np.full((len(members), len(members)), UNLIKE * len(gain_RR))
    for there, ranks in enumerate(members):
        for here, contents in enumerate(members):
            if len(ranks) == len(contents):
                block = gain_RR[np.ix_(ranks, contents)]
                gain_DD[there, here] = block[np.arange(len(ranks)), _assigned(block)].sum()
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - a tenth of a second, and not every plan needs it

    domain_D: IntArray = linear_sum_assignment(gain_DD.T, maximize=True)[1]
    return domain_D


def _assigned(gain_NN: FloatArray) -> IntArray:
    """Return, for each place of a domain, whose contents it gets."""
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - a tenth of a second, and not every plan needs it

    contents_N: IntArray = linear_sum_assignment(gain_NN, maximize=True)[1]
    return contents_N


def _rank_order(contents: Sequence[IntArray], members: Sequence[IntArray], domain_D: IntArray) -> IntArray:
    rank_R = np.empty(sum(map(len, members)), dtype=np.int64)
    for d, contents_N in enumerate(contents):
        rank_R[members[d][contents_N]] = members[domain_D[d]]
    return rank_R
