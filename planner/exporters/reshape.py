"""One layer bent into what a format can hold: fewer copies, whole groups, shares that sources have in common.

Each function returns the placement that is nearest to the given one; what the difference costs is predicted, not
guessed (`planner.exporters.lossy`).

Shapes: S slots, R ranks, E experts, D domains, P positions (slots over all ranks), G routing groups, B blocks of ids.
"""

from __future__ import annotations

import numpy as np

from planner.placement import FloatArray, IntArray, Placement


def trivial(experts: int, slots_R: IntArray, num_domains: int) -> Placement:
    """Return the placement that engines start from: slot p holds expert p mod E; each copy serves an equal share."""
    rank_P = np.repeat(np.arange(len(slots_R)), slots_R)
    return Placement.of_slots(np.arange(len(rank_P)) % experts, rank_P, experts, len(slots_R), num_domains)


def without_replicas(weight_ER: FloatArray, room_R: IntArray, num_domains: int) -> Placement:
    """Return one slot an expert where the sum of weights is largest, with at most `room_R` slots a rank.

    `weight_ER` is what an expert's copy on a rank serves: 0 where there is none.
    """
    rank_P = np.repeat(np.arange(len(room_R)), room_R)
    expert_E, position_E = _heaviest_matching(weight_ER[:, rank_P])
    return Placement.of_slots(expert_E, rank_P[position_E], len(weight_ER), len(room_R), num_domains)


def with_common_shares(placement: Placement, weight_D: FloatArray) -> Placement:
    """Return the same slots, all domains using the mean of their shares, weighted by `weight_D`."""
    share_S = weight_D @ placement.share_DS / weight_D.sum()
    return placement.with_shares(np.tile(share_S, (placement.num_domains, 1)))


def in_whole_groups(placement: Placement, groups: int) -> Placement:
    """Return the nearest placement whose rank-major order of ids keeps routing groups in whole blocks.

    One slot an expert, equally many on every rank. Position p of E is on rank p // (E / R) and in block p // (E / G).
    Groups are matched with blocks so that most experts stay on their rank; the others take the free places in order.
    """
    E, R = placement.num_experts, placement.num_ranks
    size = E // groups
    rank_P, block_P = np.arange(E) // (E // R), np.arange(E) // size
    rank_E = np.empty(E, dtype=np.int64)
    rank_E[placement.expert_S] = placement.rank_S
    group_E = np.arange(E) // size
    held_GR = np.zeros((groups, R), dtype=np.int64)
    np.add.at(held_GR, (group_E, rank_E), 1)
    room_BR = np.zeros((groups, R), dtype=np.int64)
    np.add.at(room_BR, (block_P, rank_P), 1)
    stay_GB = np.minimum(held_GR[:, None, :], room_BR[None]).sum(axis=2)
    _, block_G = _heaviest_matching(stay_GB.astype(float))
    expert_P = np.empty(E, dtype=np.int64)
    for group, block in enumerate(block_G.tolist()):
        members = placement.expert_S[group_E[placement.expert_S] == group]
        expert_P[block_P == block] = _in_places(members, rank_E[members], rank_P[block_P == block])
    return Placement.of_slots(expert_P, rank_P, E, R, placement.num_domains)


def _heaviest_matching(weight_NM: FloatArray) -> tuple[IntArray, IntArray]:
    """Return rows and columns of the matching of greatest weight."""
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - half a second of imports, for losses alone

    rows, columns = linear_sum_assignment(-weight_NM)
    return rows.astype(np.int64), columns.astype(np.int64)


def _in_places(expert_N: IntArray, rank_N: IntArray, place_rank_N: IntArray) -> IntArray:
    """Put experts into places of their own rank as far as there are any, and into the free ones in order."""
    placed = np.full(len(place_rank_N), -1, dtype=np.int64)
    waiting = []
    for expert, rank in zip(expert_N.tolist(), rank_N.tolist(), strict=True):
        free = np.flatnonzero((place_rank_N == rank) & (placed < 0))
        if free.size:
            placed[free[0]] = expert
        else:
            waiting.append(expert)
    placed[placed < 0] = waiting
    return placed
