"""docs/quality.md: its rows against an evaluator of the test's own, its baselines against brute force, its page."""

import dataclasses
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ilp_baselines import affine_parts, balanced_clusters, crossings, deviation, transitions
from benchmarks.quality import cases, coherent_cases, scored
from benchmarks.quality.page import geometric, ratio, table, write_page
from planner import build_workload, load_model, load_plan
from planner.baselines import BASELINES, baseline
from planner.routing import Routing
from planner.solve import coherent
from planner.timing import EXCHANGES
from tests.benchmarks.evaluator import coherent_us, layer_us, shares_of_plan, shares_of_slots

WORK = Path(os.environ.get("EPPLAN_QUALITY", Path(__file__).resolve().parents[2] / "out" / "quality"))


def total_us(workload, plan_path, exchange, rows):
    """Time of a plan's layers by the evaluator."""
    document = json.loads(plan_path.read_text())
    return [
        layer_us(workload, row, shares_of_plan(plan_path, row), document["layers"][row]["slots"], exchange)
        for row in rows
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A case of counts in the small: two layers of DeepSeek-V3 with made-up loads on two hosts."""
    folder = tmp_path_factory.mktemp("quality")
    load = np.random.default_rng(0).zipf(1.6, (2, 1, 256)).clip(1, 60).astype(float)
    patch = pytest.MonkeyPatch()
    patch.setattr(scored, "statistics", lambda _: Routing((3, 4), load * 1000, name="made"))
    path = folder / "case.plan.json"
    case = cases.counts_case("prefill_in512", "hgx-h100:2", 18, 128, None, path, 1)
    workload = scored.counts_workload("prefill_in512", "hgx-h100:2", 128)
    patch.undo()
    return case, path, workload


def test_our_row_is_what_the_definitions_give(made):
    case, path, workload = made
    ours = case["ours"]
    assert total_us(workload, path, ours["exchange"], range(2)) == pytest.approx(ours["layer_us"], rel=1e-6)
    assert ours["total_us"] == pytest.approx(sum(ours["layer_us"]), rel=1e-6)
    assert sum(case["bound_us"]) <= ours["total_us"]


def test_the_best_baseline_is_the_best_of_all_under_all_exchanges(made):
    case, _, workload = made
    slots_R = scored.even_slots(workload, 18)
    totals = {}
    for name, exchange in itertools.product(BASELINES, EXCHANGES):
        slots = [placement.slots() for placement in baseline(name, workload, slots_R)]
        shares = [shares_of_slots(held, 256, workload.num_domains) for held in slots]
        totals[name, exchange] = sum(layer_us(workload, row, shares[row], slots[row], exchange) for row in range(2))
    best = min(totals, key=totals.__getitem__)
    assert (case["best"]["name"], case["best"]["exchange"]) == best
    assert case["best"]["total_us"] == pytest.approx(totals[best], rel=1e-6)
    for name in BASELINES:
        assert case["baselines_us"][name] == pytest.approx(min(totals[name, each] for each in EXCHANGES), rel=1e-6)
    assert ratio(case) <= 1.0


def test_rows_that_leave_are_counted_from_the_definition(made):
    """Pairs whose expert's copy lies in the other domain, by the plan's own shares."""
    _, path, workload = made
    domain = np.asarray(workload.cluster.domain_of_rank)
    expected = 0.0
    for row, source in itertools.product(range(2), range(16)):
        pairs = workload.routing.counts[row, 0] / workload.routing.counts[row].sum() * 128 * 8
        away = domain != domain[source]
        expected += (pairs @ shares_of_plan(path, row)[domain[source]][:, away]).sum() / 2
    found = scored.score("ours", load_plan(path).placements(), workload, "pairwise")
    assert found.rows == pytest.approx(expected, rel=1e-9)


def test_a_coherent_row_is_what_loops_over_tokens_give(tmp_path, monkeypatch):
    """Two layers of 64 experts and 80 tokens on four ranks, half of them planned on."""
    rng = np.random.default_rng(0)
    trace = np.argsort(rng.random((2, 80, 64)) ** np.arange(1, 65), axis=2)[:, :, :6]
    whole = Routing((1, 2), np.ones((2, 1, 64)), trace=trace, name="made")
    monkeypatch.setattr(coherent_cases, "halves", lambda _: whole.split(0.5))
    monkeypatch.setattr(coherent, "SWEEPS", (1, 1))
    setting = coherent_cases.Setting("made", 2, 4, 17, 128, "as listed")
    kept = coherent_cases.coherent_case(setting, tmp_path / "plan.json", 1)
    for part, workload in zip(("in", "out"), setting.workloads(), strict=True):
        ours = kept[part]["ours"]
        assert coherent_us(workload, tmp_path / "plan.json") == pytest.approx(ours["layer_us"], rel=1e-6, abs=1e-3)
        assert ours["total_us"] == pytest.approx(sum(ours["layer_us"]), abs=0.01)
        assert kept[part]["plain"]["exchange"] in EXCHANGES
    assert kept["in"]["ours"]["total_us"] <= kept["in"]["best"]["total_us"]


@pytest.mark.slow
@pytest.mark.parametrize("setting", coherent_cases.COHERENT, ids=lambda one: one.name)
def test_every_coherent_row_of_the_page(setting):
    """All layers of every coherent plan that lies in the work folder, on both halves."""
    path = WORK / f"coherent-{setting.name}.plan.json"
    if not path.exists():
        pytest.skip(f"no {path.name} in {WORK}; run python -m benchmarks.plan_quality run")
    kept = json.loads((WORK / f"coherent-{setting.name}.json").read_text())
    for part, workload in zip(("in", "out"), setting.workloads(), strict=True):
        assert coherent_us(workload, path) == pytest.approx(kept[part]["ours"]["layer_us"], rel=1e-6, abs=1e-3)


ROWS = [path.name for path in sorted(WORK.glob("*.plan.json")) if not path.name.startswith("coherent-")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS or ["none"])
def test_every_row_of_the_page(name):
    """Four layers of every plan that lies in the work folder."""
    if name == "none":
        pytest.skip(f"no plans in {WORK}; run python -m benchmarks.plan_quality run")
    kept = json.loads((WORK / name.replace(".plan.json", ".json")).read_text())
    if "trace" in kept:
        model, cluster = load_model("deepseek-v2-lite"), scored.hosts_of_h100(kept["hosts"], kept["ranks"])
        halves = zip(("in", "out"), scored.halves(kept["trace"]), strict=True)
        scores = [(kept[part]["ours"], build_workload(model, cluster, half, kept["tokens"])) for part, half in halves]
    else:
        layers = len(kept["ours"]["layer_us"])
        scores = [(kept["ours"], scored.counts_workload(kept["file"], kept["cluster"], kept["tokens"], layers))]
    for ours, workload in scores:
        rows = np.linspace(0, workload.num_layers - 1, min(4, workload.num_layers)).round().astype(int).tolist()
        theirs = total_us(workload, WORK / name, ours["exchange"], rows)
        assert theirs == pytest.approx([ours["layer_us"][row] for row in rows], rel=1e-6, abs=1e-3)  # kept to 0.001


def test_the_page_says_what_is_missing(made, tmp_path):
    case, _, _ = made
    kept = {**case, "machine_load": 1.0, "peak_mb": 100}
    name = "counts-hgx-h100x2-decode-prefill_in512"
    (tmp_path / f"{name}.json").write_text(json.dumps(kept))
    write_page(tmp_path, tmp_path)
    text = (tmp_path / "quality.md").read_text()
    assert "Not run yet" in text
    assert "{{" not in text
    assert "`counts-hgx-h100x4-prefill` (6)" in text
    assert f"**{ratio(case):.3f}**" in text
    lines = text.splitlines()
    for line, below in itertools.pairwise(lines):
        if line.startswith("|") and below.startswith("|"):
            assert line.count("|") == below.count("|")


def test_helpers_of_the_page():
    assert geometric([0.5, 2.0]) == pytest.approx(1.0)
    assert table("a | b", [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_a_score_keeps_every_field():
    one = scored.Score("ours", "dedup", (1.0, 2.5), 1.1, 1.2, 30.0)
    assert one.to_json() == {**dataclasses.asdict(one), "layer_us": [1.0, 2.5], "total_us": 3.5}


def test_moetuner_finds_the_least_deviation():
    """Six experts in three clusters of two: all 90 ways."""
    load = np.array([9.0, 1.0, 4.0, 6.0, 3.0, 7.0])
    best = min(
        deviation(load, np.array(ranks), 3)
        for ranks in itertools.product(range(3), repeat=6)
        if np.bincount(ranks, minlength=3).tolist() == [2, 2, 2]
    )
    found = balanced_clusters(load, 3, time_limit_s=20, relative_gap=1e-6)
    assert found.proven
    assert np.bincount(found.part_E).tolist() == [2, 2, 2]
    assert deviation(load, found.part_E, 3) == pytest.approx(best)


def test_exflow_finds_the_fewest_crossings():
    """Four experts in two halves over three layers: all 216 ways."""
    top1 = np.random.default_rng(0).integers(4, size=(3, 40))
    top1[1] = np.where(np.random.default_rng(1).random(40) < 0.7, (top1[0] + 1) % 4, top1[1])
    flow = transitions(top1, 4)
    halves = [half for half in itertools.product((0, 1), repeat=4) if sum(half) == 2]
    best = min(crossings(flow, np.array(parts)) for parts in itertools.product(halves, repeat=3))
    parts, _ = affine_parts(flow, 2, time_limit_s=20)
    assert crossings(flow, parts) == pytest.approx(best)
    moved = sum(a != b for a, b in zip(parts[0][top1[0]], parts[1][top1[1]], strict=True))
    moved += sum(a != b for a, b in zip(parts[1][top1[1]], parts[2][top1[2]], strict=True))
    assert crossings(flow, parts) == pytest.approx(moved / 40)
