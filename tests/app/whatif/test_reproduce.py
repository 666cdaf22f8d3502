"""What the page Export offers, run as the user would: the command line prints what the page shows."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from app.main import cli
from app.whatif import work
from app.whatif.cases import make_case
from app.whatif.reproduce import reproduce
from app.whatif.settings import POWER_LAW, Settings
from app.whatif.state import Session
from planner import load_model, load_plan
from planner.exporters import TARGETS, export_plan
from planner.synthetic import logical_count_json, power_law

LITE = Settings(model="deepseek-v2-lite", routing=POWER_LAW, cluster="hgx-h100:2", tokens=256.0, slots=5)
CASES = {
    "bundled": Settings(),
    "power law": LITE,
    "sharpened bundle": Settings(power=1.5, tokens=64.0),
    "other links": LITE.but(nic_gbps=100.0, scale_up=0.5, oversubscription=2.0, profile="h200"),
    "a lost host": LITE.but(hosts=3, lost=("host1", "host0/nic2"), slots=6),
    "a slow rank": LITE.but(slow_rank=5, slow_speed=0.5, exchange="dedup", seed=3),
    "balance": LITE.but(objective="balance", overlap="two-batches"),
    "a host to lose": LITE.but(survive=True),
}


@pytest.mark.parametrize("name", list(CASES))
def test_commands_print_the_same_numbers(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = Session(settings=CASES[name])
    plan = work.planned(mine, work.case_of(mine))
    made = reproduce(plan, mine.uploads)
    for file, text in made.files.items():
        (tmp_path / file).write_text(text)
    (tmp_path / "plan.json").write_text(made.document.to_json())
    evaluated = _run(*made.evaluate[1:], "--json")["plans"]
    assert evaluated[0]["total_us"] == pytest.approx(plan.prediction.total_us, rel=1e-12)
    baselines = {one.name: one.total_us for one in plan.solution.predictions[:-1]}
    assert {one["name"]: one["total_us"] for one in evaluated[1:]} == pytest.approx(baselines, rel=1e-12)
    planned = _run(*made.plan[1:], "--json")["plans"][-1]
    assert planned["total_us"] == pytest.approx(plan.prediction.total_us, rel=1e-12)
    written = load_plan("plan.json")
    assert written.provenance.inputs == made.document.provenance.inputs
    assert (written.cluster, written.layers) == (made.document.cluster, made.document.layers)


def _run(*arguments: str):
    done = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_files_of_the_user_are_named_and_not_offered():
    mine = Session()
    model = load_model("deepseek-v2-lite")
    data = logical_count_json(power_law(model, 0.5), model).encode()
    reference = mine.uploads.add("routing", "my loads.json", data).reference
    mine.settings = LITE.but(routing=reference)
    made = reproduce(work.planned(mine, work.case_of(mine)), mine.uploads)
    assert made.own == ("my loads.json",)
    assert made.files == {}
    assert "--routing" in made.plan
    assert "'my loads.json'" in made.document.provenance.command


def test_engines_take_the_plan_with_what_it_costs():
    mine = Session(settings=LITE)
    plan = work.planned(mine, make_case(LITE, mine.uploads))
    document = reproduce(plan, mine.uploads).document
    for target in TARGETS:
        exported = export_plan(document, target, lossy=(plan.workload, plan.case.profile))
        assert exported.data
