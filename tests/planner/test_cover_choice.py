"""The greedy cover, token by token in plain Python; and that it never visits more than it has to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings

from planner.cover_choice import cover_slots
from planner.exact_rows import HOPS, exact_rows
from planner.placement import IntArray, Placement
from planner.replica_choice import choose_slots, copy_table
from tests.planner.test_replica_choice import cases
from topologies import rail_peers

Drawn = tuple[Placement, list[IntArray], IntArray, IntArray]


def slots_of(placement: Placement, expert: int) -> list[int]:
    return [s for s in range(len(placement.rank_S)) if placement.expert_S[s] == expert]


def by_hand(placement: Placement, ids_TK: IntArray, rank: int, domain_R: IntArray) -> list[list[int]]:
    """Follow the docstring for one token after the other, with sets."""
    slots = choose_slots(placement, ids_TK, rank, int(domain_R[rank])).tolist()
    rank_S, R = placement.rank_S.tolist(), placement.num_ranks
    edge_EM = copy_table(placement, int(domain_R[rank])).edge_EM
    for t, ids in enumerate(ids_TK.tolist()):
        copies = {
            k: [s for s, arc in zip(slots_of(placement, e), np.diff(edge_EM[e], prepend=0), strict=False) if arc > 0]
            for k, e in enumerate(ids)
            if e >= 0
        }
        wanted = {k: slots[t][k] for k in copies}
        waiting = [k for k in copies if len(copies[k]) > 1]
        visited = {rank_S[wanted[k]] for k in copies if k not in waiting}
        while True:
            for k in list(waiting):
                every = slots_of(placement, ids[k])
                start = every.index(wanted[k])
                for s in every[start:] + every[:start]:
                    if s in copies[k] and rank_S[s] in visited:
                        slots[t][k] = s
                        waiting.remove(k)
                        break
            if not waiting:
                break
            domains = {int(domain_R[r]) for r in visited}

            def worth(r: int, waiting: list[int] = waiting, domains: set[int] = domains) -> tuple[int, ...]:
                gain = sum(r in [rank_S[s] for s in copies[k]] for k in waiting)  # noqa: B023 - used at once
                asked = any(rank_S[wanted[k]] == r for k in waiting)  # noqa: B023
                return (gain > 0, int(domain_R[r]) in domains, gain, asked, -((r - rank) % R))

            visited.add(max(range(R), key=worth))
    return slots


def covering(placement: Placement) -> Placement:
    return replace(placement, replica_choice="cover")


@settings(max_examples=150, deadline=None)
@given(cases())
def test_choice_follows_its_definition(case: Drawn) -> None:
    placement, ids, domain_R, _ = case
    for rank, ids_TK in enumerate(ids):
        assert cover_slots(placement, ids_TK, rank, domain_R).tolist() == by_hand(placement, ids_TK, rank, domain_R)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_rows_follow_their_definition(case: Drawn) -> None:
    """Sets of visited ranks and domains, counted from the slots; every pair is served by a copy of its expert."""
    placement, ids, domain_R, rail_R = case
    R = placement.num_ranks
    peer_RD = rail_peers(domain_R, rail_R)
    for name, hops in HOPS.items():
        wanted = {hop: np.zeros((R, R), dtype=np.int64) for hop in hops}
        for src, ids_TK in enumerate(ids):
            for experts, slots in zip(ids_TK, cover_slots(placement, ids_TK, src, domain_R), strict=True):
                assert [placement.expert_S[s] if s >= 0 else -1 for s in slots] == experts.tolist()
                ranks = [int(placement.rank_S[s]) for s in slots if s >= 0]
                if name == "pairwise":
                    np.add.at(wanted["dispatch"], (src, ranks), 1)
                elif name == "dedup":
                    wanted["dispatch"][src, list(set(ranks))] += 1
                else:
                    for domain in {int(domain_R[r]) for r in ranks}:
                        wanted["scale-out"][src, peer_RD[src, domain]] += 1
                    for r in set(ranks):
                        wanted["scale-up"][peer_RD[src, domain_R[r]], r] += 1
        found = exact_rows(covering(placement), ids, name, domain_R, rail_R)
        for hop in hops:
            assert np.array_equal(found[hop], wanted[hop])


def test_a_token_stays_where_it_goes_anyway() -> None:
    """Ranks 0 [0 1], 1 [0 2] | 2 [0 3], 3 [1 4] of two hosts; experts 0 and 1 are replicated, sources sit on rank 0.

    (0, 3): expert 3 is on rank 2 alone, expert 0 joins it. (1, 4): both on rank 3. (0, 1): rank 0 holds both.
    (1, 3): nothing of 1 on rank 2, but rank 3 is in its domain.
    """
    placement = Placement.equal_shares([[0, 1], [0, 2], [0, 3], [1, 4]], 5, 2)
    domain_R = np.array([0, 0, 1, 1])
    ids = np.array([[0, 3], [1, 4], [0, 1], [1, 3]])
    ranks = placement.rank_S[cover_slots(placement, ids, 0, domain_R)].tolist()
    assert ranks == [[2, 2], [3, 3], [0, 0], [3, 2]]


def test_a_copy_without_a_share_is_never_used() -> None:
    """Expert 0 on ranks 0 and 1, all of its share on rank 1: a token that visits rank 0 does not use it there."""
    placement = Placement.equal_shares([[0, 1], [0]], 2, 1).with_shares(np.array([[0.0, 1.0, 1.0]]))
    ranks = placement.rank_S[cover_slots(placement, np.array([[0, 1]]), 0, np.zeros(2, np.int64))].tolist()
    assert ranks == [[1, 0]]


def test_never_more_ranks_than_experts_and_fewer_rows_than_shares() -> None:
    """Eight experts a token, copies everywhere: a cover visits fewer ranks than shares do."""
    rng = np.random.default_rng(1)
    has_ER = rng.random((32, 8)) < 0.4
    has_ER[np.arange(32), rng.integers(0, 8, 32)] = True
    placement = Placement.equal_shares([np.flatnonzero(row).tolist() for row in has_ER.T], 32, 2)
    ids = np.stack([rng.permutation(32)[:8] for _ in range(200)])
    domain_R = np.repeat([0, 1], 4)
    rows = {
        choice: exact_rows(
            replace(placement, replica_choice=choice), [ids] * 8, "dedup", domain_R, np.tile(np.arange(4), 2)
        )["dispatch"].sum()
        for choice in ("shares", "cover")
    }
    assert rows["cover"] < 0.8 * rows["shares"]
