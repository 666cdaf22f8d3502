import time
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from planner.model import load_model
from planner.routing import load_routing
from planner.sampling import UNIT, _to_units, inclusion_rates, sample_tokens
from tests.planner.routing_data import FUZZ, RECORDER, data_file
from topologies.errors import BadInput


def rates_of(tokens_LTK, experts: int) -> np.ndarray:
    """The part of the tokens that visit each expert, [L, E]."""
    return np.stack([np.bincount(layer.ravel(), minlength=experts) for layer in tokens_LTK]) / tokens_LTK.shape[1]


def groups_of(tokens_LTK, size: int) -> np.ndarray:
    """The number of groups of `size` experts that each token visits, [L, T]."""
    ordered = np.sort(tokens_LTK.astype(int) // size, axis=2)
    return 1 + (np.diff(ordered, axis=2) > 0).sum(axis=2)


def assert_distinct(tokens_LTK) -> None:
    assert (np.diff(tokens_LTK.astype(int), axis=2) > 0).all()  # a token's experts come ascending


def assert_marginals(tokens_LTK, pi_LE) -> None:
    """Every rate within 5 standard errors, and all of them together as far off as chance has it."""
    T = tokens_LTK.shape[1]
    variance = pi_LE * (1 - pi_LE) / T
    off = rates_of(tokens_LTK, pi_LE.shape[1]) - pi_LE
    known = variance > 1e-12
    assert np.abs(off[~known]).max(initial=0.0) < 1e-3
    score = off[known] / np.sqrt(variance[known])
    assert np.abs(score).max() < 5.0 + np.sqrt(T * 1e-6)
    assert 0.8 < np.sqrt((score**2).mean()) < 1.2


@pytest.mark.parametrize(("groups", "top_groups"), [(1, 1), (8, 4), (8, 3), (16, 16)])
@pytest.mark.parametrize("skew", [0.0, 1.0, 2.0])
def test_marginals_limits_and_distinctness(groups, top_groups, skew):
    rng = np.random.default_rng(7)
    weights = np.exp(skew * 0.5 * rng.standard_normal((6, 64)))
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    tokens = sample_tokens(probabilities, 6, groups, top_groups, 20_000, seed=3)
    assert tokens.shape == (6, 20_000, 6)
    assert_distinct(tokens)
    assert groups_of(tokens, 64 // groups).max() <= top_groups if groups > 1 else True
    assert_marginals(tokens, inclusion_rates(probabilities, 6))


@pytest.mark.parametrize("name", ["prefill_in1024", "decode_in2000out100"])
@pytest.mark.parametrize(("groups", "top_groups"), [(1, 1), (8, 4)])
def test_real_loads_in_time(name, groups, top_groups):
    path = data_file(f"routing/sglang_deepseek_r1/{name}.json")
    probabilities = load_routing(path, load_model("deepseek-v3")).probabilities
    started = time.process_time()
    tokens = sample_tokens(probabilities, 8, groups, top_groups, 2048, seed=0)
    assert time.process_time() - started < 5  # 0.8-1.3 s on a quiet core; the target is 2.5 s
    assert tokens.shape == (58, 2048, 8)
    assert_distinct(tokens)
    assert_marginals(tokens, inclusion_rates(probabilities, 8))
    if groups > 1:
        assert groups_of(tokens, 32).max() <= 4


def test_extreme_skew_of_the_recorder_dump():
    probabilities = load_routing(data_file(RECORDER), load_model("deepseek-v3")).probabilities
    tokens = sample_tokens(probabilities, 8, 8, 4, 4096, seed=0)
    assert_distinct(tokens)
    assert groups_of(tokens, 32).max() <= 4
    assert np.abs(rates_of(tokens, 256) - inclusion_rates(probabilities, 8)).max() < 0.05


@pytest.mark.parametrize(
    ("experts", "top_k", "domains"), [(256, 8, 4), (256, 8, 8), (256, 8, 32), (64, 6, 8), (8, 2, 4)]
)
def test_uniform_routing_visits_as_many_domains_as_the_closed_form(experts, top_k, domains):
    tokens = sample_tokens(np.full((8, experts), 1 / experts), top_k, 1, 1, 8192, seed=1)
    expected = domains * (1 - comb(experts - experts // domains, top_k) / comb(experts, top_k))
    assert groups_of(tokens, experts // domains).mean() == pytest.approx(expected, rel=0.01)


def test_pairs_of_uniform_routing_are_those_of_simple_random_sampling():
    tokens = sample_tokens(np.full((1, 12), 1 / 12), 3, 1, 1, 60_000, seed=2)[0]
    together = np.zeros((12, 12))
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        np.add.at(together, (tokens[:, a], tokens[:, b]), 1)
    pairs = together[np.triu_indices(12, 1)] / 60_000
    off = pairs / (3 * 2 / (12 * 11)) - 1
    assert np.sqrt((off**2).mean()) < 0.04  # chance alone: 0.019 from the tokens, 0.02 from the orders they share
    assert np.abs(off).max() < 0.15


def test_groups_of_uniform_routing_are_chosen_evenly():
    """All sets of 2 of 4 groups, equally often: 6 sets."""
    tokens = sample_tokens(np.full((1, 16), 1 / 16), 6, 4, 2, 30_000, seed=2)[0] // 4
    sets = {}
    for row in tokens:
        chosen = tuple(sorted(set(row.tolist())))
        sets[chosen] = sets.get(chosen, 0) + 1
    assert len(sets) == 6
    assert np.array(list(sets.values())) / 30_000 == pytest.approx(1 / 6, abs=0.01)


def test_same_seed_same_tokens_and_layers_stand_alone():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(32), 3)
    first = sample_tokens(probabilities, 4, 4, 2, 300, seed=5)
    assert (first == sample_tokens(probabilities, 4, 4, 2, 300, seed=5)).all()
    assert (first != sample_tokens(probabilities, 4, 4, 2, 300, seed=6)).any()
    assert (first[:2] == sample_tokens(probabilities[:2], 4, 4, 2, 300, seed=5)).all()


def test_an_expert_that_everyone_visits_and_experts_that_nobody_does():
    probabilities = np.array([[1.0, 1e-3, 1e-3, 1e-3, 0.0, 0.0, 0.0, 0.0]])
    tokens = sample_tokens(probabilities, 2, 1, 1, 3000, seed=0)
    assert (tokens[0, :, 0] == 0).all()
    assert set(tokens[0, :, 1].tolist()) == {1, 2, 3}
    lonely = sample_tokens(np.eye(8)[:1], 3, 4, 2, 3000, seed=0)  # one expert has all visits: the others fill up evenly
    assert (lonely[0, :, 0] == 0).mean() > 0.995
    assert set(lonely[0, :, 1:].ravel().tolist()) == set(range(1, 8))


def test_no_tokens():
    assert sample_tokens(np.ones((2, 8)), 2, 4, 2, 0, seed=0).shape == (2, 0, 2)
    assert sample_tokens(np.ones((2, 8)), 8, 1, 1, 2, seed=0)[0].tolist() == [list(range(8))] * 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.ones(8), 2, 1, 1, 1, 0), "shape [8]"),
        ((np.ones((0, 8)), 2, 1, 1, 1, 0), "shape [0, 8]"),
        ((np.zeros((1, 8)), 2, 1, 1, 1, 0), "not all 0"),
        ((-np.ones((1, 8)), 2, 1, 1, 1, 0), "at least 0"),
        ((np.full((1, 8), np.nan), 2, 1, 1, 1, 0), "finite"),
        ((np.ones((1, 8)), 9, 1, 1, 1, 0), "top_k (9)"),
        ((np.ones((1, 8)), 0, 1, 1, 1, 0), "top_k (0)"),
        ((np.ones((1, 8)), 2, 3, 1, 1, 0), "groups (3) must divide experts (8)"),
        ((np.ones((1, 8)), 2, 4, 5, 1, 0), "top_groups (5)"),
        ((np.ones((1, 8)), 3, 4, 1, 1, 0), "top_k (3) > experts in top_groups groups (2)"),
        ((np.ones((1, 8)), 2, 1, 1, -1, 0), "tokens (-1)"),
        ((np.ones((1, 8)), 2, 1, 1, 1, -1), "seed (-1)"),
    ],
)
def test_arguments_that_contradict_each_other(arguments, words):
    with pytest.raises(BadInput) as caught:
        sample_tokens(*arguments)
    assert words in str(caught.value)


WEIGHTS = hnp.arrays(
    np.float64,
    (2, 12),
    elements=st.one_of(st.just(0.0), st.floats(1e-300, 1e300), st.floats(0.5, 2.0), st.just(1e-310)),
).filter(lambda weights: bool((weights.max(axis=1) > 0).all()))


@given(WEIGHTS, st.integers(1, 12))
@FUZZ
def test_inclusion_rates_of_any_weights(weights, total):
    rates = inclusion_rates(weights, total)
    assert ((rates >= 0) & (rates <= 1)).all()
    assert rates.sum(axis=1) == pytest.approx(total)
    units = _to_units(rates, total)
    assert (units.sum(axis=1) == total * UNIT).all()
    assert ((units >= 0) & (units <= UNIT)).all()
    order = np.argsort(weights, axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(rates, order, axis=1), axis=1) >= -1e-12).all()  # more weight, no lower a rate


@given(WEIGHTS, st.sampled_from([(1, 1), (2, 1), (3, 2), (4, 3), (12, 8), (6, 6)]), st.data())
@FUZZ
def test_any_weights_give_distinct_experts_within_the_groups(weights, limit, data):
    groups, top_groups = limit
    top_k = data.draw(st.integers(1, top_groups * 12 // groups))
    tokens = sample_tokens(weights, top_k, groups, top_groups, 64, seed=data.draw(st.integers(0, 99)))
    assert_distinct(tokens)
    assert tokens.max() < 12
    assert groups_of(tokens, 12 // groups).max() <= top_groups
