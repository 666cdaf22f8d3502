"""`epplan run` as the user calls it, on ranks of its own and as a member of a torchrun job."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from app.main import COMMANDS
from executor import run as run_module
from executor.conformance import LayerVerdict
from executor.run import run
from executor.run_job import make_job
from executor.run_rank import run_rank
from planner.exact_rows import exact_rows
from tests.executor.layers import Case
from tests.executor.models import plan_of
from tests.executor.ranks import on_ranks
from topologies.errors import EpplanError

CASE = Case((8, 8), domains=2)
OPTIONS = {
    "routing": "random", "tokens_per_rank": 16, "layers": None, "steps": 2, "warmup": 1, "hidden": None,
    "intermediate": None, "dtype": None, "device": "cpu", "exchange": None, "forward_only": False, "guard": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def plan_file(tmp_path):
    plan_of(CASE, "two-level").save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


@pytest.fixture
def in_pool(monkeypatch):
    """Run on the ranks that the tests keep, instead of new ones."""
    monkeypatch.setattr(run_module, "_on_this_machine", lambda job: on_ranks(job.plan.num_ranks, run_rank, job)[0])


def job_of(plan, **options):
    return make_job(plan, plan.num_ranks, False, **OPTIONS | options)[0]


def invoke(*arguments):
    return CliRunner().invoke(run, [str(argument) for argument in arguments])


def trace_file(folder, tokens=40):
    rng = np.random.default_rng(0)
    ids = np.stack([[rng.permutation(CASE.experts)[: CASE.top_k] for _ in range(tokens)] for _ in range(2)])
    np.savez(folder / "trace.npz", topk_ids=ids, experts=[CASE.experts], layers=[0, 1])
    return folder / "trace.npz", ids


def test_the_surface_is_a_decision():
    assert COMMANDS["run"] == "app.commands.run:run"
    assert {option for parameter in run.params for option in parameter.opts} == {
        "plan", "--nproc", "--routing", "--tokens-per-rank", "--layers", "--steps", "--warmup", "--hidden",
        "--intermediate", "--dtype", "--device", "--exchange", "--forward-only", "--guard", "--json",
    }  # fmt: skip


def test_tables(plan_file):
    result = invoke(plan_file, "--tokens-per-rank", 16, "--steps", 2, "--device", "cpu")
    assert result.exit_code == 0, result.output
    for text in (
        "tiny: 2 of 2 layers of the plan for test on 2 ranks of 1 host (cpu, float32), two-level, 16 tokens a rank",
        "note: random routing, all experts equally likely",
        "note: the plan's 2 hosts are played by this one",
        "dispatch backward",
        "route backward",
        "rows at its experts",
        "fitted to probes of this machine",
        "conformance: all ",
        "starting 2 ranks on this machine (gloo",
    ):
        assert text in result.output, text


@pytest.mark.usefixtures("in_pool")
@pytest.mark.parametrize("exchange", ["pairwise", "dedup", "two-level"])
def test_rows_are_those_of_the_recorded_tokens(plan_file, tmp_path, exchange):
    trace, ids = trace_file(tmp_path)
    options = ("--tokens-per-rank", 20, "--steps", 1, "--warmup", 0, "--device", "cpu", "--forward-only")
    result = invoke(plan_file, "--routing", trace, *options, "--exchange", exchange, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report["conforms"]
    assert [row["phase"] for row in report["phases"]] == ["route", "dispatch", "compute", "combine"]
    assert [row["predicted_us"] is None for row in report["phases"]] == [True, False, False, False]
    plan = plan_of(CASE)
    for number, layer in enumerate(report["layers"]):
        halves = [ids[number, :20], ids[number, 20:]]
        hops = exact_rows(plan.placement(number), halves, exchange, plan.domain_of_rank, plan.rail_of_rank)
        assert layer["rows_sent"] == [
            sum(int(hop[0, 1]) for hop in hops.values()),
            sum(int(h[1, 0]) for h in hops.values()),
        ]
        assert layer["rows_crossing"] == sum(layer["rows_sent"])
        assert sum(layer["rows_at_experts"]) == ids[number].size
        assert layer["measured"]["isolated"] is True


@pytest.mark.usefixtures("in_pool")
def test_a_large_model_on_a_laptop_says_so(plan_file):
    result = invoke(plan_file, "--hidden", 24, "--tokens-per-rank", 4, "--steps", 1, "--device", "cpu", "--guard")
    assert result.exit_code == 0, result.output
    assert "note: hidden 24 instead of the 8 of tiny: times are not the model's" in result.output
    assert "note: --guard compares all collectives" in result.output


def test_one_rank_is_a_plan_too():
    job = job_of(plan_of(Case((8,), replicas=0.0)))
    result = on_ranks(1, run_rank, job)[0]
    assert [run.verdict.problems for run in result.layers] == [(), ()]
    assert {run.verdict.rows for run in result.layers} == {0}


@pytest.mark.usefixtures("in_pool")
def test_what_is_not_the_plan_ends_with_1_and_the_rank(plan_file, monkeypatch):
    def broken(job):
        result = on_ranks(2, run_rank, job)[0]
        wrong = replace(
            result.layers[1], verdict=LayerVerdict(1, 3, ("rank 1 sent 3 rows to rank 0, the plan says 4",))
        )
        return replace(result, layers=[result.layers[0], wrong])

    monkeypatch.setattr(run_module, "_on_this_machine", broken)
    result = invoke(plan_file, "--tokens-per-rank", 4, "--steps", 1, "--device", "cpu")
    assert result.exit_code == 1
    assert (
        "epplan: not the plan: layer 1: rank 1 sent 3 rows to rank 0, the plan says 4 (1 differences)" in result.output
    )
    assert "conformance: all" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nproc", 3], "a plan for 2 ranks (test), the job has 3"),
        (["--layers", "0,7"], "--layers 0,7: '7' is no layer of the plan (0..1)"),
        (["--routing", "none.npz"], "none.npz: no such file"),
        (["--hidden", 2**20, "--intermediate", 2**20, "--device", "cpu"], "this machine has"),
    ],
)
def test_mistakes_are_one_line(plan_file, arguments, message):
    result = invoke(plan_file, *arguments)
    assert isinstance(result.exception, EpplanError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_too_few_gpus(plan_file, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert "--device cuda: 2 ranks, 1 GPUs here" in str(invoke(plan_file, "--device", "cuda").exception)


def test_without_torch(plan_file, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "pip install 'epplan[executor]'" in str(invoke(plan_file).exception)


def test_help_needs_no_torch():
    code = "import sys; import app.commands.run; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=Path(__file__).parents[2])


def torchrun(*arguments, ranks=2):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [*command, "-m", "executor.run", *map(str, arguments)], cwd=root, capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip


def test_as_a_member_of_a_torchrun_job(plan_file, tmp_path):
    trace, _ = trace_file(tmp_path)
    done = torchrun(plan_file, "--routing", trace, "--tokens-per-rank", 8, "--steps", 1, "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["conforms"]
    assert report["ranks"] == 2


def test_a_torchrun_job_of_another_size(plan_file):
    done = torchrun(plan_file, ranks=1)
    assert done.returncode == 1
    assert f"epplan: rank 0: {plan_file}: a plan for 2 ranks (test), the job has 1" in done.stderr
    assert "executor/run.py" not in done.stderr, "no traceback of ours"
