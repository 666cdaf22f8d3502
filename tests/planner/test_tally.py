"""What is kept of a long recording: windows that add up, and an even sample of tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.readers import tally, traces
from planner.readers.raw import MAX_WINDOWS
from planner.readers.tally import Tally, TokenSample, Windows
from planner.routing import load_routing
from tests.planner.routing_data import FUZZ, small_model
from tests.planner.test_recordings import ids_of

MODEL = small_model()


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 3)), min_size=1, max_size=80))
@FUZZ
def test_windows_add_up_and_stay_few(events):
    windows = Windows()
    total = np.zeros(4)
    for step, expert in sorted(events):
        windows.add(0, step, np.eye(4)[expert])
        total[expert] += 1
    table = windows.table([0], 4)
    if table is None:
        return
    assert len(table) <= MAX_WINDOWS
    assert (table.sum(axis=0)[0] == total).all()
    order = np.repeat(np.arange(len(table)), table.sum(axis=(1, 2)).astype(int))
    assert len(order) == len(events)  # nothing lost, and steps keep their order:
    by_time = [expert for _, expert in sorted(events)]
    for window in range(len(table)):
        part = [by_time[i] for i in np.flatnonzero(order == window)]
        assert np.bincount(part, minlength=4).tolist() == table[window, 0].tolist()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(20, 400))
@FUZZ
def test_samples_are_even_and_aligned(blocks, limit):
    """Tokens are numbered through; what is kept of every layer are the same, evenly spaced numbers."""
    sample, at = TokenSample(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tally, "MAX_SAMPLED_BYTES", limit)
        for tokens in blocks:
            number = np.arange(at, at + tokens)[:, None]
            sample.add(0, {1: number, 2: number + 1000})
            at += tokens
    trace = sample.trace([1, 2])
    kept = trace[0, :, 0]
    assert (trace[1, :, 0] == kept + 1000).all()
    assert len(kept) * 4 <= limit
    assert len(set(np.diff(kept))) <= 1
    assert len(kept) >= min(at, limit // 8)
    assert len(sample.sources()) == len(kept)


def test_long_traces_are_thinned_and_counted_whole(monkeypatch, tmp_path):
    ids = ids_of(tokens=50)
    np.savez(tmp_path / "t.npz", topk_ids=ids, token_source=np.arange(50) % 2)
    whole = load_routing(tmp_path / "t.npz", MODEL)
    monkeypatch.setattr(traces, "MAX_SAMPLED_BYTES", 150)
    monkeypatch.setattr("planner.readers.npy.PIECE_BYTES", 64)
    thin = load_routing(tmp_path / "t.npz", MODEL)
    assert (thin.counts == whole.counts).all()
    assert (thin.trace == ids[:, ::4]).all()
    assert (thin.token_source == whole.token_source[::4]).all()
    assert thin.windows.sum(axis=0) == pytest.approx(whole.counts.sum(axis=1))
    assert "every token is counted; each 4th of 50 is kept" in thin.remarks[0]


def test_blocks_of_other_layers_are_counted_and_not_kept():
    counts = Tally("file")
    for rank, layers in ((0, (1, 2)), (0, (1, 2)), (1, (3,))):
        counts.tokens.add(rank, dict.fromkeys(layers, np.array([[0, 1]])))
        for layer in layers:
            counts.add_ids(layer, rank, 0, np.array([[0, 1]]))
    raw = counts.result()
    assert raw.trace is None  # no token runs through all three layers
    assert raw.counts.sum() == 10
