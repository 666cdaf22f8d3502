import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.calibrate.loads import Step, _settle, greedy_pack, is_known, power_law_counts, rank_loads


@pytest.mark.parametrize("tokens", [1, 2, 16, 64, 1000])
def test_power_law_counts_add_up_and_no_expert_exceeds_the_tokens(tokens):
    counts = power_law_counts(np.random.default_rng(0), 8, tokens, 64, 4, 1.2)
    assert (counts.sum(axis=1) == tokens * 4).all()
    assert counts.max() <= tokens
    assert counts.min() >= 0


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 30), st.integers(1, 8))
def test_missing_pairs_are_dealt_as_one_by_one(counts, tokens, top_k):
    """Round after round every expert with room gets one, the coldest first; whole rounds are dealt at once."""
    before = np.minimum(counts, tokens)
    pairs = min(top_k, len(counts)) * tokens
    dealt, coldest = before.tolist(), np.argsort(-before, kind="stable")[::-1].tolist()
    while sum(dealt) < pairs:
        for expert in [e for e in coldest if dealt[e] < tokens][: pairs - sum(dealt)]:
            dealt[expert] += 1
    after = before.copy()
    _settle(after, pairs, tokens)
    assert sum(after.tolist()) == pairs
    if sum(before.tolist()) <= pairs:
        assert after.tolist() == dealt


def test_millions_of_missing_pairs_are_dealt_at_once():
    counts = np.zeros(8, dtype=np.int64)
    _settle(counts, 2 * 10**8, 10**8)
    assert counts.tolist() == [25 * 10**6] * 8


def test_one_token_lands_on_one_rank():
    """All popularities round to zero, so that the k pairs go to the last k experts: one rank has them all."""
    assert rank_loads(Step(1, 256, 8, 32, 256, "power_law_1.2"))[0].sum() == 8


def test_balanced_walks_round_the_experts():
    # 4 experts, top-2: token 0 takes 0 and 2, token 1 takes 1 and 3
    assert rank_loads(Step(2, 4, 2, 1, 4, "balanced"))[0].tolist() == [1, 1, 1, 1]
    assert rank_loads(Step(2, 4, 2, 2, 4, "balanced"))[0].tolist() == [1, 1]


def test_balanced_in_whole_rounds_is_the_same_walk():
    step = Step(70, 32, 4, 4, 32, "balanced")
    walked = np.bincount([(t + i * 8) % 32 for t in range(70) for i in range(4)], minlength=32)
    assert rank_loads(step)[0].tolist() == walked[:8].tolist()


def test_packing_fills_every_rank_and_starts_with_the_heaviest():
    # loads 9 5 4 2 on 2 ranks: 9 | 5, then 4 beside 5, then 2 beside 9
    assert [sorted(part.tolist()) for part in greedy_pack(np.array([9.0, 5, 4, 2]), 2)] == [[0, 3], [1, 2]]


def test_eplb_is_more_even_than_none():
    plain = np.mean([load.sum() for load in rank_loads(Step(4096, 64, 4, 8, 64, "power_law_1.2"))])
    placed = np.mean([load.sum() for load in rank_loads(Step(4096, 64, 4, 8, 64, "power_law_1.2_eplb"))])
    spread = np.mean([load.sum() for load in rank_loads(Step(4096, 64, 4, 8, 72, "power_law_1.2_eplb"))])
    even = 4096 * 4 / 8
    assert even <= spread <= placed < plain


def test_only_known_distributions():
    assert is_known("balanced")
    assert is_known("power_law_1.01_eplb")
    assert not is_known("power_law_")
    assert not is_known("zipf_2")
