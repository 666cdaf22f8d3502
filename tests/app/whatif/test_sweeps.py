"""Grids: their points, the front, and what is said of them, on numbers small enough to check by eye."""

from __future__ import annotations

import pytest

from app.whatif.settings import POWER_LAW, Settings
from app.whatif.sweeps import KNOBS, Row, against_first, findings, make_points, pareto, planned, point_row
from app.whatif.uploads import Uploads

LITE = Settings(model="deepseek-v2-lite", routing=POWER_LAW, cluster="hgx-h100:1", tokens=64.0)


def _row(x: float, y: float | None, us: float, gb: float = 1.0) -> Row:
    return Row(x, y, us_per_token=us, weights_gb=gb, layer_us=us)


def test_the_front_is_what_nothing_beats_in_both():
    r"""us per token over GB; * is on the front.

    9 *
    8     o
    5     *
    5         o
    4             *
      1   2   3   4
    """
    rows = [_row(0, None, us, gb) for us, gb in ((9, 1), (8, 2), (5, 2), (5, 3), (4, 4))]
    assert [(row.us_per_token, row.weights_gb) for row in pareto(rows)] == [(9, 1), (5, 2), (4, 4)]
    assert pareto([]) == []


def test_break_even_is_where_lines_cross():
    """8 slots cost 10 everywhere; 9 slots 12 at 100 tokens and 9 at 400: they meet two thirds of the way."""
    rows = [_row(100, 8, 10), _row(400, 8, 10), _row(100, 9, 12), _row(400, 9, 9), _row(100, 10, 11), _row(400, 10, 11)]
    assert findings(rows, KNOBS["tokens"], KNOBS["slots"]) == [
        "Break-even: 9 slots beats 8 slots from 300 tokens (interpolated) on.",
        "10 slots never beats 8 slots on the values tried.",
    ]
    assert against_first(rows)[400, 9] == pytest.approx(-10.0)


def test_a_knob_stops_paying():
    rows = [_row(25, None, 20), _row(50, None, 12), _row(100, None, 10), _row(200, None, 9.9)]
    assert findings(rows, KNOBS["nic_gbps"], None) == [
        "NIC speed: best at 200 GB/s, 102.0% faster per token than 25 GB/s; level from 100 GB/s on."
    ]
    assert findings([_row(1, None, 5), _row(2, None, 5)], KNOBS["scale_up"], None) == [
        "NVLink / xGMI speed: no value gains 2% over 1 x."
    ]
    assert findings([], KNOBS["scale_up"], None) == []


def test_points_run_x_first_and_keep_what_cannot_be():
    points = make_points(LITE, Uploads(), KNOBS["slots"], [4, 9], KNOBS["hosts"], [1, 500])
    assert [(point.x, point.y) for point in points] == [(4, 1), (9, 1), (4, 500), (9, 500)]
    assert "taken with 8 slots" in points[0].note
    assert points[1].case is not None
    assert points[1].case.slots_per_rank == 9
    assert "over the 288" in points[2].problem


def test_a_point_is_planned_as_its_case_says():
    (point,) = make_points(LITE, Uploads(), KNOBS["tokens"], [32], None, ())
    row = point_row(point, 0.0, {})
    assert point.case is not None
    solution = point.case.fast_plan(point.case.workload())
    assert row.layer_us == solution.predictions[-1].mean("layer_us")
    assert row.us_per_token == solution.predictions[-1].total_us / 32
    assert (row.ranks, row.slots, row.exchange) == (8, 9, solution.exchange)
    assert planned([row, Row(1, None, problem="no")]) == [row]
