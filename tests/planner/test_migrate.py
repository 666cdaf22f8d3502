"""Moves from plan to plan: worked out by hand, and applied to the old slots.

two hosts of two ranks        old  [0 1] [2 3] | [4 5] [0 6]
                              new  [0 6] [2 0] | [4 5] [1 6]

6 -> rank 0 from rank 3 (the only holder, other host); 0 -> rank 1 from rank 0 (same host, not rank 3);
1 -> rank 3 from rank 0; 3 is dropped
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.migrate import NOWHERE, migration, pay_back_steps
from planner.placement import Placement
from tests.planner.definitions import PROFILE, tiny_cluster, tiny_model
from tests.planner.test_layer import random_placement
from topologies import routes

OLD = [[0, 1], [2, 3], [4, 5], [0, 6]]
NEW = [[0, 6], [2, 0], [4, 5], [1, 6]]


def placed(rows, experts=7):
    return Placement.equal_shares(rows, experts, 2)


def migrated(old=OLD, new=NEW, layers=1):
    model, cluster = tiny_model(7), tiny_cluster(4, 2)
    numbers = range(3, 3 + layers)
    return migration([placed(old)] * layers, [placed(new)] * layers, numbers, cluster, model, PROFILE), model, cluster


def test_moves_by_hand():
    found, model, _ = migrated()
    moves = {(move.expert, move.rank): (move.source, move.slot) for move in found.moves}
    assert moves == {(6, 0): (3, 1), (0, 1): (0, 1), (1, 3): (0, 0)}
    assert {move.layer for move in found.moves} == {3}
    assert found.total_bytes == 3 * model.expert_bytes
    assert (found.slots, found.relabelled, found.lost) == (8, 0, 0)


def test_links_and_time_by_hand():
    """Bytes of every link summed transfer by transfer; each layer waits for its slowest link, then the next begins."""
    found, model, cluster = migrated(layers=2)
    route, regime = routes(cluster).toarray(), PROFILE.regime(model.expert_bytes)
    load = model.expert_bytes * (route[3 * 4 + 0] + route[0 * 4 + 1] + route[0 * 4 + 3])
    slowest = max(
        count / ({"local": 1.0, **regime.efficiency}[link.kind] * link.gbps * 1000)
        for count, link in zip(load, cluster.links, strict=True)
    )
    assert found.link_bytes_N == pytest.approx(2 * load)
    assert found.time_us == pytest.approx(2 * (regime.alpha_inter_us + slowest))


def test_a_layer_that_stays_takes_no_time():
    found, _, _ = migrated(new=OLD)
    assert (found.moves, found.time_us, found.link_bytes_N.sum()) == ((), 0.0, 0.0)
    assert pay_back_steps(found, 10.0, 10.0) == 0.0


def test_what_no_rank_holds_comes_from_the_checkpoint():
    found, _, _ = migrated(old=[[0, 1], [2], [4, 5], [0]])
    lost = {(move.expert, move.rank) for move in found.moves if move.source == NOWHERE}
    assert lost == {(6, 0), (6, 3)}
    assert found.lost == 2


def test_holders_that_are_as_near_take_turns():
    """Expert 0 goes to ranks 2 and 3 of the other host; ranks 0 and 1 hold it, one transfer each."""
    found, _, _ = migrated(old=[[0, 1], [0, 2], [3, 4], [5, 6]], new=[[0, 1], [0, 2], [0, 3], [0, 5]])
    assert sorted(move.source for move in found.moves if move.expert == 0) == [0, 1]


def test_pay_back():
    found, _, _ = migrated()
    assert pay_back_steps(found, 100.0, 90.0) == pytest.approx(found.time_us / 10)
    assert pay_back_steps(found, 90.0, 100.0) is None


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_moves_turn_the_old_holdings_into_the_new(seed):
    rng = np.random.default_rng(seed)
    old, new = random_placement(rng, 7, 4, 2), random_placement(rng, 7, 4, 2)
    found = migration([old], [new], [0], tiny_cluster(4, 2), tiny_model(7), PROFILE)
    before, after = ([set(row) for row in placement.slots()] for placement in (old, new))
    arrived = [set() for _ in range(4)]
    for move in found.moves:
        assert move.expert in before[move.source]
        assert move.expert not in before[move.rank]
        assert new.slots()[move.rank][move.slot] == move.expert
        arrived[move.rank].add(move.expert)
    assert [kept & held | come for kept, held, come in zip(before, after, arrived, strict=True)] == after
    assert len(found.moves) == sum(map(len, arrived))
