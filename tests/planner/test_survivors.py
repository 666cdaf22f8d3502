"""Plans that survive the loss of a host: the host is taken away, and what is left is counted.

two hosts of two ranks, three slots each: 12 slots for 8 experts save 4 of them, the busiest
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import build_workload, load_cluster, solve
from planner.cost import step_cost
from planner.layer import layer_problem
from planner.placement import Placement, check_placement
from planner.solve.one_layer import Budget
from planner.solve.survivors import lost_on_each_host, spread_over_hosts, survive_host
from planner.survive import Backups, survivors_E
from tests.planner.definitions import PROFILE, routing_of, tiny_cluster, tiny_model
from tests.planner.test_layer import random_placement
from topologies import BadInput


def lost_with(placement, host_R, host):
    """Take a host away and list the experts that no rank holds any more."""
    left = {e for e, r in zip(placement.expert_S.tolist(), placement.rank_S.tolist(), strict=True) if host_R[r] != host}
    return set(range(placement.num_experts)) - left


def problem_of(hosts, ranks, experts, slots, seed=0):
    counts = np.random.default_rng(seed).integers(5, 100, experts)
    workload = build_workload(tiny_model(experts), tiny_cluster(ranks, hosts), routing_of(counts), 500)
    problem = layer_problem(workload, step_cost(workload, PROFILE, "pairwise"), np.full(ranks, slots), 0)
    return workload, problem


def test_the_busiest_are_saved():
    workload, problem = problem_of(2, 4, 8, 3)
    start = Placement.equal_shares([[0, 1], [2, 3], [4, 5], [6, 7]], 8, 2)
    spread = spread_over_hosts(problem, start, np.array([0, 0, 1, 1]))
    check_placement(spread, problem.slots_R)
    saved = survivors_E(spread, np.array([0, 0, 1, 1]))
    assert set(np.flatnonzero(saved)) == set(np.argsort(-workload.load_LE[0], kind="stable")[:4])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 3), st.integers(3, 6))
def test_as_many_survive_as_there_are_slots_for(seed, hosts, slots):
    """Every slot beyond one an expert saves one more, up to all; every expert is somewhere; no rank is overfull."""
    ranks, experts = 2 * hosts, 6
    _, problem = problem_of(hosts, ranks, experts, slots, seed)
    start = random_placement(np.random.default_rng(seed), experts, ranks, hosts)
    host_R = np.arange(ranks) // 2
    spread = spread_over_hosts(problem, start, host_R)
    check_placement(spread, problem.slots_R)
    fragile = set().union(*(lost_with(spread, host_R, host) for host in range(hosts)))
    assert experts - len(fragile) == survivors_E(spread, host_R).sum() == min(experts, slots * ranks - experts)


@pytest.mark.parametrize("exchange", ["pairwise", "two-level"])
def test_a_host_is_lost_and_no_expert_with_it(exchange):
    counts = np.random.default_rng(3).integers(10, 200, 32)
    workload = build_workload(tiny_model(32, top_k=4), load_cluster("hgx-h100:2"), routing_of(counts), 1000)
    slots_R, host_R = np.full(16, 4), np.repeat([0, 1], 8)
    free = solve(workload, PROFILE, slots_R, exchange=exchange, workers=1, budget=Budget(swaps=15, neighbourhoods=0))
    made = survive_host(free, workload, PROFILE, slots_R, workers=1)
    placement = made.solution.placements[0]
    check_placement(placement, slots_R)
    assert lost_with(placement, host_R, 0) == lost_with(placement, host_R, 1) == set()
    assert lost_on_each_host([placement], host_R) == [0, 0]
    ours = made.solution.predictions[-1].total_us
    assert made.price == pytest.approx(ours / free.predictions[-1].total_us - 1)
    assert made.solution.layers[0].objective == pytest.approx(ours)
    assert made.solution.layers[0].bound <= ours


def test_a_copy_too_many_gives_way():
    """Host 0 is full of expert 0 where there is room, host 1 holds it twice: one of the two makes place for expert 1.

    rank (host)   0 (0)  1 (0)  2 (1)  3 (1)
    slots         2      2      1      1
    held          0 1    0 .    0      0
    """
    _, problem = problem_of(2, 4, 2, 2)
    problem = replace(problem, slots_R=np.array([2, 2, 1, 1]))
    spread = spread_over_hosts(problem, Placement.equal_shares([[0, 1], [0], [0], [0]], 2, 2), np.array([0, 0, 1, 1]))
    check_placement(spread, problem.slots_R)
    assert survivors_E(spread, np.array([0, 0, 1, 1])).all()


def test_what_cannot_be_saved_is_counted_by_host():
    placement = Placement.equal_shares([[0, 1], [2], [3], [0, 4, 5]], 6, 2)
    assert lost_on_each_host([placement, placement], np.array([0, 0, 1, 1])) == [2 * 2, 2 * 3]


def test_a_placement_that_falls_short_is_never_cheaper():
    _, problem = problem_of(2, 4, 8, 3)
    short = Placement.equal_shares([[0, 1], [2, 3], [4, 5], [6, 7]], 8, 2)
    demanding = replace(problem, backups=Backups(np.array([0, 0, 1, 1]), 2))
    assert demanding.evaluate(short).layer_us > 1e9
    saved = Placement.equal_shares([[0, 1, 4], [2, 3], [4, 5, 0], [6, 7]], 8, 2)
    assert demanding.evaluate(saved).layer_us == problem.evaluate(saved).layer_us


def test_one_host_is_refused():
    workload, _ = problem_of(1, 4, 8, 3)
    free = solve(workload, PROFILE, np.full(4, 3), exchange="pairwise", time_limit_s=0)
    with pytest.raises(BadInput, match="one host only"):
        survive_host(free, workload, PROFILE, np.full(4, 3))
