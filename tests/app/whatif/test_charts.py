"""Charts: what they draw is what the planner says; colours can be told apart, also by the colour-blind."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from app.whatif.cases import make_case
from app.whatif.charts import cluster_map, grids, inputs, measured, plans, timeline
from app.whatif.charts.look import PHASES, PLANS, USE, in_ink, log_axis, use_colour
from app.whatif.reports import read_report
from app.whatif.settings import POWER_LAW, Settings
from app.whatif.sweeps import KNOBS, Row
from app.whatif.uploads import Uploads
from planner.link_use import link_use, traffic_RR, use_over_time
from planner.simulate import simulate_layer
from tests.app.whatif.test_reports import validation

LITE = Settings(model="deepseek-v2-lite", routing=POWER_LAW, cluster="hgx-h100:2", tokens=256.0, slots=5)
CASE = make_case(LITE, Uploads())
WORKLOAD = CASE.workload()
SOLUTION = CASE.fast_plan(WORKLOAD)
DONE = simulate_layer(WORKLOAD, SOLUTION.placements[0], 0, CASE.profile, SOLUTION.exchange)
HOST_R = np.asarray(CASE.cluster.host_of_rank)


def _lightness(colour: str) -> float:
    """Return the relative luminance of #rrggbb (WCAG 2.1)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _seen(colour: str) -> np.ndarray:
    """Return a colour as a person without red-sensitive cones sees it, in linear RGB (Vienot, Brettel, Mollon 1999)."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]) ** 2.2
    return np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]]) @ rgb


@pytest.mark.parametrize("palette", [PHASES, {k: v for k, v in PLANS.items() if k != "linear"}])
def test_palettes_can_be_told_apart_without_red_cones(palette):
    for one, other in combinations(palette.values(), 2):
        assert np.abs(_seen(one) - _seen(other)).max() > 0.03, (one, other)


def test_the_scale_of_use_is_seen_on_white_and_on_black():
    for part in np.linspace(0, 1, 21):
        luminance = _lightness(use_colour(float(part)))
        assert 1.05 / (luminance + 0.05) > 2.0
        assert (luminance + 0.05) / 0.05 > 3.0
    assert use_colour(-1) == USE[0][1].lower()
    assert use_colour(2) == USE[-1][1].lower()


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_read_on_its_paper(dark):
    """On the theme's papers, #ffffff and #191917, with the contrast that WCAG 2.1 asks of small text (4.5)."""
    paper = _lightness("#191917" if dark else "#ffffff")
    for drawn in (
        plans.time_bars(SOLUTION.predictions, "o"),
        cluster_map.cluster_map(CASE.cluster, link_use(DONE, CASE.cluster), DONE.layer_us, [0]),
        plans.layer_strip(SOLUTION.predictions, "o"),
    ):
        in_ink(drawn, dark=dark)
        inks = {drawn.layout.font.color, drawn.layout.xaxis.tickfont.color, drawn.layout.yaxis.title.font.color}
        inks |= {note.font.color for note in drawn.layout.annotations}
        inks |= {trace.textfont.color for trace in drawn.data if getattr(trace, "mode", "") == "text"}
        inks |= {trace.colorbar.tickfont.color for trace in drawn.data if trace.type == "heatmap"}
        inks |= {trace.marker.colorbar.title.font.color for trace in drawn.data
                 if trace.type == "scatter" and trace.marker.showscale}  # fmt: skip
        low, high = sorted((paper, _lightness(inks.pop())))
        assert not inks, "one ink"
        assert (high + 0.05) / (low + 0.05) > 4.5


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(60, 700, ["100", "200", "500"]), (400_000, 1_200_000, ["500,000", "1,000,000"]), (11, 12, ["11", "12"]),
     (0.5, 4000, ["1", "10", "100", "1,000"])],
)  # fmt: skip
def test_logarithmic_axes_have_whole_ticks(low, high, words):
    axis = log_axis(low, high)
    assert axis["ticktext"] == words
    assert 10 ** axis["range"][0] < low < high < 10 ** axis["range"][1]


def test_bars_hold_the_phases_of_every_plan():
    drawn = plans.time_bars(SOLUTION.predictions, "predicted, vendor")
    by_name = {trace.name: trace for trace in drawn.data if trace.type == "bar"}
    assert set(by_name) == {"dispatch", "compute", "combine"}
    for phase, trace in by_name.items():
        assert list(trace.x) == [one.mean(f"{phase}_us") for one in SOLUTION.predictions]
    assert "predicted, vendor" in drawn.layout.xaxis.title.text
    assert "us" in drawn.layout.xaxis.title.text
    (labels,) = (trace.text for trace in drawn.data if trace.type == "scatter")
    assert drawn.layout.margin.r >= 6 * max(map(len, labels))  # else a phone cuts them off


def test_strip_load_and_traffic_hold_the_numbers():
    strip = plans.layer_strip(SOLUTION.predictions, "o").data[0]
    assert strip.z[-1][3] == SOLUTION.predictions[-1].layers[3].layer_us
    bar = plans.rank_load({"this plan": DONE.closed_form.load_R}, "o").data[0]
    assert np.mean(bar.y) == pytest.approx(1.0)
    bytes_RR = traffic_RR(DONE, "dispatch")
    heat = plans.traffic(bytes_RR, HOST_R, "o").data[0]
    assert np.nansum(heat.z) == pytest.approx(bytes_RR.sum() / 1e6)


def test_replicas_show_the_shares_of_every_copy():
    placement = SOLUTION.baselines["eplb-global"][0].without_duplicates()
    heat = plans.replicas(placement, WORKLOAD.load_LE[0], HOST_R).data[0]
    assert len(heat.y) == (placement.copies_E > 1).sum()
    np.testing.assert_allclose(np.nansum(heat.z, axis=1), 1.0)


@pytest.mark.parametrize("spec", ["hgx-h100:1", "hgx-h100:6", "gb200-nvl72:1", "mi300x:2", "hgx-h100:30"])
@pytest.mark.parametrize("lost", [(), ("host0/gpu1",)])
def test_maps_of_clusters_draw_every_gpu_and_cable_of_their_hosts(spec, lost):
    case = make_case(LITE.but(cluster=spec, slots=16, lost=lost), Uploads())
    workload = case.workload(WORKLOAD)
    placement = case.fast_plan(workload).placements[0]
    done = simulate_layer(workload, placement, 0, case.profile, "pairwise")
    hosts = cluster_map.hosts_shown(case.cluster)
    use = link_use(done, case.cluster)
    drawn = cluster_map.cluster_map(case.cluster, use, done.layer_us, hosts)
    gpus = {trace.name: len(trace.x) for trace in drawn.data if trace.name in ("GPU", "lost GPU")}
    shown = sum(len(case.cluster.wiring.paths[0].gpus) for _ in hosts)
    assert sum(gpus.values()) == shown <= cluster_map.MAX_GPUS
    assert gpus.get("lost GPU", 0) == len(lost)
    told = next(trace for trace in drawn.data if trace.mode == "markers" and trace.name is None).text
    assert any("at work" in words for words in told)


def test_timeline_spans_are_the_simulations():
    drawn = timeline.rank_bars(DONE, "o")
    experts = next(trace for trace in drawn.data if trace.name.startswith("compute"))
    np.testing.assert_allclose(experts.customdata[:, 1], DONE.experts_done_R)
    np.testing.assert_allclose(experts.x, DONE.experts_done_R - DONE.experts_start_R)
    use_NB, edges_us = use_over_time(DONE, 10)
    assert np.shape(timeline.link_heat(use_NB[:4], edges_us, list("abcd"), "o").data[0].z) == (4, 10)


def test_sweeps_in_all_metrics():
    rows = [Row(x, y, us_per_token=x + y, layer_us=x * y, weights_gb=y) for y in (8.0, 9.0) for x in (1.0, 2.0)]
    rows.append(Row(3.0, 8.0, problem="no room"))
    for metric in grids.METRICS:
        drawn = grids.lines(rows, KNOBS["tokens"], KNOBS["slots"], metric, "o")
        assert [trace.name for trace in drawn.data] == ["8 slots", "9 slots"]
        assert [list(trace.x) for trace in drawn.data] == [[1.0, 2.0], [1.0, 2.0]]
        assert np.shape(grids.heat(rows, KNOBS["tokens"], KNOBS["slots"], metric, "o").data[0].z) == (2, 3)
    fronts = [trace for trace in grids.front(rows, KNOBS["tokens"], KNOBS["slots"], "o").data if trace.showlegend]
    assert [(trace.name, list(trace.x)) for trace in fronts] == [("1 tokens", [8.0]), ("2 tokens", [8.0])]
    (front,) = [trace for trace in grids.front(rows, KNOBS["hosts"], KNOBS["slots"], "o").data if trace.showlegend]
    assert (front.name, list(front.x), list(front.y)) == ("Pareto front", [8.0], [9.0])
    alone = [Row(1.0, None, layer_us=5.0, best_baseline_us=6.0)]
    assert [t.name for t in grids.lines(alone, KNOBS["tokens"], None, "layer_us", "o").data] == [
        "best plan",
        "best single baseline",
    ]


def test_measured_and_routing(tmp_path):
    path = tmp_path / "x"
    path.write_text(validation().model_dump_json())
    report = read_report(path, "x")
    bars = {trace.name: list(trace.y) for trace in measured.phase_bars(report).data}
    assert bars == {"predicted": [95.0, 95.0, None], "measured": [95.0, 95.0, 95.0]}
    assert len(measured.scatter(report).data) == 2 + 3
    curve = inputs.load_curve(CASE.routing).data[0]
    assert np.mean(curve.y) == pytest.approx(1.0)
    assert list(curve.y) == sorted(curve.y, reverse=True)
