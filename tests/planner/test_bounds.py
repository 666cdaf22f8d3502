"""Lower bounds where rows are counted by distinct target, against every placement of tiny layers and against loops."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost import step_cost
from planner.layer import layer_problem
from planner.placement import Placement
from planner.routing import Routing
from planner.solve.bounds import BoundedLayers, lower_bound, lower_bounds
from planner.solve.bounds.cohesion import cohesive_parts
from planner.solve.bounds.companions import co_visits, companion_parts
from planner.wire import TokenSample
from planner.workload import build_workload
from tests.planner.definitions import (
    PROFILE,
    all_placements,
    best_by_lp,
    layer_us,
    routing_of,
    tiny_cluster,
    tiny_model,
)
from tests.planner.test_layer import random_placement
from topologies import load_cluster

RULES = {"companions": companion_parts, "cohesion": cohesive_parts}


def traced(seed, experts, ranks, hosts, tokens=30, top_k=3):
    """Tokens that prefer experts near each other, so that placement matters: [tokens, top_k] distinct ids."""
    rng = np.random.default_rng(seed)
    chance = np.exp(-np.abs(np.subtract.outer(np.arange(experts), np.arange(experts))))
    ids = np.stack(
        [
            rng.choice(experts, top_k, replace=False, p=row / row.sum())
            for row in chance[rng.integers(experts, size=tokens)]
        ]
    )
    counts = np.bincount(ids.ravel(), minlength=experts)
    return build_workload(tiny_model(experts, top_k), tiny_cluster(ranks, hosts), routing_of(counts, ids[None]), 4000)


def shares_of_every_kind(rng, placement):
    """The shares to try on given slots: alike, one copy for all, local-looking corners, and random ones."""
    yield placement
    for _ in range(3):
        share = rng.random(placement.share_DS.shape) ** rng.choice([0.2, 1.0, 8.0]) + 1e-9
        if rng.random() < 0.5:  # every domain picks one copy of each expert
            best = np.zeros_like(share)
            for d, e in itertools.product(range(placement.num_domains), range(placement.num_experts)):
                mine = np.flatnonzero(placement.expert_S == e)
                best[d, rng.choice(mine)] = 1.0
            share = best
        for e in range(placement.num_experts):
            mine = placement.expert_S == e
            share[:, mine] /= share[:, mine].sum(axis=1, keepdims=True)
        yield placement.with_shares(share)


@pytest.mark.parametrize(("experts", "ranks", "slots"), [(2, 4, 1), (3, 4, 2), (4, 3, 2)])
@pytest.mark.parametrize("tokens", [0.5, 4, 60])
def test_in_a_small_batch_the_weights_of_one_expert_are_in_the_bound(experts, ranks, slots, tokens):
    """Every placement with its best shares: none is below the bound, and on one host the best is near it.

    2 experts on 4 ranks: whoever serves anything reads the weights of a whole expert, not of 2 / 4 of one.
    """
    counts = np.arange(experts) + 3
    workload = build_workload(tiny_model(experts), tiny_cluster(ranks, 1), routing_of(counts), tokens)
    problem = layer_problem(workload, step_cost(workload, PROFILE, "pairwise"), np.full(ranks, slots), 0)
    best = min(best_by_lp(workload, held, balance=False) for held in all_placements(experts, ranks, slots))
    bound = lower_bound(problem)
    assert bound <= best * (1 + 1e-9)
    if experts <= ranks:
        assert bound >= 0.97 * best


@pytest.mark.parametrize("exchange", ["dedup", "two-level"])
@pytest.mark.parametrize(
    ("experts", "ranks", "hosts", "slots", "seed"),
    [(4, 3, 3, 2, 0), (4, 3, 3, 2, 1), (4, 2, 2, 3, 2), (5, 2, 2, 3, 3), (5, 2, 2, 3, 4), (4, 4, 2, 1, 5)],
)
def test_no_placement_is_below_the_bound(experts, ranks, hosts, slots, exchange, seed):
    """Every choice of slots, with shares of every kind; the cheapest by the definitions too."""
    workload = traced(seed, experts, ranks, hosts, top_k=min(3, experts - 1))
    problem = layer_problem(workload, step_cost(workload, PROFILE, exchange), np.full(ranks, slots), 0)
    bound, quick = lower_bound(problem, thorough=True), lower_bound(problem)
    rng = np.random.default_rng(seed)
    best, cheapest = float("inf"), None
    for held in all_placements(experts, ranks, slots):
        for placement in shares_of_every_kind(rng, Placement.equal_shares(held, experts, workload.num_domains)):
            us = problem.evaluate(placement).layer_us
            if us < best:
                best, cheapest = us, placement
    assert quick <= bound <= best * (1 + 1e-9)
    assert sum(layer_us(workload, cheapest, exchange)) == pytest.approx(best, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), experts=st.integers(2, 9), targets=st.integers(1, 4), rule=st.sampled_from(list(RULES)),
    top_k=st.integers(1, 5),
)  # fmt: skip
def test_parts_of_rows_never_exceed_the_rows(seed, experts, targets, rule, top_k):
    """Rows to a target counted token by token, every way its experts may be shared out, against the sum of parts.

    A target holds at most `slots` experts; a pair goes there with a probability of its expert's own.
    """
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(experts)[: min(top_k, experts)] for _ in range(12)])
    ids[rng.random(ids.shape) < 0.1] = -1
    if not (ids >= 0).any():
        return
    sample = TokenSample.of_ids(ids, experts, None, np.ones(1))
    together = co_visits(sample)
    for _ in range(targets):
        slots = int(rng.integers(1, experts + 1))
        part = RULES[rule](together, slots)
        assert part.min() >= 0
        assert part.max() <= 1 + 1e-12
        share = np.zeros(experts)
        share[rng.permutation(experts)[:slots]] = rng.choice([0.0, 0.3, 0.8, 1.0], slots)
        rows = sum(1 - np.prod([1 - share[e] for e in token if e >= 0]) for token in ids)
        pairs = np.array([(ids == e).sum() for e in range(experts)])
        assert (part * pairs * share).sum() <= rows + 1e-9


@pytest.mark.parametrize("rule", list(RULES))
def test_a_clique_is_bounded_exactly(rule):
    """Tokens that visit experts 0 1 2 3 or 4 5 6 7, two slots a target: a row carries two pairs, as the bound says."""
    ids = np.array([[0, 1, 2, 3], [4, 5, 6, 7]] * 8)
    together = co_visits(TokenSample.of_ids(ids, 8, None, np.ones(1)))
    assert RULES[rule](together, 2) == pytest.approx(np.full(8, 0.5), abs=0.02 if rule == "companions" else 0.2)
    assert RULES[rule](together, 4) == pytest.approx(np.full(8, 0.25), abs=1e-9)
    assert companion_parts(together, 1) == pytest.approx(np.ones(8))


@pytest.mark.parametrize(("exchange", "at_least"), [("two-level", 1.05), ("dedup", 1.2)])
def test_looking_at_tokens_is_worth_it_where_links_set_the_pace(exchange, at_least):
    """128 experts on four hosts, prefill: what the thorough bound adds, still below a plan by the same price."""
    counts = np.random.default_rng(0).zipf(1.7, 128).clip(1, 50).astype(float)
    model = tiny_model(128, top_k=6, groups=8, top_groups=4, hidden=7168)
    workload = build_workload(model, load_cluster("hgx-h100:4"), Routing((0,), counts[None, None]), 4096)
    problem = layer_problem(workload, step_cost(workload, PROFILE, exchange), np.full(32, 5), 0)
    thorough = lower_bound(problem, thorough=True)
    assert thorough > at_least * lower_bound(problem)
    assert lower_bound(problem) == pytest.approx(lower_bounds(BoundedLayers.of_problem(problem))[0])
    rng = np.random.default_rng(1)
    for _ in range(5):
        assert thorough <= problem.evaluate(random_placement(rng, 128, 32, 4, slots=5)).layer_us


def test_sources_with_tokens_of_their_own_keep_the_quick_bound():
    counts = np.random.default_rng(0).integers(1, 50, (1, 16, 32)).astype(float)
    workload = build_workload(tiny_model(32, top_k=4), load_cluster("hgx-h100:2"), Routing((0,), counts), 1000)
    problem = layer_problem(workload, step_cost(workload, PROFILE, "two-level"), np.full(16, 3), 0)
    assert lower_bound(problem, thorough=True) == lower_bound(problem)
