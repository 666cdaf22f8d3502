"""What the recorder writes is read back by the planner's own reader, and compared with what was routed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed as dist
from torch.utils.checkpoint import checkpoint

from executor.record import LayerRecord, RoutingRecorder
from executor.transport import Transport
from planner import load_routing
from tests.executor.ranks import on_ranks
from topologies import BadInput

E, K = 10, 2


class Layer:
    recorder = None

    def route(self, ids_TK):
        if self.recorder is not None:
            self.recorder.record(ids_TK)


def steps(seed=0, sizes=(5, 0, 3, 7)):
    """Return the routing of some steps: [T, K] each, distinct experts, some masked."""
    rng = np.random.default_rng(seed)
    ids = [np.stack([rng.permutation(E)[:K] for _ in range(size)] or [np.zeros(K)])[:size] for size in sizes]
    return [torch.from_numpy(np.where(rng.random(one.shape) < 0.1, -1, one).astype(np.int64)) for one in ids]


def of_layer(ids, number):
    """Return the routing of another layer: all ids moved on."""
    return np.where(ids < 0, -1, (ids + number) % E)


def recorded(layers, routed, **options):
    recorder = RoutingRecorder(E, **options)
    recorder.attach(layers)
    for step in routed:
        for number, layer in layers.items():
            layer.route(torch.from_numpy(of_layer(step.numpy(), number)))
    return recorder


def counted(ids):
    return np.bincount(ids[ids >= 0].ravel(), minlength=E)


def test_a_trace_is_what_was_routed(tmp_path):
    layers = {7: Layer(), 3: Layer()}
    recorder = recorded(layers, steps())
    recorder.save(tmp_path / "trace.npz")
    read = load_routing(tmp_path / "trace.npz")
    tokens = torch.cat(steps()).numpy()
    assert read.layers == (3, 7)
    assert read.num_experts == E
    for row, number in enumerate((3, 7)):
        np.testing.assert_array_equal(read.trace[row], of_layer(tokens, number))


def test_counts_are_of_all_tokens(tmp_path):
    """Two of 15 tokens are kept; all are counted."""
    recorder = recorded({0: Layer()}, steps(), max_tokens=2)
    recorder.save_counts(tmp_path / "counts.npz")
    recorder.save(tmp_path / "trace.npz")
    np.testing.assert_array_equal(
        load_routing(tmp_path / "counts.npz").expert_counts[0], counted(torch.cat(steps()).numpy())
    )
    assert load_routing(tmp_path / "trace.npz").num_tokens == 2


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 12))
@settings(deadline=None)
def test_every_stride_th_token_is_kept(sizes, max_tokens):
    tokens = np.arange(sum(sizes))
    record = LayerRecord(32_000, max_tokens)
    for step in np.split(tokens, np.cumsum(sizes)[:-1]):
        record.record(torch.from_numpy(step)[:, None])
    kept = record.sample(record.stride)[:, 0]
    np.testing.assert_array_equal(kept, tokens[:: record.stride])
    assert len(kept) <= max_tokens
    assert record.stride == 1 or len(tokens[:: record.stride // 2]) > max_tokens, "no more is left out than need be"
    assert len(record._kept) <= max_tokens + 1


def test_recomputation_is_not_counted_twice():
    record = LayerRecord(E, 100)

    def forward(x):
        record.record(torch.tensor([[1, 2]]))
        return x.exp() * 2

    x = torch.ones(3, requires_grad=True)
    for reentrant in (False, True):
        checkpoint(forward, x, use_reentrant=reentrant).sum().backward()
    assert record.seen == 2
    assert record.total_E().sum() == 4


def test_detached_layers_are_not_recorded():
    layer = Layer()
    recorder = recorded({0: layer}, steps())
    recorder.detach()
    layer.route(steps()[0])
    assert layer.recorder is None
    assert recorder.layers[0].seen == 15


def save_together(rank, _, folder):
    transport = Transport(dist.group.WORLD)
    sizes = [(5, 3), (0, 0), (9, 4)][rank]
    recorder = recorded({0: Layer(), 1: Layer()}, steps(rank, sizes))
    recorder.save(f"{folder}/trace.npz", transport)
    recorder.save_counts(f"{folder}/counts.npz", transport)
    small = recorded({0: Layer()}, steps(rank, sizes), max_tokens=8)
    small.save(f"{folder}/small.npz", transport)


def test_one_file_of_all_ranks(tmp_path):
    on_ranks(3, save_together, str(tmp_path))
    tokens = [torch.cat(steps(rank, sizes)).numpy() for rank, sizes in enumerate([(5, 3), (0, 0), (9, 4)])]
    read = load_routing(tmp_path / "trace.npz")
    assert read.token_source.tolist() == [0] * 8 + [2] * 13
    np.testing.assert_array_equal(read.trace[1], of_layer(np.concatenate(tokens), 1))
    by_source = load_routing(tmp_path / "counts.npz")
    np.testing.assert_array_equal(by_source.counts, read.counts)
    np.testing.assert_array_equal(by_source.counts[0], [counted(ids) for ids in tokens])
    small = load_routing(tmp_path / "small.npz")
    np.testing.assert_array_equal(small.trace[0], np.concatenate([ids[::4] for ids in tokens]))
    assert small.token_source.tolist() == [0] * 2 + [2] * 4, "13 tokens of rank 2 need a stride of 2, 21 in all of 4"


def save_uneven(rank, _, folder):
    layers = {0: Layer(), 1: Layer()}
    recorder = recorded(layers, steps())
    if rank == 1:
        layers[1].route(steps()[0])
    try:
        recorder.save(f"{folder}/trace.npz", Transport(dist.group.WORLD))
    except BadInput as error:
        return str(error)
    return ""


def test_layers_that_saw_different_tokens_are_refused_everywhere(tmp_path):
    message = "rank 1: layer 0 has seen 15 tokens, layer 1 20; record whole passes"
    assert on_ranks(2, save_uneven, str(tmp_path)) == [message] * 2
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_save(tmp_path):
    recorder = RoutingRecorder(E)
    for complaint in ("no layer is recorded", "a recorded layer has not run"):
        with pytest.raises(BadInput, match=complaint):
            recorder.save(tmp_path / "trace.npz")
        recorder.attach({0: Layer()})
    recorder.layers[0].record(torch.zeros(0, K, dtype=torch.int64))
    with pytest.raises(BadInput, match="have seen no token"):
        recorder.save_counts(tmp_path / "trace.npz")
    assert list(tmp_path.iterdir()) == []
