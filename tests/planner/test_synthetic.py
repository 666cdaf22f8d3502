"""Statistics that nobody recorded: their law, and that the file made of them reads back as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner import load_model, load_routing
from planner.synthetic import PAIRS, logical_count_json, power_law, sharpened
from topologies import BadInput

MODEL = load_model("deepseek-v2-lite")


@pytest.mark.parametrize("exponent", [0.0, 0.4, 1.2])
def test_sorted_loads_follow_the_law(exponent):
    routing = power_law(MODEL, exponent)
    law = np.arange(1, MODEL.experts + 1) ** -exponent
    sorted_LE = -np.sort(-routing.expert_counts, axis=1)
    assert routing.layers == MODEL.moe_layers
    np.testing.assert_allclose(sorted_LE, np.tile(PAIRS * law / law.sum(), (len(routing.layers), 1)), atol=0.5)


def test_layers_and_seeds_differ_and_repeat():
    one, again, other = power_law(MODEL, 0.5), power_law(MODEL, 0.5), power_law(MODEL, 0.5, seed=1)
    assert (one.counts == again.counts).all()
    assert one.sha256 == again.sha256 != other.sha256
    assert (one.counts[0] != one.counts[1]).any()


def test_the_file_reads_back_as_the_same_statistics(tmp_path):
    for routing in (power_law(MODEL, 0.7), sharpened(power_law(MODEL, 0.7), MODEL, 1.5)):
        path = tmp_path / "loads.json"
        path.write_text(logical_count_json(routing, MODEL))
        read = load_routing(path, MODEL)
        assert read.layers == routing.layers
        assert read.sha256 == routing.sha256
        assert (read.counts == routing.counts).all()


def test_a_power_of_a_power_law_is_one():
    raised, direct = sharpened(power_law(MODEL, 0.4), MODEL, 2.0), power_law(MODEL, 0.8)
    np.testing.assert_allclose(raised.expert_counts, direct.expert_counts, rtol=1e-4)


def test_power_one_is_the_same_and_power_zero_is_even_but_for_idle_experts():
    routing = power_law(MODEL, 0.4)
    assert sharpened(routing, MODEL, 1.0) is routing
    counts = routing.counts.copy()
    counts[0, 0, 3] = 0
    even = sharpened(replace(routing, counts=counts), MODEL, 0.0)
    assert even.expert_counts[0, 3] == 0
    assert np.unique(even.expert_counts[0]).size == 2
    assert np.unique(even.expert_counts[1]).size == 1


@pytest.mark.parametrize("value", [-0.1, 4.1, float("nan")])
def test_no_law_is_so(value):
    with pytest.raises(BadInput, match="must be between 0 and 4"):
        power_law(MODEL, value)
    with pytest.raises(BadInput, match="must be between 0 and 4"):
        sharpened(power_law(MODEL, 0.1), MODEL, value)
