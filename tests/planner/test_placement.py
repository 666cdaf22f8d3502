"""The invariants of a placement, each broken on purpose."""

import numpy as np
import pytest

from planner.placement import Placement, check_placement, shares_of
from topologies import BadInput


def two_ranks():
    """Rank 0 holds [0, 1], rank 1 holds [1, 2]: expert 1 has a copy on each.

    rank      0       1
    slots   [0, 1]  [1, 2]
    """
    return Placement.equal_shares([[0, 1], [1, 2]], 3, 2)


def test_equal_shares_and_slots():
    placement = two_ranks()
    check_placement(placement, np.array([2, 2]))
    assert placement.slots() == [[0, 1], [1, 2]]
    assert placement.share_DS.tolist() == [[1, 0.5, 0.5, 1]] * 2
    assert {e: [rank for rank, _ in copies] for e, copies in shares_of(placement).items()} == {1: [0, 1]}


def test_empty_ranks_keep_their_place():
    assert Placement.equal_shares([[], [0, 1], []], 2, 1).slots() == [[], [0, 1], []]


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ([[0, 1], [1, 3]], "expert 3 is not in 0..2"),
        ([[0, 1], [1]], r"expert 2 has no slot \(1 of 3 experts have none\)"),
        ([[0, 1, 1], [2]], "expert 1 stands 2 times on rank 0"),
        ([[0, 1, 2], [0]], "rank 0 holds 3 slots, more than its 2"),
    ],
)
def test_broken_slots_are_named(slots, message):
    expert = np.array([e for row in slots for e in row])
    rank = np.repeat(np.arange(len(slots)), [len(row) for row in slots])
    placement = Placement(expert, rank, np.ones((1, len(expert))), 3, 2)
    with pytest.raises(BadInput, match=message):
        check_placement(placement, np.array([2, 2]))


@pytest.mark.parametrize(
    ("share", "message"),
    [(0.4, "sum to 0.9, not to 1"), (float("nan"), "not within"), (-0.1, "not within"), (1.5, "not within")],
)
def test_broken_shares_are_named(share, message):
    placement = two_ranks()
    share_DS = placement.share_DS.copy()
    share_DS[1, 2] = share
    with pytest.raises(BadInput, match=f"expert 1.*{message}"):
        check_placement(placement.with_shares(share_DS))


def test_duplicates_merge_and_idle_slots_go():
    twice = Placement(np.array([0, 0, 1, 0]), np.array([0, 0, 0, 1]), np.array([[0.25, 0.25, 1, 0.5]]), 2, 2)
    merged = twice.without_duplicates()
    assert merged.slots() == [[0, 1], [0]]
    assert merged.share_DS.tolist() == [[0.5, 1, 0.5]]
    idle = merged.with_shares(np.array([[1.0, 1.0, 0.0]])).without_idle_slots()
    assert idle.slots() == [[0, 1], []]
