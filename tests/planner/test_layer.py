"""Rows, link loads and times against plain loops over tokens and routes."""

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost import step_cost
from planner.layer import layer_problem
from planner.placement import Placement
from planner.timing import EXCHANGES
from planner.wire import DistinctRows, TokenSample
from planner.workload import build_workload
from tests.planner.definitions import PROFILE, layer_us, pair_rows, routing_of, tiny_cluster, tiny_model
from topologies import load_cluster


def random_placement(rng, experts, ranks, domains, slots=3):
    """Every expert somewhere, some twice or more, random shares with some zeros and ones."""
    held = [[] for _ in range(ranks)]
    for e in range(experts):
        free = [g for g in range(ranks) if len(held[g]) < slots]
        held[rng.choice(free)].append(e)
    for g in range(ranks):
        for e in rng.permutation(experts):
            if len(held[g]) < slots and e not in held[g] and rng.random() < 0.5:
                held[g].append(int(e))
    placement = Placement.equal_shares(held, experts, domains)
    share = rng.random(placement.share_DS.shape) * (rng.random(placement.share_DS.shape) < 0.8) + 1e-3
    for e in range(experts):
        mine = placement.expert_S == e
        share[:, mine] /= share[:, mine].sum(axis=1, keepdims=True)
    return placement.with_shares(share)


def made_workload(rng, *, trace, source=False, ranks=4, hosts=2, experts=6):
    model, cluster = tiny_model(experts), tiny_cluster(ranks, hosts)
    if trace:
        ids = np.array([rng.choice(experts, 2, replace=False) for _ in range(24)])
        ids[0, 1] = -1  # a masked entry
        counts = np.bincount(ids[ids >= 0], minlength=experts)
        return build_workload(model, cluster, routing_of(counts, ids[None]), 1000)
    counts = rng.integers(1, 100, (ranks, experts) if source else experts)
    return build_workload(model, cluster, routing_of(counts), 1000)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("shape", [(4, 2), (2, 1), (6, 3)])
def test_times_follow_the_definitions(exchange, shape):
    rng = np.random.default_rng(7)
    workload = made_workload(rng, trace=True, ranks=shape[0], hosts=shape[1])
    cost = step_cost(workload, PROFILE, exchange)
    for _ in range(4):
        placement = random_placement(rng, 6, shape[0], shape[1], slots=4)
        priced = layer_problem(workload, cost, np.full(shape[0], 6), 0).evaluate(placement)
        assert (priced.dispatch_us, priced.compute_us, priced.combine_us) == pytest.approx(
            layer_us(workload, placement, exchange), rel=1e-9
        )


def test_sources_that_differ_by_rank():
    rng = np.random.default_rng(3)
    workload = made_workload(rng, trace=False, source=True)
    assert workload.class_of_rank_R.tolist() == [0, 1, 2, 3]
    placement = random_placement(rng, 6, 4, 2, slots=4)
    priced = layer_problem(workload, step_cost(workload, PROFILE, "pairwise"), np.full(4, 6), 0).evaluate(placement)
    assert (priced.dispatch_us, priced.compute_us, priced.combine_us) == pytest.approx(
        layer_us(workload, placement), rel=1e-9
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_no_row_is_lost_and_imbalance_is_at_least_one(seed):
    rng = np.random.default_rng(seed)
    workload = made_workload(rng, trace=False)
    placement = random_placement(rng, 6, 4, 2)
    priced = layer_problem(workload, step_cost(workload, PROFILE, "pairwise"), np.full(4, 6), 0).evaluate(placement)
    assert priced.load_R.sum() == pytest.approx(1000 * 4 * 2)
    assert priced.load_R == pytest.approx(pair_rows(workload, placement)[1])
    assert priced.imbalance >= 1


def test_whole_shares_count_a_trace_exactly():
    """Tokens {0,1} {0,2} {3,1} on ranks 0: {0,1}, 1: {2,3}: rank 0 is visited by 3 tokens, rank 1 by 2.

    rank      0      1
    slots   [0,1]  [2,3]
    tokens  01 -> 0 | 02 -> 0,1 | 31 -> 1,0
    """
    tokens = TokenSample.of_ids(np.array([[0, 1], [0, 2], [3, 1]]), 4, None, np.array([3.0]))
    placement = Placement.equal_shares([[0, 1], [2, 3]], 4, 1)
    counted = DistinctRows(tokens, np.array([0]), placement, np.arange(2), 2)
    assert counted.rows_CT.tolist() == [[3.0, 2.0]]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_gradient_is_the_difference_of_rows(seed, by_class):
    """The rows are multilinear in the shares, so a finite difference of one share is exact."""
    rng = np.random.default_rng(seed)
    placement = random_placement(rng, 5, 3, 2)
    ids = np.array([rng.choice(5, 2, replace=False) for _ in range(9)])
    tokens = TokenSample.of_ids(ids, 5, rng.permutation(np.arange(9) % 2) if by_class else None, np.array([7.0, 4.0]))
    classes = np.array([0, 1])

    def rows(share_DS):
        return DistinctRows(tokens, classes, placement.with_shares(share_DS), np.arange(3), 3).rows_CT

    gradient = DistinctRows(tokens, classes, placement, np.arange(3), 3).gradient_CET
    for slot, domain in itertools.product(range(len(placement.expert_S)), range(2)):
        expert, rank = placement.expert_S[slot], placement.rank_S[slot]
        lower, upper = placement.share_DS.copy(), placement.share_DS.copy()
        lower[domain, slot], upper[domain, slot] = 0.0, 0.5
        slope = (rows(upper) - rows(lower))[domain, rank] / 0.5
        assert gradient[domain, expert, rank] == pytest.approx(slope, rel=1e-6, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([2, 3, 70]), st.integers(1, 5))
def test_what_is_near_is_counted_as_anew(seed, by_class, ranks, moved):
    """3 domains; on 70 ranks chances are kept sparse. A few slots trade ranks, and one expert's shares change."""
    rng = np.random.default_rng(seed)
    experts, domains = 140, 3
    placement = random_placement(rng, experts, ranks, domains, slots=100 if ranks < 70 else 4)
    ids = np.array([rng.choice(experts, 3, replace=False) for _ in range(40)])
    class_P = rng.integers(0, domains, 40) if by_class else None
    tokens = TokenSample.of_ids(ids, experts, class_P, np.full(domains, 40.0))

    def counted(one, near=None):
        return DistinctRows(tokens, np.arange(domains), one, np.arange(ranks), ranks, near)

    rank_S, share_DS = placement.rank_S.copy(), placement.share_DS.copy()
    slots = rng.choice(len(rank_S), moved + 1, replace=False)
    rank_S[slots] = np.roll(rank_S[slots], 1)
    mine_S = placement.expert_S == placement.expert_S[slots[0]]
    share_DS[:, mine_S] = np.roll(share_DS[:, mine_S], 1, axis=1)
    order = np.argsort(rank_S, kind="stable")
    other = Placement(placement.expert_S[order], rank_S[order], share_DS[:, order], experts, ranks)
    before = counted(placement)
    near, anew = counted(other, before), counted(other)
    assert near.rows_CT == pytest.approx(anew.rows_CT, rel=1e-12, abs=1e-12)
    assert near.gradient_CET == pytest.approx(anew.gradient_CET, rel=1e-12)
    assert counted(placement, near).rows_CT == pytest.approx(before.rows_CT, rel=1e-12, abs=1e-12)


def test_uniform_routing_meets_the_closed_form():
    """Distinct domains of uniform routing: D * (1 - C(E - E/D, k) / C(E, k)) (design, section 4)."""
    model = tiny_model(64, top_k=8)
    workload = build_workload(model, load_cluster("hgx-h100:4"), routing_of(np.ones(64)), 1000)
    problem = layer_problem(workload, step_cost(workload, PROFILE, "two-level"), np.full(32, 2), 0)
    linear = Placement.equal_shares([[2 * g, 2 * g + 1] for g in range(32)], 64, 4)
    domains = problem.evaluate(linear).counted["domain"].rows_CT[0].sum() / 1000
    assert domains == pytest.approx(4 * (1 - comb(48, 8) / comb(64, 8)), rel=0.01)


def test_own_rank_costs_no_wire():
    """One rank: nothing travels, only start-up remains."""
    workload = made_workload(np.random.default_rng(0), trace=True, ranks=1, hosts=1)
    for exchange in EXCHANGES:
        problem = layer_problem(workload, step_cost(workload, PROFILE, exchange), np.full(1, 6), 0)
        priced = problem.evaluate(Placement.equal_shares([range(6)], 6, 1))
        assert priced.dispatch_us == problem.cost.dispatch.alpha_us


def test_slots_that_serve_nobody_read_no_weights():
    workload = made_workload(np.random.default_rng(0), trace=False, ranks=2, hosts=1)
    problem = layer_problem(workload, step_cost(workload, PROFILE, "pairwise"), np.full(2, 6), 0)
    spread = Placement.equal_shares([[0, 1, 2, 3], [3, 4, 5]], 6, 1)
    share = spread.share_DS.copy()
    share[0, 3], share[0, 4] = 1.0, 0.0
    idle = problem.evaluate(spread.with_shares(share))
    alone = problem.evaluate(Placement.equal_shares([[0, 1, 2, 3], [4, 5]], 6, 1))
    assert idle.layer_us == pytest.approx(alone.layer_us)
