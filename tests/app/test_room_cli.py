"""`epplan plan --memory-per-rank` and `--engine-compatible`, as a user calls them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from app.room import Room
from planner import load_plan
from planner.baselines import baseline
from planner.solve import solve
from planner.solve.slot_budget import SlotBudget
from tests.app.test_plan_cli import failed
from tests.planner.definitions import PROFILE
from tests.planner.test_solve import random_workload
from topologies import Infeasible

ON_ONE = [
    "--model", "olmoe-1b-7b", "--cluster", "hgx-h100:1", "--workers", 1, "--tokens-per-rank", 512,
    "--exchange", "pairwise",
]  # fmt: skip
# two of OLMoE's 16 layers need copies, the others are even; one expert of all layers takes 16 x 12.6 MB
LAYERS = np.full((16, 64), 50)
LAYERS[3, 5] = LAYERS[9, 7] = 1500
EXPERT_BYTES = 3 * 2048 * 1024 * 2


def test_memory_is_spent_where_it_pays(run, loads, tmp_path):
    """16 layers x 8 slots x 12.6 MB = 1.61 GB, routers 4 MB, buffers some MB: 1.75 GB leave room for ten slots."""
    arguments = ["plan", *ON_ONE, "--routing", loads(LAYERS), "--memory-per-rank", 1.75, "--time-limit", 2]
    code, out, err = run(*arguments, "-o", tmp_path / "plan.json", "--json")
    assert code == 0, err
    memory, plan = json.loads(out)["memory"], load_plan(tmp_path / "plan.json")
    slots = [max(map(len, layer.slots)) for layer in plan.layers]
    assert memory["slots_per_layer"] == slots
    assert {slots[3], slots[9]} > {8} or min(slots[3], slots[9]) > 8
    assert sum(slots) * EXPERT_BYTES <= memory["used"]["expert_bytes"] + 1
    assert sum(memory["used"].values()) <= memory["limit_bytes"] == 1_750_000_000
    assert memory["slots_alike"] == 8
    code, out, _ = run(*arguments)
    assert code == 0
    for words in ("memory of a rank (predicted)", "of 1.75 GB", "weights of experts", "dispatch buffers", "99%"):
        assert words in " ".join(out.split())


def test_too_little_memory_is_infeasible(run, loads):
    arguments = ["plan", *ON_ONE, "--routing", loads(LAYERS), "--memory-per-rank"]
    failed(run(*arguments, 1.5), 1, "8 slots x 16 layers", "--memory-per-rank 1.5", "nearest feasible", "1.6")
    failed(run(*arguments, 2, "--training"), 1, "nearest feasible", "--memory-per-rank 13")
    failed(run(*arguments, 100), 1, "80.00 GB", "20.00 GB")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--slots-per-rank", 9], ["--slots-per-rank", "--memory-per-rank"]),
        (["--windows", 2], ["--windows 2"]),
        (["--memory-per-rank", "nan"], ["nan"]),
    ],
)
def test_what_does_not_go_together(run, loads, more, words):
    failed(run("plan", *ON_ONE, "--routing", loads(LAYERS), "--memory-per-rank", 2, *more), 2, *words)


def test_training_needs_a_limit(run, loads, tmp_path):
    failed(run("plan", *ON_ONE, "--routing", loads(LAYERS), "--training"), 2, "--training", "--memory-per-rank")
    speeds = tmp_path / "speeds.csv"
    speeds.write_text("rank,speed,slots\n3,0.8,7\n")
    failed(
        run("plan", *ON_ONE, "--routing", loads(LAYERS), "--engine-compatible", "--rank-speed", speeds), 2,
        "--engine-compatible", "--rank-speed",
    )  # fmt: skip


def test_an_engine_compatible_plan_is_exported_without_loss(run, loads, tmp_path):
    counts = np.random.default_rng(3).zipf(1.6, (16, 64)).clip(1, 200) * 10
    routing, plan = loads(counts), tmp_path / "plan.json"
    code, out, err = run(
        "plan", *ON_ONE, "--routing", routing, "--engine-compatible", "--slots-per-rank", 10, "--time-limit", 3,
        "-o", plan,
    )  # fmt: skip
    assert code == 0, err
    assert "engine-compatible" in out
    slots = {len(row) for layer in load_plan(plan).layers for row in layer.slots}
    assert len(slots) == 1
    assert slots <= {8, 9, 10}
    for target in ("sglang", "trtllm", "vllm-49572", "vllm-ascend"):
        code, out, err = run("export", plan, "--to", target, "-o", tmp_path / target)
        assert (code, out) == (0, ""), err
        assert "lost" not in err
    again = tmp_path / "again.json"
    code, _, err = run(
        "import", tmp_path / "sglang", "--from", "sglang", "--model", "olmoe-1b-7b", "--cluster", "hgx-h100:1",
        "--routing", routing, "--tokens-per-rank", 512, "--exchange", "pairwise", "-o", again,
    )  # fmt: skip
    assert code == 0, err
    assert load_plan(again).predicted.total_us == pytest.approx(load_plan(plan).predicted.total_us)


def test_an_uneven_plan_in_force_is_followed_by_an_even_one(run, loads, tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    code, _, err = run("plan", *ON_ONE, "--routing", loads(LAYERS), "--time-limit", 0, "-o", old)
    assert code == 0, err
    code, _, err = run(
        "plan", *ON_ONE, "--routing", loads(LAYERS), "--from", old, "--max-moves", "20%", "--engine-compatible",
        "--time-limit", 2, "-o", new,
    )  # fmt: skip
    assert code == 0, err
    layers = load_plan(new).layers
    assert len({len(row) for layer in layers for row in layer.slots}) == 1
    assert not any(layer.shares for layer in layers)


@pytest.mark.parametrize("choice", ["cover", "auto"])
def test_replica_choice(run, tmp_path, choice):
    """On the bundled trace: a cover is written where it is asked for, and by auto only where it is faster."""
    setting = ["plan", "--cluster", "hgx-h100:2", "--slots-per-rank", 4, "--exchange", "dedup", "--time-limit", 0]
    code, out, err = run(*setting, "--json")
    assert code == 0, err
    shares = json.loads(out)
    plan = tmp_path / "plan.json"
    code, out, err = run(*setting, "--replica-choice", choice, "-o", plan, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert load_plan(plan).replica_choice == found["replica_choice"]
    faster = found["plans"][-1]["total_us"] < shares["plans"][-1]["total_us"]
    assert found["replica_choice"] == "cover" if choice == "cover" else faster == (found["replica_choice"] == "cover")
    code, out, err = run("evaluate", plan, "--json")
    assert code == 0, err
    assert json.loads(out)["plans"][0]["total_us"] == pytest.approx(found["plans"][-1]["total_us"])


def test_a_cover_has_no_equal_shares(run):
    failed(
        run("plan", "--replica-choice", "cover", "--engine-compatible"), 2, "--replica-choice", "--engine-compatible"
    )
    failed(run("plan", "--replica-choice", "auto", "--windows", 2), 2, "--replica-choice auto", "2")


@pytest.mark.parametrize("short_bytes", [0, 1])
def test_what_follows_the_search_keeps_within_the_memory_too(short_bytes):
    """A budget of what a plan takes is enough, one byte less is not."""
    workload = random_workload(1)
    placements = baseline("eplb", workload, np.full(16, 3))
    layers = workload.num_layers
    budget = SlotBudget(np.full(layers, 3), 3, np.zeros((layers, 1)), np.array([3]), limit_bytes=0)
    limit = budget.use(workload, placements).total_bytes - short_bytes
    room = Room(np.full(16, 3), even=False, budget=replace(budget, limit_bytes=limit))
    if short_bytes:
        with pytest.raises(Infeasible, match=r"the plan takes .* after --from"):
            room.check(workload, placements)
    else:
        room.check(workload, placements)


def test_a_plan_may_have_more_slots_in_a_layer_than_its_budget():
    """The best baselines stand at the slots that fit alike in every layer: 3 here, where the budget had 4 and 2."""
    workload = random_workload(1)
    solution = solve(workload, PROFILE, np.full(16, 3), time_limit_s=0)
    budget = SlotBudget(np.array([4, 2]), 3, np.zeros((2, 1)), np.array([3]))
    room = Room(budget.slots_LR(16), even=False, budget=budget)
    assert room.slots_of(solution).tolist() == [[4] * 16, [3] * 16]
    assert Room(np.full(16, 3), even=False).slots_of(solution).tolist() == [3] * 16
