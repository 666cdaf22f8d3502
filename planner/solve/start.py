"""Constructed placements to start from: copies where they save traffic or relieve a rank, packed by load.

Shapes: E experts, R ranks, D domains.
"""

from __future__ import annotations

import numpy as np

from planner.layer import LayerProblem
from planner.placement import FloatArray, IntArray, Placement

RELIEF = 0.75  # an expert gets copies until each carries at most this part of the mean rank load


def constructed(problem: LayerProblem, spare: int, *, local: bool, home_E: IntArray | None = None) -> Placement:
    """Place every expert once and `spare` copies more.

    1. Copies: first for experts too hot for one rank; then, with `local`, where a copy keeps the most rows inside
       their own domain, else where the load per copy is largest.
    2. Copies to domains, heaviest first, each to the least loaded domain with room; `home_E` names the domain of each
       expert's first copy instead.
    3. Copies of a domain to its ranks in the same way. Shares are local first.
    """
    copies_E = _copies(problem, spare, local=local)
    load_DE, copies_DE = _to_domains(problem, copies_E, home_E)
    rank_lists = pack_ranks(problem, load_DE, copies_DE)
    placement = Placement.equal_shares(rank_lists, problem.num_experts, problem.num_domains)
    return placement.with_shares(local_shares(placement, problem.domain_R)) if local else placement


def local_shares(placement: Placement, domain_R: IntArray) -> FloatArray:
    """Return share_DS that send tokens to copies in their own domain where there are any, else to all copies alike."""
    D = placement.num_domains
    inside_DS = domain_R[placement.rank_S][None, :] == np.arange(D)[:, None]
    inside_DE = np.zeros((D, placement.num_experts))
    np.add.at(inside_DE, (domain_R[placement.rank_S], placement.expert_S), 1.0)
    local_DS = inside_DE[:, placement.expert_S]
    share_DS: FloatArray = np.where(
        local_DS > 0, inside_DS / np.maximum(local_DS, 1), 1.0 / placement.copies_E[placement.expert_S]
    )
    return share_DS


def _copies(problem: LayerProblem, spare: int, *, local: bool) -> IntArray:
    """Return how many slots each expert gets."""
    load_E, E = problem.load_E, problem.num_experts
    most = problem.num_ranks
    mean = load_E.sum() / problem.num_ranks
    copies_E = np.clip(np.ceil(load_E / max(RELIEF * mean, np.finfo(float).tiny)), 1, most).astype(np.int64)
    while copies_E.sum() > E + spare:  # more relief than there are slots: take it back where it hurts least
        without_E = np.where(copies_E > 1, load_E / np.maximum(copies_E - 1, 1), np.inf)
        copies_E[without_E.argmin()] -= 1
    for _ in range(E + spare - int(copies_E.sum())):
        gain_E = load_E / copies_E
        if local:  # each copy up to one a domain saves its domain's rows; beyond that it only relieves
            gain_E = np.where(copies_E < problem.num_domains, load_E, gain_E / E)
        gain_E = np.where(copies_E < most, gain_E, -1.0)
        copies_E[gain_E.argmax()] += 1
    result: IntArray = copies_E
    return result


def _to_domains(problem: LayerProblem, copies_E: IntArray, home_E: IntArray | None) -> tuple[FloatArray, IntArray]:
    """Return the load of each expert in each domain, and its copies there."""
    E, D, domain_R = problem.num_experts, problem.num_domains, problem.domain_R
    source_DE = np.zeros((D, E))
    np.add.at(source_DE, problem.class_domain_C, problem.rows_CE * problem.class_size_C[:, None])
    room_D = np.bincount(domain_R, weights=problem.slots_R, minlength=D).astype(np.int64)
    ranks_D = np.bincount(domain_R, weights=problem.slots_R > 0, minlength=D).astype(np.int64)
    speed_D = np.bincount(domain_R, weights=(problem.slots_R > 0) / _slowness_R(problem), minlength=D)
    speed_D = speed_D / max(speed_D.max(), 1e-9)
    load_D = np.zeros(D)
    load_DE, copies_DE = np.zeros((D, E)), np.zeros((D, E), dtype=np.int64)
    if home_E is not None:
        copies_DE[home_E, np.arange(E)] = 1
        room_D -= np.bincount(home_E, minlength=D)
    for e in np.argsort(-problem.load_E / copies_E, kind="stable"):
        for _ in range(copies_E[e] - copies_DE[:, e].sum()):
            open_D = (room_D > 0) & (copies_DE[:, e] < ranks_D)
            pressure_D = np.where(open_D, load_D / np.maximum(speed_D, 1e-9), np.inf)
            unserved_D = copies_DE[:, e] == 0
            if (open_D & unserved_D).any():
                pressure_D = np.where(unserved_D, pressure_D, np.inf)
            d = int(pressure_D.argmin())
            if not open_D[d]:
                break  # no rank is left that does not hold this expert
            copies_DE[d, e] += 1
            room_D[d] -= 1
        served_D = copies_DE[:, e] > 0
        spread = source_DE[~served_D, e].sum() / max(copies_DE[:, e].sum(), 1)
        load_DE[:, e] = np.where(served_D, source_DE[:, e] + spread * copies_DE[:, e], 0.0)
        load_D += load_DE[:, e]
    return load_DE, copies_DE


def pack_ranks(problem: LayerProblem, load_DE: FloatArray, copies_DE: IntArray) -> list[list[int]]:
    """Return the experts of each rank: heaviest copy first, on the least busy rank of its domain with room.

    `load_DE` is the load of each expert in each domain, `copies_DE` its copies there.
    """
    room_R, busy_R, slow_R = problem.slots_R.copy(), np.zeros(problem.num_ranks), _slowness_R(problem)
    held: list[list[int]] = [[] for _ in range(problem.num_ranks)]
    for d in range(problem.num_domains):
        ranks = np.flatnonzero(problem.domain_R == d)
        per_copy_E = load_DE[d] / np.maximum(copies_DE[d], 1)
        for e in np.argsort(-per_copy_E, kind="stable"):
            if copies_DE[d, e] == 0:
                continue
            with_room = ranks[room_R[ranks] > 0]
            lightest = with_room[np.argsort(busy_R[with_room], kind="stable")[: copies_DE[d, e]]]
            for rank in lightest:
                held[rank].append(int(e))
            room_R[lightest] -= 1
            busy_R[lightest] += per_copy_E[e] * slow_R[lightest]
    return held


def _slowness_R(problem: LayerProblem) -> FloatArray:
    """Return each rank's time for a row, relative to the fastest rank's."""
    slow_R: FloatArray = problem.cost.row_us_R / problem.cost.row_us_R.min()
    return slow_R
