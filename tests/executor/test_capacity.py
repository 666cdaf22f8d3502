"""Dropping over capacity, by hand and against a loop over pairs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.capacity import Capacity, count_ids
from topologies import BadInput

IDS = torch.tensor([[0, 1], [0, 2], [0, 1], [-1, 0]])
WEIGHTS = torch.tensor([[0.6, 0.4], [0.2, 0.8], [0.7, 0.3], [0.9, 0.5]])


def test_first_come():
    """4 tokens x 2 / 4 experts = 2 pairs an expert; expert 0 gets 4 and keeps those of tokens 0 and 1.

    ids  [0, 1] [0, 2] [0, 1] [-1, 0]
    ->   [0, 1] [0, 2] [-1, 1] [-1, -1]
    """
    kept = Capacity(1.0).drop(IDS, WEIGHTS, 4)
    assert kept.ids_TK.tolist() == [[0, 1], [0, 2], [-1, 1], [-1, -1]]
    assert (
        kept.weights_TK.tolist()
        == WEIGHTS.masked_fill(torch.tensor([[0, 0], [0, 0], [1, 0], [0, 1]]).bool(), 0).tolist()
    )
    assert kept.dropped_E.tolist() == [2, 0, 0, 0]


def test_smallest_weight_first():
    """Expert 0 gets weights 0.6, 0.2, 0.7, 0.5 and keeps 0.7 and 0.6."""
    kept = Capacity(1.0, "probability").drop(IDS, WEIGHTS, 4)
    assert kept.ids_TK.tolist() == [[0, 1], [-1, 2], [0, 1], [-1, -1]]
    assert kept.dropped_E.tolist() == [2, 0, 0, 0]


def test_limit_is_rounded_up():
    assert Capacity(1.0).limit(num_tokens=5, top_k=2, num_experts=4) == 3
    assert Capacity(1.25).limit(num_tokens=8, top_k=2, num_experts=4) == 5
    assert Capacity(0.01).limit(num_tokens=1, top_k=1, num_experts=100) == 1
    assert Capacity(2.0).limit(num_tokens=0, top_k=2, num_experts=4) == 0


@settings(max_examples=100, deadline=None)
@given(
    T=st.integers(0, 12),
    K=st.integers(1, 4),
    E=st.integers(1, 5),
    factor=st.floats(0.1, 3.0),
    policy=st.sampled_from(["position", "probability"]),
    seed=st.integers(0, 2**31 - 1),
)
def test_against_a_loop(T, K, E, factor, policy, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, E, (T, K), generator=generator)
    weights = torch.randint(1, 4, (T, K), generator=generator) / 4  # with ties
    kept = Capacity(factor, policy).drop(ids, weights, E)

    limit = math.ceil(T * K / E * factor)
    pairs = [(t, k) for t in range(T) for k in range(K)]
    if policy == "probability":
        pairs.sort(key=lambda pair: -weights[pair].item())
    taken, dropped, expected = [0] * E, [0] * E, ids.clone()
    for pair in pairs:
        expert = ids[pair].item()
        if expert < 0:
            continue
        if taken[expert] < limit:
            taken[expert] += 1
        else:
            dropped[expert] += 1
            expected[pair] = -1
    assert kept.ids_TK.tolist() == expected.tolist()
    assert kept.dropped_E.tolist() == dropped
    assert torch.equal(kept.weights_TK, torch.where((expected < 0) & (ids >= 0), 0.0, weights))


def test_dropped_weights_get_no_gradient():
    weights = WEIGHTS.clone().requires_grad_()
    Capacity(1.0).drop(IDS, weights, 4).weights_TK.sum().backward()
    assert weights.grad.tolist() == [[1, 1], [1, 1], [0, 1], [1, 0]]


def test_count_ids_leaves_out_what_is_masked():
    assert count_ids(IDS, 4).tolist() == [4, 2, 1, 0]
    assert count_ids(IDS[:0].int(), 2).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0,), "capacity factor is 0.0; it must be a positive number"),
        ((math.nan,), "capacity factor is nan"),
        ((1.0, "random"), "drop policy is 'random'; known: position, probability"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(BadInput, match=message):
        Capacity(*arguments)
