"""Grids: their points, and the plan of a point."""

from __future__ import annotations

from app.whatif.settings import POWER_LAW, Settings
from app.whatif.sweeps import KNOBS, Row, make_points, planned, point_row
from app.whatif.uploads import Uploads

LITE = Settings(model="deepseek-v2-lite", routing=POWER_LAW, cluster="hgx-h100:1", tokens=64.0)


def test_points_run_x_first_and_keep_what_cannot_be():
    points = make_points(LITE, Uploads(), KNOBS["slots"], [4, 9], KNOBS["hosts"], [1, 500])
    assert [(point.x, point.y) for point in points] == [(4, 1), (9, 1), (4, 500), (9, 500)]
    assert "taken with 8 slots" in points[0].note
    assert points[1].case is not None
    assert points[1].case.slots_per_rank == 9
    assert "over the 288" in points[2].problem


def test_people_name_nic_speeds_in_gigabits():
    (point,) = make_points(LITE, Uploads(), KNOBS["nic_gbps"], [400], None, ())
    assert point.case is not None
    assert (point.x, point.case.settings.nic_gbps) == (400, 50)


def test_a_point_is_planned_as_its_case_says():
    (point,) = make_points(LITE, Uploads(), KNOBS["tokens"], [32], None, ())
    row = point_row(point, 0.0, {})
    assert point.case is not None
    solution = point.case.fast_plan(point.case.workload())
    assert row.layer_us == solution.predictions[-1].mean("layer_us")
    assert row.us_per_token == solution.predictions[-1].total_us / 32
    assert (row.ranks, row.slots, row.exchange) == (8, 9, solution.exchange)
    assert planned([row, Row(1, None, problem="no")]) == [row]
