"""Ranks that follow tokens from layer to layer: against every assignment of tiny models."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.solve.affinity import follow, travel
from topologies import BadInput


def flows(seed, layers, experts):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 9, (layers - 1, experts, experts)).astype(float)


@pytest.mark.parametrize("seed", range(6))
def test_equals_brute_force(seed):
    """Three layers of four experts on two ranks, two each: 6 x 6 x 6 ways."""
    flow, price = flows(seed, 3, 4), np.array([[0.0, 1.0], [1.0, 0.0]])
    ways = [np.array(way) for way in itertools.product((0, 1), repeat=4) if sum(way) == 2]
    best = min(travel(flow, price, np.array(ranks)) for ranks in itertools.product(ways, repeat=3))
    assert travel(flow, price, follow(flow, price, starts=16)) == best


def test_hosts_count_where_their_price_does():
    """Experts 0..7 lead to 7..0: on four ranks of two hosts every token stays where it is."""
    flow = np.eye(8)[::-1][None]
    price = np.array([[0, 1, 9, 9], [1, 0, 9, 9], [9, 9, 0, 1], [9, 9, 1, 0]], dtype=float)
    ranks = follow(flow, price)
    assert travel(flow, price, ranks) == 0
    assert (ranks[0] == ranks[1][::-1]).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), layers=st.integers(1, 4), each=st.integers(1, 3), ranks=st.integers(1, 4))
def test_every_rank_holds_as_many_and_more_starts_never_hurt(seed, layers, each, ranks):
    flow = flows(seed, layers, each * ranks)
    price = np.random.default_rng(seed).random((ranks, ranks))
    np.fill_diagonal(price, 0)
    one, many = (follow(flow, price, seed, starts) for starts in (1, 4))
    for found in (one, many):
        assert found.shape == (layers, each * ranks)
        assert all((np.bincount(row, minlength=ranks) == each).all() for row in found)
    assert travel(flow, price, many) <= travel(flow, price, one)
    assert (follow(flow, price, seed, 4) == many).all()
    tokens = sum(
        flow[layer, e, f] * price[many[layer, e], many[layer + 1, f]]
        for layer in range(layers - 1)
        for e in range(each * ranks)
        for f in range(each * ranks)
    )
    assert travel(flow, price, many) == pytest.approx(tokens)


def test_ranks_that_do_not_divide_the_experts_are_refused():
    with pytest.raises(BadInput, match=r"experts \(5\) must be a multiple of ranks \(2\)"):
        follow(np.ones((1, 5, 5)), np.eye(2))
