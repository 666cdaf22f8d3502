"""`epplan plan` from a plan in force, on clusters that lost parts, and `epplan diff`, as a user calls them."""

import json

import numpy as np
import pytest

from planner import load_plan
from tests.app.test_plan_cli import failed, plan_olmoe

FLAT = np.random.default_rng(5).integers(20, 200, (16, 64))
DRIFTED = np.where(np.random.default_rng(6).random(FLAT.shape) < 0.3, FLAT[:, ::-1], FLAT)
ON_TWO = ["--model", "olmoe-1b-7b", "--cluster", "hgx-h100:2", "--workers", 1, "--exchange", "two-level"]


@pytest.fixture
def old_and_new(run, loads, tmp_path):
    """A plan for one load, and the next one for another with at most 5 % of the slots moved."""
    first, second = loads(FLAT), loads(DRIFTED, "drifted.json")
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    code, _, err = run("plan", *ON_TWO, "--routing", first, "--time-limit", 0, "-o", old)
    assert code == 0, err
    code, out, err = run(
        "plan", *ON_TWO, "--routing", second, "--from", old, "--max-moves", "5%", "--time-limit", 8, "-o", new, "--json"
    )
    assert code == 0, err
    return old, new, second, json.loads(out)


def test_from_a_plan_with_few_moves_and_diff_says_the_same(run, old_and_new):
    old, new, routing, document = old_and_new
    before, after = load_plan(old), load_plan(new)
    arrived = {
        (one.layer, rank, expert)
        for one, other in zip(before.layers, after.layers, strict=True)
        for rank, (had, has) in enumerate(zip(one.slots, other.slots, strict=True))
        for expert in set(has) - set(had)
    }
    assert 0 < len(arrived) <= 16 * 16 * 5 * 5 // 100
    assert after.provenance.inputs["from"].startswith("sha256:")
    code, out, err = run("diff", old, new, "--routing", routing, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert {(move["layer"], move["to"], move["expert"]) for move in found["moves"]} == arrived
    for move in found["moves"]:
        assert after.layers[move["layer"]].slots[move["to"]][move["slot"]] == move["expert"]
        assert move["expert"] in before.layers[move["layer"]].slots[move["from"]]
    assert found["bytes"] == len(arrived) * after.model.expert_bytes
    for field in ("time_us", "step_us_new", "step_us_in_force", "pay_back_steps", "moved", "links"):
        assert document["migration"][field] == pytest.approx(found[field]) if field != "links" else True
    assert found["pay_back_steps"] == pytest.approx(
        found["time_us"] / (found["step_us_in_force"] - found["step_us_new"])
    )
    names = [row["name"] for row in document["plans"]]
    assert names[-3:] == ["in force", "any moves", "this plan"]
    assert document["plans"][-1]["total_us"] == pytest.approx(found["step_us_new"])


def test_diff_prints_links_and_pay_back(run, old_and_new):
    old, new, routing, _ = old_and_new
    code, out, err = run("diff", old, new, "--routing", routing)
    assert code == 0, err
    for words in ("slots (", "Weights over links", "NVLink", "pays back after"):
        assert words in out
    code, out, err = run("diff", old, new)
    assert code == 0
    assert "--routing" in err
    assert "pays back" not in out


def test_a_plan_for_what_is_left_of_the_cluster(run, loads, tmp_path):
    old, left = tmp_path / "old.json", tmp_path / "left.json"
    routing = loads(FLAT)
    run("plan", *ON_TWO, "--routing", routing, "--time-limit", 0, "-o", old)
    lost = ["--without", "host1/gpu2,host0/nic4", "--without", "host1/gpu3"]
    code, out, err = run("plan", *ON_TWO, "--routing", routing, "--time-limit", 0, *lost, "--from", old, "-o", left)
    assert code == 0, err
    assert "14 ranks" in err
    assert "from the checkpoint" in out
    plan = load_plan(left)
    assert plan.cluster.name == "hgx-h100:2 without host0/nic4,host1/gpu2,host1/gpu3"
    code, out, err = run("evaluate", left, "--routing", routing, "--json")
    assert code == 0, err
    assert json.loads(out)["plans"][0]["total_us"] == pytest.approx(plan.predicted.total_us)
    code, out, err = run("diff", old, left, "--json")
    assert code == 0, err
    gone = {2, 3}
    held = [row for rank, row in enumerate(load_plan(old).layers[0].slots) if rank - 8 not in gone]
    lost_experts = set(range(64)) - {expert for row in held for expert in row}
    moves = [move for move in json.loads(out)["moves"] if move["layer"] == 0]
    assert {move["expert"] for move in moves if move["from"] is None} == lost_experts


def test_rank_speeds_and_slots_come_back_in_evaluate(run, loads, tmp_path):
    speeds, out_file = tmp_path / "speeds.csv", tmp_path / "plan.json"
    speeds.write_text("rank,speed,slots\n3,0.5,\n7,1,8\n")
    code, out, err = plan_olmoe(
        run, loads, tmp_path, "--rank-speed", speeds, "--tokens-per-rank", 2048, "--time-limit", 2
    )
    assert code == 0, err
    plan = load_plan(out_file)
    assert plan.workload.slots_per_rank == (9,) * 7 + (8,)
    assert [entry.speed for entry in plan.cluster.ranks] == [1, 1, 1, 0.5, 1, 1, 1, 1]
    code, out, err = run("evaluate", out_file, "linear", "--routing", loads(), "--json")
    assert code == 0, err
    assert json.loads(out)["plans"][0]["total_us"] == pytest.approx(plan.predicted.total_us)


def test_survive_prints_the_price(run, loads, tmp_path):
    arguments = [*ON_TWO, "--routing", loads(FLAT), "--slots-per-rank", 8, "--survive", "host", "--time-limit", 1]
    code, out, err = run("plan", *arguments, "-o", tmp_path / "plan.json")
    assert code == 0, err
    assert "1,024 of 1,024 experts (all layers) survive the loss of any host; the price is" in " ".join(out.split())
    for layer in load_plan(tmp_path / "plan.json").layers:
        for host in (layer.slots[:8], layer.slots[8:]):
            assert {expert for row in host for expert in row} == set(range(64))


@pytest.mark.parametrize(
    ("options", "code", "fragments"),
    [
        (["--max-moves", "10"], 2, ["--from"]),
        (["--from", "OLD", "--max-moves", "many"], 2, ["'many'", "10%"]),
        (["--from", "OLD", "--max-moves", "101%"], 2, ["101%"]),
        (["--from", "OLD", "--move-cost", "inf"], 2, ["--move-cost"]),
        (["--from", "none.json"], 2, ["none.json"]),
        (["--from", "OLD", "--cluster", "hgx-h100:1"], 2, ["16 ranks", "8 ranks"]),
        (["--from", "OLD", "--without", "host1/gpu0", "--max-moves", "0"], 1, ["nearest feasible: --max-moves"]),
        (["--without", "host7"], 2, ["host7", "0 to 1"]),
        (["--without", "host0,host1"], 2, ["no rank is left"]),
        (["--survive", "host", "--from", "OLD", "--max-moves", "3"], 2, ["--survive"]),
        (["--survive", "host", "--cluster", "hgx-h100:1"], 2, ["one host"]),
        (["--rank-speed", "none.csv"], 2, ["none.csv"]),
    ],
)
def test_mistakes_are_one_line(run, loads, tmp_path, options, code, fragments):
    routing, old = loads(FLAT), tmp_path / "old.json"
    if "OLD" in options:
        run("plan", *ON_TWO, "--routing", routing, "--time-limit", 0, "-o", old)
    named = [str(old) if option == "OLD" else option for option in options]
    found, out, err = run("plan", *ON_TWO, "--routing", routing, "--time-limit", 0, "-o", tmp_path / "p.json", *named)
    failed((found, out, err.splitlines()[-1] + "\n"), code, *fragments)
    assert not (tmp_path / "p.json").exists()


def test_several_statistics_are_scenarios(run, loads, tmp_path):
    first, second, out_file = loads(FLAT), loads(DRIFTED, "drifted.json"), tmp_path / "plan.json"
    arguments = [*ON_TWO, "--routing", first, "--routing", second, "--time-limit", 4]
    code, out, err = run("plan", *arguments, "-o", out_file, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert [one["name"] for one in document["scenarios"]] == ["loads.json", "drifted.json"]
    inputs = load_plan(out_file).provenance.inputs
    assert inputs["routing"] != inputs["routing 2"]
    for path, scenario in zip((first, second), document["scenarios"], strict=True):
        _, out, _ = run("evaluate", out_file, "--routing", path, "--json")
        ours = scenario["total_us"]["this plan"]
        assert json.loads(out)["plans"][0]["total_us"] == pytest.approx(ours)
    worst = max(document["scenarios"], key=lambda one: one["total_us"]["this plan"])
    assert document["worst_scenario"] == worst["name"]
    assert document["plans"][-1]["total_us"] == pytest.approx(worst["total_us"]["this plan"])


def test_windows_of_the_bundled_trace(run):
    code, out, err = run("plan", "--windows", 3, "--robust", "cvar:0.5", "--time-limit", 2)
    assert code == 0, err
    assert "window 3 of 3" in " ".join(err.split())
    for words in ("in each scenario", "plan of the mean", "where this plan takes longest"):
        assert words in " ".join(out.split())


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--robust", "mean"], ["several scenarios"]),
        (["--windows", "2"], ["neither a trace nor times"]),
        (["--routing", "none.json"], ["none.json"]),
        (["--routing", "SAME", "--robust", "best"], ["'best'", "cvar"]),
        (["--routing", "SAME", "--survive", "host"], ["one scenario"]),
    ],
)
def test_mistakes_with_scenarios_are_one_line(run, loads, options, fragments):
    routing = loads(FLAT)
    named = [str(routing) if option == "SAME" else option for option in options]
    failed(run("plan", *ON_TWO, "--routing", routing, "--time-limit", 0, *named), 2, *fragments)
