"""Trades between ranks that are alike, against every order of ranks tried one by one.

two hosts of two ranks        old  [0 1] [2 3] | [4 5] [6 7]
                              new  [6 7] [4 5] | [2 3] [0 1]     the same plan in another order: nothing has to move
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.align import align, arrivals, in_old_slots
from planner.cost import step_cost
from planner.layer import layer_problem
from planner.placement import Placement, check_placement
from planner.workload import build_workload
from tests.planner.definitions import PROFILE, layer_us, routing_of, tiny_cluster, tiny_model
from tests.planner.test_layer import made_workload, random_placement


def problem_on(cluster, experts=8, slots=3, exchange="pairwise", seed=0):
    counts = np.random.default_rng(seed).integers(1, 50, experts)
    workload = build_workload(tiny_model(experts), cluster, routing_of(counts), 100)
    return workload, layer_problem(
        workload, step_cost(workload, PROFILE, exchange), np.full(cluster.num_ranks, slots), 0
    )


def content(placement):
    """What a placement says, whatever the order of slots: (rank, expert) -> shares."""
    keys = zip(placement.rank_S.tolist(), placement.expert_S.tolist(), strict=True)
    return {key: tuple(share) for key, share in zip(keys, placement.share_DS.T.tolist(), strict=True)}


def test_the_same_plan_in_another_order_moves_nothing():
    _, problem = problem_on(tiny_cluster(4, 2))
    old = Placement.equal_shares([[0, 1], [2, 3], [4, 5], [6, 7]], 8, 2)
    new = Placement.equal_shares([[6, 7], [5, 4], [2, 3], [0, 1]], 8, 2)
    aligned = align(problem, old, new)
    assert arrivals(old, aligned) == 0
    assert aligned.slots() == old.slots()


@pytest.mark.parametrize("seed", range(6))
def test_fewest_arrivals_of_all_orders_on_one_host(seed):
    """On one host every order of the ranks costs the same: all 24 are tried."""
    rng = np.random.default_rng(seed)
    workload, problem = problem_on(tiny_cluster(4, 1), seed=seed)
    old, new = random_placement(rng, 8, 4, 1), random_placement(rng, 8, 4, 1)
    rows = new.slots()
    fewest = min(
        sum(len(set(row) - set(before)) for row, before in zip(order, old.slots(), strict=True))
        for order in itertools.permutations(rows)
    )
    aligned = align(problem, old, new)
    assert arrivals(old, aligned) == fewest
    assert sum(layer_us(workload, aligned)) == pytest.approx(sum(layer_us(workload, new)), rel=1e-9)


def test_domains_trade_places_with_their_shares():
    """What host 0 held is on host 1 and the other way round; local shares stay local."""
    workload, problem = problem_on(tiny_cluster(4, 2))
    old = Placement.equal_shares([[0, 1, 2], [3, 4], [0, 5], [6, 7]], 8, 2)
    local = np.array([[1, 1, 1, 1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1]], float)
    old = old.with_shares(local)
    flipped = Placement.equal_shares([[0, 5], [6, 7], [0, 1, 2], [3, 4]], 8, 2)
    flipped = flipped.with_shares(np.array([[1, 1, 1, 1, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1]], float))
    assert layer_us(workload, old) == pytest.approx(layer_us(workload, flipped))
    assert content(align(problem, old, flipped)) == content(old)


def test_ranks_of_other_speed_or_slots_keep_their_contents():
    cluster = tiny_cluster(4, 1).with_speeds([1.0, 0.5, 1.0, 1.0])
    _, problem = problem_on(cluster)
    old = Placement.equal_shares([[0, 1], [2, 3], [4, 5], [6, 7]], 8, 1)
    new = Placement.equal_shares([[4, 5], [6, 7], [0, 1], [2, 3]], 8, 1)
    aligned = align(problem, old, new)
    assert set(aligned.slots()[1]) == {6, 7}
    assert arrivals(old, aligned) == 4  # ranks 1 and 3 hold what the other held; 0 and 2 traded back


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["pairwise", "dedup", "two-level"]))
def test_never_dearer_never_more_moves_same_content(seed, exchange):
    rng = np.random.default_rng(seed)
    workload = made_workload(rng, trace=True)
    problem = layer_problem(workload, step_cost(workload, PROFILE, exchange), np.full(4, 3), 0)
    old, new = random_placement(rng, 6, 4, 2), random_placement(rng, 6, 4, 2)
    aligned = align(problem, old, new)
    check_placement(aligned, problem.slots_R)
    assert problem.evaluate(aligned).layer_us <= problem.evaluate(new).layer_us * (1 + 1e-8)
    assert arrivals(old, aligned) <= arrivals(old, new)
    assert sorted(map(sorted, aligned.slots())) == sorted(map(sorted, new.slots()))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_experts_that_stay_keep_their_slot(seed):
    rng = np.random.default_rng(seed)
    old, new = random_placement(rng, 6, 4, 2), random_placement(rng, 6, 4, 2)
    placed = in_old_slots(old, new)
    assert content(placed) == content(new)
    for before, after in zip(old.slots(), placed.slots(), strict=True):
        for slot, expert in enumerate(before):
            if expert in after and slot < len(after):
                assert after[slot] == expert
