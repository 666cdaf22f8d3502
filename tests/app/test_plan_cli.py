"""`epplan plan` and `epplan evaluate` as a user calls them: outputs, exit codes, one clear line for every mistake."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from app.commands.diff import diff
from app.commands.evaluate import evaluate
from app.commands.plan import plan
from app.main import COMMANDS, cli
from planner import load_plan
from tests.planner.routing_data import DATA


def plan_olmoe(run, loads, tmp_path, *more):
    arguments = ["--model", "olmoe-1b-7b", "--cluster", "hgx-h100:1", "--routing", loads(), "--workers", 1]
    return run("plan", *arguments, "-o", tmp_path / "plan.json", *more)


def test_plan_writes_and_compares(run, loads, tmp_path):
    code, out, err = plan_olmoe(run, loads, tmp_path, "--slots-per-rank", 9, "--tokens-per-rank", 512)
    assert code == 0, err
    assert load_plan(tmp_path / "plan.json").num_ranks == 8
    for word in ("linear", "round-robin", "eplb", "eplb-global", "this plan", "uncalibrated", "gap", "wrote"):
        assert word in out
    assert "8 ranks x 9 slots" in re.sub(r"\s+", " ", err)


def test_evaluate_json_has_the_promised_form_and_the_plan_is_never_worse(run, loads, tmp_path):
    plan_olmoe(run, loads, tmp_path, "--tokens-per-rank", 512)
    names = ["linear", "round-robin", "eplb", "eplb-global"]
    code, out, _ = run("evaluate", tmp_path / "plan.json", *names, "--json", "--routing", loads())
    assert code == 0
    document = json.loads(out)
    ours, *theirs = document["plans"]
    assert [row["name"] for row in theirs] == names
    keys = {"layer", "imbalance", "dispatch_us", "compute_us", "combine_us", "layer_us", "bottleneck"}
    assert keys <= set(ours["layers"][0])
    assert [layer["layer"] for layer in ours["layers"]] == list(range(16))
    assert ours["total_us"] == pytest.approx(sum(layer["layer_us"] for layer in ours["layers"]))
    for row in theirs:
        for mine, other in zip(ours["layers"], row["layers"], strict=True):
            assert mine["layer_us"] <= other["layer_us"] * (1 + 1e-12)


def test_plan_and_evaluate_agree(run, loads, tmp_path):
    _, out, _ = plan_olmoe(run, loads, tmp_path, "--json")
    planned = json.loads(out)["plans"][-1]
    _, out, _ = run("evaluate", tmp_path / "plan.json", "--json", "--routing", loads())
    evaluated = json.loads(out)["plans"][0]
    assert evaluated["total_us"] == pytest.approx(planned["total_us"], rel=1e-9)


def test_bundled_default(run, tmp_path):
    code, out, err = run("plan", "--time-limit", 0, "-o", tmp_path / "plan.json")
    assert code == 0, err
    assert "this plan" in out
    code, out, err = run("evaluate", tmp_path / "plan.json", "linear")
    assert code == 0, err


def test_same_inputs_give_the_same_slots(run, loads, tmp_path):
    plan_olmoe(run, loads, tmp_path)
    first = load_plan(tmp_path / "plan.json").layers
    plan_olmoe(run, loads, tmp_path, "--workers", 2)
    assert load_plan(tmp_path / "plan.json").layers == first


def failed(result, code, *fragments):
    found, out, err = result
    lines = err.strip().splitlines()
    assert found == code, err
    assert out == ""
    assert len(lines) == 1, err
    assert lines[0].startswith("epplan: ")
    for fragment in fragments:
        assert fragment in lines[0]


BASE = ["plan", "--model", "olmoe-1b-7b", "--cluster", "hgx-h100:1"]


def test_missing_file(run, tmp_path):
    failed(run(*BASE, "--routing", tmp_path / "none.json", "-o", tmp_path / "p.json"), 2, "none.json", "no such file")
    assert not (tmp_path / "p.json").exists()


def test_truncated_file(run, loads, tmp_path):
    path = loads()
    path.write_text(path.read_text()[:1000])
    failed(run(*BASE, "--routing", path, "-o", tmp_path / "p.json"), 2, "loads.json")
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize(
    ("counts", "fragments"),
    [
        (np.ones((16, 60)), ["60", "64"]),
        (np.full((16, 64), -1), ["-1"]),
        (np.zeros((16, 64)), ["zero"]),
        ([[1] * 64] * 15 + [[1] * 63], ["63"]),
    ],
)
def test_wrong_counts(run, loads, tmp_path, counts, fragments):
    written = loads(counts) if isinstance(counts, np.ndarray) else tmp_path / "ragged.json"
    if isinstance(counts, list):
        written.write_text(json.dumps({"logical_count": counts}))
    failed(run(*BASE, "--routing", written, "-o", tmp_path / "p.json"), 2, *fragments)
    assert not (tmp_path / "p.json").exists()


def test_nan_counts(run, tmp_path):
    path = tmp_path / "nan.json"
    path.write_text('{"logical_count": [' + ",".join(["[" + ",".join(["NaN"] * 64) + "]"] * 16) + "]}")
    failed(run(*BASE, "--routing", path), 2, "nan.json")


def test_too_few_slots(run, loads, tmp_path):
    failed(
        run(*BASE, "--routing", loads(), "--slots-per-rank", 7, "-o", tmp_path / "p.json"), 2,
        "slots_per_rank * ranks (7 * 8 = 56) < experts (64)", "--slots-per-rank 8",
    )  # fmt: skip
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize("slots", [0, -3])
def test_nonsense_slots(run, loads, slots):
    failed(run(*BASE, "--routing", loads(), "--slots-per-rank", slots), 2, str(slots))


def test_unknown_cluster_and_model_suggest(run, loads):
    wrong = ["plan", "--routing", loads()]
    failed(run(*wrong, "--model", "olmoe-1b-7b", "--cluster", "hgx-h10:1"), 2, "hgx-h10", "hgx-h100")
    failed(run(*wrong, "--model", "olmo-1b", "--cluster", "hgx-h100:1"), 2, "olmo-1b", "olmoe-1b-7b")


def test_memory_is_infeasible_with_the_nearest_change(run, tmp_path):
    path = tmp_path / "loads.json"
    path.write_text(json.dumps({"logical_count": np.ones((58, 256)).tolist()}))
    result = run(
        "plan", "--model", "deepseek-v3", "--cluster", "hgx-h100:1", "--routing", path, "--slots-per-rank", 32,
        "-o", tmp_path / "p.json",
    )  # fmt: skip
    failed(result, 1, "memory", "32 slots x 58 layers", "GB", "nearest feasible")
    assert not (tmp_path / "p.json").exists()


def test_parts_of_the_default_are_not_mixed(run, loads):
    failed(run("plan", "--model", "olmoe-1b-7b"), 2, "--routing is missing")
    failed(run("plan", "--routing", loads()), 2, "--model is missing")
    failed(run("plan", "--model", "olmoe-1b-7b", "--routing", loads()), 2, "--cluster is missing")


def test_output_is_checked_before_the_search(run, loads, tmp_path):
    failed(run(*BASE, "--routing", loads(), "-o", tmp_path / "none" / "p.json"), 2, "no such folder")


def test_wrong_option_is_one_line(run):
    failed(run("plan", "--exchange", "telepathy"), 2, "telepathy")
    failed(run("plam"), 2, "plam")


def test_evaluate_refuses_what_does_not_fit(run, loads, tmp_path):
    plan_olmoe(run, loads, tmp_path, "--time-limit", 0)
    plan_path = tmp_path / "plan.json"
    failed(run("evaluate", plan_path, "--routing", loads(), "--cluster", "hgx-h100:2"), 2, "8 ranks", "16 ranks")
    setting = ["--routing", loads(), "--model", "olmoe-1b-7b", "--cluster", "hgx-h100:1"]
    failed(run("evaluate", "eplp", *setting), 2, "eplp", "nearest: eplb")
    failed(run("evaluate", plan_path, "--routing", loads(np.ones((16, 32)))), 2, "32", "64")


def test_surface_is_frozen():
    """A new verb or option is a decision: change this list with it."""
    with_topology = {"diff", "evaluate", "plan", "topology"}
    assert with_topology <= set(COMMANDS)
    assert {option for param in plan.params for option in param.opts} >= {
        "--model", "--cluster", "--routing", "--slots-per-rank", "--tokens-per-rank", "--exchange", "--objective",
        "--time-limit", "--profile", "--seed", "--workers", "-o", "--output", "--json", "--from", "--max-moves",
        "--move-cost", "--without", "--rank-speed", "--survive", "--windows", "--robust",
        "--memory-per-rank", "--training", "--engine-compatible", "--replica-choice",
    }  # fmt: skip
    assert {option for param in diff.params for option in param.opts} >= {
        "old", "new", "--routing", "--cluster", "--tokens-per-rank", "--profile", "--json",
    }  # fmt: skip
    assert {option for param in evaluate.params for option in param.opts} >= {
        "plans", "--routing", "--model", "--cluster", "--slots-per-rank", "--tokens-per-rank", "--exchange",
        "--profile", "--json",
    }  # fmt: skip


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_help_teaches(verb):
    result = CliRunner().invoke(cli, [verb, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output
    assert len(result.output) > 400


@pytest.mark.parametrize("limit", ["inf", "nan"])
def test_limits_are_finite(run, loads, limit):
    failed(run(*BASE, "--routing", loads(), "--time-limit", limit), 2, "--time-limit", limit)
    failed(run(*BASE, "--routing", loads(), "--tokens-per-rank", limit), 2, "tokens per rank", limit)


def test_a_plan_does_not_overwrite_what_it_is_made_from(run, loads):
    statistics = Path(loads())
    before = statistics.read_bytes()
    failed(run(*BASE, "--routing", statistics, "-o", statistics), 2, "which is read here, and would be overwritten")
    assert statistics.read_bytes() == before


def test_output_names_that_cannot_be_written(run, loads, tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for output in (loop, tmp_path / ("x" * 300), "", tmp_path):
        failed(run(*BASE, "--routing", loads(), "-o", output), 2)


def test_evaluate_says_what_it_does_not_use(run, loads, tmp_path):
    plan_olmoe(run, loads, tmp_path, "--time-limit", 0)
    plan_path = tmp_path / "plan.json"
    failed(run("evaluate", plan_path, "--routing", loads(), "--model", "mixtral-8x7b"), 2, "leave --model out")
    failed(run("evaluate", plan_path), 2, "--routing is missing")
    failed(run("evaluate", plan_path, "--routing", loads(), "--tokens-per-rank", 0), 2, "tokens per rank")
    other = np.random.default_rng(1).integers(1, 99, (16, 64))
    _, _, err = run("evaluate", plan_path, "eplb", "--routing", loads(other, "other.json"))
    assert "other statistics than the plan was made on" in err


@pytest.mark.parametrize("name", ["hgx_h200_8x_nccl_topo.xml", "perlmutter_a100_4x_nccl_topo.xml", "rccl_mi300_8p.xml"])
def test_an_imported_machine_can_be_planned_on(run, loads, tmp_path, name):
    file = DATA / "topologies" / "nccl_xml" / name
    if not file.is_file():
        pytest.skip(f"no {file.name} in EPPLAN_DATA")
    cluster = tmp_path / "cluster.yaml"
    code, _, err = run("topology", "import", file, "--hosts", 2, "-o", cluster, "--nic-gbps", 25)
    assert code == 0, err
    code, out, err = run(
        "plan", "--model", "olmoe-1b-7b", "--cluster", cluster, "--routing", loads(), "--time-limit", 0,
        "-o", tmp_path / "plan.json",
    )  # fmt: skip
    assert code == 0, err
    assert "this plan" in out
