"""The report of routing statistics, against values worked out by hand, by sampling, and by plain loops."""

from xml.etree import ElementTree as ET

import numpy as np
import pytest
from scipy.stats import poisson

from planner.routing import Routing, count_trace, load_routing
from planner.routing_heatmap import heatmap
from planner.routing_report import _poisson_deviation, co_activation, drift, imbalance, placed, report, windows_of
from tests.planner.routing_data import SGLANG, data_file
from topologies import BadInput


def routing_of(counts=None, trace=None, windows=None, experts=8):
    if counts is None:
        counts = count_trace(trace, experts)[:, 0]
    counts = np.asarray(counts, dtype=float)
    return Routing(tuple(range(len(counts))), counts[:, None], trace=trace, windows=windows, name="made")


def uniform_trace(layers=2, tokens=4000, experts=8, top_k=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((layers, tokens, experts)).argsort(axis=2)[:, :, :top_k]


def test_one_layer_by_hand():
    """Loads 8 4 2 2 on two ranks: blocks 12 + 4, packed 8 + 2 and 4 + 2, with a spare slot each nearly even."""
    found = report(routing_of([[8, 4, 2, 2]]), 2)
    (layer,) = found.layers
    assert (layer.tokens, layer.skew, layer.top_tenth, layer.idle_experts) == (16, 2.0, 0.5, 0)
    assert (layer.linear, layer.packed) == (12 / 8, 10 / 8)
    assert layer.replicated < 1.3
    assert layer.drift is layer.co_activation is None
    assert found.verdict.placement
    assert (found.verdict.stale, found.verdict.grouping) == (None, None)


def test_uniform_routing_needs_no_plan():
    found = report(routing_of(trace=uniform_trace()))
    assert not any((found.verdict.placement, found.verdict.redundancy, found.verdict.grouping))
    assert found.mean("drift") < 0.01
    assert found.mean("co_activation") < 0.01
    assert found.verdict.stale is None
    assert "cannot help" in found.verdict.reasons[0]


def test_experts_in_pairs_are_co_active():
    """Experts 2i and 2i + 1 always go together: of 28 pairs only 4 occur, so 24/28 of the pairs moved, less chance."""
    first = np.random.default_rng(0).integers(0, 4, (1, 4000, 1)) * 2
    trace = np.concatenate([first, first + 1], axis=2)
    assert co_activation(trace, 8) == pytest.approx([24 / 28], abs=0.05)
    assert report(routing_of(trace=trace)).verdict.grouping


def test_drift_is_the_part_that_moved():
    """From all on experts 0..3 to a half on 4..7: half of the load moved, and nothing afterwards."""
    old, new = [1000] * 4 + [0] * 4, [500] * 8
    windows = np.array([[old], [new], [new]], dtype=float)
    assert drift(windows[:2] * 1e6) == pytest.approx([0.5], abs=1e-3)
    assert drift(windows * 1e6) == pytest.approx([0.25], abs=1e-3)
    assert drift(np.concatenate([windows[:1], 0 * windows[:1]])) == 0


def test_chance_alone_is_no_drift():
    rng = np.random.default_rng(0)
    windows = rng.multinomial(2000, np.full(64, 1 / 64), (8, 30)).astype(float)
    assert drift(windows).mean() < 0.01
    seen = 0.5 * np.abs(np.diff(windows / 2000, axis=0)).sum(axis=2).mean()
    assert seen > 0.05  # what it would be taken for


@pytest.mark.parametrize("mean", [0.1, 0.9, 3.0, 3.7, 40.2])
def test_poisson_deviation(mean):
    counts = np.arange(200)
    expected = (np.abs(counts - mean) * poisson.pmf(counts, mean)).sum()
    assert _poisson_deviation(np.array([mean]))[0] == pytest.approx(expected)


def test_imbalance_by_loops():
    load_LE = np.random.default_rng(0).random((3, 12))
    for spare in (None, 0, 1):
        phy2log_LP, slots = placed(load_LE, 4, spare)
        for load_E, row, found in zip(load_LE, phy2log_LP, imbalance(load_LE, phy2log_LP, slots), strict=True):
            parts = [row[first : first + slots] for first in range(0, len(row), slots)]
            ranks = [sum(load_E[e] / list(row).count(e) for e in part) for part in parts]
            assert found == pytest.approx(max(ranks) / (sum(ranks) / 4))


def test_a_placement_goes_stale_when_loads_swap():
    early, late = [30.0, 20, 5, 5, 5, 5, 5, 5], [5.0, 5, 5, 5, 5, 5, 20, 30]
    windows = np.array([[early], [early], [late], [late]]) * 1000
    found = report(routing_of(windows.sum(axis=0), windows=windows), 2)
    assert found.windows == 4
    steady = np.array([[early]] * 4) * 1000
    assert report(routing_of(steady.sum(axis=0), windows=steady), 2).verdict.stale is False
    assert found.mean("drift") > 0.1


def test_windows_of_a_trace_hold_every_token():
    trace = uniform_trace(tokens=101)
    windows = windows_of(routing_of(trace=trace))
    assert windows.shape == (8, 2, 8)
    assert (windows.sum(axis=0) == count_trace(trace, 8)[:, 0]).all()
    assert windows_of(routing_of(trace=trace[:, :9])) is None


def test_ranks_divide_experts():
    assert report(routing_of([[1.0] * 12])).ranks == 6
    with pytest.raises(BadInput, match="--ranks 5 does not divide the 12 experts"):
        report(routing_of([[1.0] * 12]), 5)


def test_deepseek_on_32_ranks_is_as_published():
    """The project's facts: 2.29 with experts in blocks and 1.007 with global EPLB and 288 slots (prefill_in1024)."""
    path = data_file(next(name for name in SGLANG if "prefill_in1024" in name))
    found = report(load_routing(path), 32)
    assert found.mean("linear") == pytest.approx(2.29, abs=0.005)
    assert found.mean("replicated") == pytest.approx(1.007, abs=0.0005)


def test_heatmap_is_svg_with_every_layer():
    routing = routing_of([[0.0, 1, 2, 3, 40, 5, 6, 7], [1.0] * 8])
    picture = heatmap(routing, report(routing))
    root = ET.fromstring(picture)
    texts = [node.text for node in root.iter() if node.tag.endswith("text")]
    assert {"0", "1", "layer", "expert"} <= set(texts)
    titles = [node.text for node in root.iter() if node.tag.endswith("title")]
    assert "layer 0, expert 4: 5.00x the mean" in titles
