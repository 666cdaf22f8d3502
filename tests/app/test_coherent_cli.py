"""`--exchange coherent` as a user calls it: the same numbers in plan.json and evaluate, one line where it cannot be."""

import json

import pytest

from planner import load_plan
from tests.app.test_plan_cli import failed


@pytest.fixture
def coherent_plan(run, tmp_path):
    """A plan of the bundled trace."""
    code, out, err = run("plan", "--exchange", "coherent", "--time-limit", 0, "-o", tmp_path / "plan.json")
    assert code == 0, err
    assert "without coherent" in out
    return tmp_path / "plan.json"


def test_plan_and_evaluate_say_the_same(run, coherent_plan):
    plan = load_plan(coherent_plan)
    assert plan.exchange == "coherent"
    code, out, _ = run("evaluate", coherent_plan, "linear", "--json")
    assert code == 0
    ours, linear = json.loads(out)["plans"]
    assert ours["total_us"] == pytest.approx(plan.predicted.total_us, rel=1e-12)
    assert (ours["exchange"], linear["exchange"]) == ("coherent", "coherent")
    assert ours["total_us"] <= linear["total_us"]
    code, out, _ = run("evaluate", coherent_plan, "--exchange", "dedup", "--json")
    assert code == 0
    assert json.loads(out)["plans"][0]["exchange"] == "dedup"


def test_auto_leaves_it_out(run, coherent_plan):
    code, out, _ = run("evaluate", coherent_plan, "--exchange", "auto", "--json")
    assert code == 0
    assert json.loads(out)["plans"][0]["exchange"] != "coherent"


@pytest.mark.parametrize(
    "more",
    [
        ("--from", "plan.json"),
        ("--survive", "host"),
        ("--windows", 2),
        ("--memory-per-rank", 1),
        ("--engine-compatible",),
        ("--replica-choice", "cover"),
        ("--objective", "balance"),
        ("--overlap", "two-batches"),
    ],
)
def test_options_that_do_not_go_with_it(run, more):
    found = run("plan", "--exchange", "coherent", *more)
    failed(found, 2, f"epplan: {more[0]}", "does not go with --exchange coherent; leave one of them out")


def test_counts_are_refused_with_what_to_record(run, loads):
    inputs = ["--model", "olmoe-1b-7b", "--cluster", "hgx-h100:1", "--routing", loads()]
    found = run("plan", *inputs, "--exchange", "coherent")
    failed(found, 2, "loads.json: counts only", "record the experts of every token in all layers")


@pytest.mark.parametrize(
    "verb",
    [
        ("simulate", "PLAN"),
        ("diff", "PLAN", "PLAN"),
        ("plan", "--from", "PLAN"),
        ("watch", "FOLDER", "--plan", "PLAN", "--apply", "true"),
        ("validate", "PLAN"),
        ("run", "PLAN"),
    ],
)
def test_what_takes_layers_one_by_one_refuses_the_plan(run, coherent_plan, verb):
    if verb[0] in ("validate", "run"):
        pytest.importorskip("torch", reason="torch is not installed")
    names = {"PLAN": coherent_plan, "FOLDER": coherent_plan.parent}
    found = run(*(names.get(word, word) for word in verb))
    failed(found, 2, "made for --exchange coherent", "make it with another one (auto, pairwise, dedup, two-level)")
