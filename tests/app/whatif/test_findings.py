"""What is said of a grid, on numbers small enough to check by eye."""

from __future__ import annotations

import pytest

from app.whatif.findings import against_first, competing, findings, pareto
from app.whatif.sweeps import KNOBS, Row


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
    """8 slots cost 10 everywhere; 9 slots 12 at 100 tokens and 8 at 400: on a log axis they meet half way, at 200."""
    rows = [_row(100, 8, 10), _row(400, 8, 10), _row(100, 9, 12), _row(400, 9, 8), _row(100, 10, 11), _row(400, 10, 11)]
    assert findings(rows, KNOBS["tokens"], KNOBS["slots"]) == [
        "Break-even, 9 slots against 8 slots: faster from 200 tokens on (interpolated).",
        "10 slots against 8 slots: never faster on the values tried.",
    ]
    assert against_first(rows)[400, 9] == pytest.approx(-20.0)


def test_lines_may_cross_twice():
    """As much faster as slower at the ends of each step: half way, on the log axis of tokens and on the plain one."""
    base = [_row(x, 1, 10) for x in (1, 4, 16, 64)]
    rows = [*base, *(_row(x, 2, us) for x, us in ((1, 9), (4, 11), (16, 9), (64, 11)))]
    assert findings(rows, KNOBS["tokens"], KNOBS["hosts"]) == [
        "Break-even, 2 hosts against 1 hosts: faster up to 2 tokens and from 8 tokens up to 32 tokens (interpolated)."
    ]
    assert "up to 2.5 power and from 10 power" in findings(rows, KNOBS["power"], KNOBS["hosts"])[0]


def test_a_knob_stops_paying_and_what_it_may_cost():
    rows = [_row(25, None, 20), _row(50, None, 12), _row(100, None, 10), _row(200, None, 9.9)]
    assert findings(rows, KNOBS["nic_gbps"], None) == [
        "NIC speed: best at 200 Gb/s, 102.0% faster per token than 25 Gb/s; level from 100 Gb/s on.",
        "Break-even of NIC speed, MoE layers alone: a rank may cost more by up to 66.7% for 50 Gb/s in place of "
        "25 Gb/s, 20.0% for 100 Gb/s in place of 50 Gb/s, 1.0% for 200 Gb/s in place of 100 Gb/s.",
    ]
    assert findings([_row(1, None, 5), _row(2, None, 6)], KNOBS["oversubscription"], None)[1].endswith(
        "more by up to 20.0% for 1 : 1 in place of 2 : 1."
    )
    assert findings([_row(1, None, 5), _row(2, None, 5)], KNOBS["hosts"], None) == [
        "Hosts (EP size): no value gains 2% over 1 hosts."
    ]
    assert findings([], KNOBS["scale_up"], None) == []


def test_points_compete_under_the_same_load_alone():
    """Tokens are given, slots are chosen: two loads, each with its own front."""
    rows = [_row(32, 8, 9, 1), _row(32, 9, 8, 2), _row(64, 8, 5, 1), _row(64, 9, 6, 2), Row(64, 10, problem="no room")]
    groups = competing(rows, KNOBS["tokens"], KNOBS["slots"])
    assert {load: len(pareto(group)) for load, group in groups.items()} == {"32 tokens": 2, "64 tokens": 1}
    assert list(competing(rows, KNOBS["slots"], KNOBS["hosts"])) == [""]
    assert "" in competing([_row(8, None, 5)], KNOBS["slots"], None)
