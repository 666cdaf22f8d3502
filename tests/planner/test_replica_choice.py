"""The rule that picks copies: shares followed to within a row, zero shares never, the same answer every time."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.exact_rows import HOPS, exact_rows
from planner.placement import IntArray, Placement
from planner.replica_choice import UNIT, choose_slots, copy_table, phase_E
from topologies import BadInput, rail_peers


def by_hand(placement: Placement, ids_TK: IntArray, rank: int, domain: int) -> list[list[int]]:
    """Follow the docstring pair by pair, in fractions: a circle, arcs in order of slots, pairs evenly around it."""
    flat = [int(e) for e in ids_TK.reshape(-1)]
    seen: dict[int, int] = {}
    slots = []
    for expert in flat:
        if expert < 0:
            slots.append(-1)
            continue
        copies = [s for s in range(len(placement.expert_S)) if placement.expert_S[s] == expert]
        ends = copy_table(placement, domain).edge_EM[expert]
        nth, total = seen.get(expert, 0), flat.count(expert)
        seen[expert] = nth + 1
        place = (Fraction(nth, total) + Fraction(int(phase_E(rank, placement.num_experts)[expert]), UNIT)) % 1
        slots.append(next(s for s, end in zip(copies, ends, strict=False) if place < Fraction(int(end), UNIT)))
    return np.array(slots).reshape(ids_TK.shape).tolist()


@st.composite
def cases(draw: st.DrawFn) -> tuple[Placement, list[IntArray], IntArray, IntArray]:
    """Up to 6 experts on up to 5 ranks in up to 3 domains, copies and shares at random; a few tokens on each rank."""
    E, R = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    has_ER = rng.random((E, R)) < draw(st.sampled_from([0.0, 0.4, 1.0]))
    has_ER[np.arange(E), rng.integers(0, R, E)] = True
    domain_R = np.sort(rng.integers(0, 3, R))
    domain_R = np.unique(domain_R, return_inverse=True)[1]
    slots = [np.flatnonzero(has_R).tolist() for has_R in has_ER.T]
    placement = Placement.equal_shares(slots, E, int(domain_R.max()) + 1)
    raw = rng.random(placement.share_DS.shape) * (rng.random(placement.share_DS.shape) < 0.7) + 1e-9
    total = np.zeros((len(raw), E))
    np.add.at(total.T, placement.expert_S, raw.T)
    placement = placement.with_shares(raw / total[:, placement.expert_S])
    K = draw(st.integers(1, 4))
    ids = [rng.integers(-1, E, (draw(st.integers(0, 7)), K)) for _ in range(R)]
    return placement, ids, domain_R, rng.integers(-1, 3, R)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_choice_follows_its_definition(case: tuple[Placement, list[IntArray], IntArray, IntArray]) -> None:
    placement, ids, domain_R, _ = case
    for rank, ids_TK in enumerate(ids):
        domain = int(domain_R[rank])
        chosen = choose_slots(placement, ids_TK, rank, domain)
        assert chosen.tolist() == by_hand(placement, ids_TK, rank, domain)
        for slot, expert in enumerate(placement.expert_S.tolist()):
            wanted = placement.share_DS[domain, slot] * (ids_TK == expert).sum()
            assert abs((chosen == slot).sum() - wanted) < 1 + 1e-6


def test_shares_hold_to_within_a_row_and_zero_means_never() -> None:
    """One expert on three ranks, shares 0.25, 0, 0.75: of 1001 tokens the first gets 250 or 251, the second none."""
    placement = Placement.equal_shares([[0], [0], [0]], 1, 1).with_shares(np.array([[0.25, 0.0, 0.75]]))
    for rank in range(3):
        counts = np.bincount(choose_slots(placement, np.zeros((1001, 1), np.int64), rank, 0)[:, 0], minlength=3)
        assert counts[1] == 0
        assert counts[0] in (250, 251)


def test_ranks_with_one_token_each_do_not_round_alike() -> None:
    """Two equal copies and 64 ranks with one token for them: each copy gets about half of the 64, not all."""
    placement = Placement.equal_shares([[0], [0]] + [[]] * 62, 1, 1)
    firsts = sum(int(choose_slots(placement, np.zeros((1, 1), np.int64), rank, 0)[0, 0] == 0) for rank in range(64))
    assert 28 <= firsts <= 36


@settings(max_examples=40, deadline=None)
@given(cases())
def test_exact_rows_follow_their_definition(case: tuple[Placement, list[IntArray], IntArray, IntArray]) -> None:
    placement, ids, domain_R, rail_R = case
    R, peers = placement.num_ranks, rail_peers(domain_R, rail_R)
    expected = {name: {hop: np.zeros((R, R), np.int64) for hop in hops} for name, hops in HOPS.items()}
    for src in range(R):
        for slots in by_hand(placement, ids[src], src, int(domain_R[src])):
            ranks = [int(placement.rank_S[slot]) for slot in slots if slot >= 0]
            for rank in ranks:
                expected["pairwise"]["dispatch"][src, rank] += 1
            for rank in set(ranks):
                expected["dedup"]["dispatch"][src, rank] += 1
                expected["two-level"]["scale-up"][peers[src, domain_R[rank]], rank] += 1
            for domain in {int(domain_R[rank]) for rank in ranks}:
                expected["two-level"]["scale-out"][src, peers[src, domain]] += 1
    for name, hops in expected.items():
        counted = exact_rows(placement, ids, name, domain_R, rail_R)
        assert {hop: rows.tolist() for hop, rows in counted.items()} == {h: r.tolist() for h, r in hops.items()}


def test_bad_ids_are_named() -> None:
    placement = Placement.equal_shares([[0], [1]], 2, 1)
    one = np.array([[0, 2]])
    with pytest.raises(BadInput, match=r"rank 1: expert id 2 is not in 0..1"):
        exact_rows(placement, [one - one, one], "pairwise", np.zeros(2, np.int64), np.zeros(2, np.int64))
    with pytest.raises(BadInput, match="of 1 ranks for a placement on 2"):
        exact_rows(placement, [one], "pairwise", np.zeros(2, np.int64), np.zeros(2, np.int64))
