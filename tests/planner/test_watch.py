"""The next plan on new statistics, against evaluating both plans apart, and when it pays."""

from dataclasses import replace

import numpy as np
import pytest

from planner import assemble_plan, build_workload, load_cluster, load_profile, predict, slots_of_ranks, solve
from planner.migrate import MoveLimit, migration
from planner.routing import Routing
from planner.watch import Search, Threshold, drift_between, next_plan, slots_of
from tests.planner.definitions import tiny_model
from topologies import Cluster

LAYERS = 3
LOAD = np.random.default_rng(1).integers(50, 500, (LAYERS, 16)).astype(float)


def _routing(load_LE):
    return Routing(tuple(range(LAYERS)), load_LE[:, None, :], name="loads", sha256="0")


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return load_cluster("hgx-h100:1")


@pytest.fixture(scope="module")
def old(cluster):
    one = tiny_model(16)
    model = one.model_copy(update={"num_layers": LAYERS, "moe_layers": tuple(range(LAYERS))})
    profile = load_profile()
    workload = build_workload(model, cluster, _routing(LOAD), 512)
    slots_R = slots_of_ranks(model, cluster, 3, LAYERS)
    solution = solve(workload, profile, slots_R, time_limit_s=0)
    return assemble_plan(workload, profile, slots_R, solution, seed=0, inputs={"routing": "old"}, command="test")


def _next(old, cluster, load_LE, **search):
    workload = build_workload(old.model, cluster, _routing(load_LE), old.workload.tokens_per_rank)
    found = next_plan(
        old,
        workload,
        load_profile(),
        Search(time_limit_s=0, workers=1, **search),
        inputs={"routing": "new"},
        command="t",
    )
    return workload, found


def test_its_figures_are_those_of_evaluating_both_plans_and_their_difference(old, cluster):
    workload, found = _next(old, cluster, LOAD[:, ::-1])
    profile = load_profile()
    old_us, new_us = (
        predict("plan", plan.placements(), workload, profile, plan.exchange).total_us for plan in (old, found.plan)
    )
    assert (found.old_us, found.new_us) == pytest.approx((old_us, new_us))
    assert new_us < old_us
    moved = migration(old.placements(), found.plan.placements(), workload.layers, cluster, old.model, profile)
    assert found.migration.moves == moved.moves
    assert found.gain == pytest.approx(1 - new_us / old_us)
    assert found.pay_back_steps == pytest.approx(moved.time_us / (old_us - new_us))
    assert found.plan.provenance.inputs == {"routing": "new"}
    assert found.plan.exchange == old.exchange


def test_moves_are_limited_and_the_same_load_needs_none(old, cluster):
    _, free = _next(old, cluster, LOAD[:, ::-1])
    allowed = len(free.migration.moves) // 2
    _, limited = _next(old, cluster, LOAD[:, ::-1], limit=MoveLimit(max_moves=allowed))
    assert 0 < len(limited.migration.moves) <= allowed
    assert 0 < limited.gain < free.gain
    _, same = _next(old, cluster, LOAD)
    assert same.gain == pytest.approx(0, abs=1e-9)
    assert not same.migration.moves
    assert Threshold(0.0, 1e9).objection(same) is not None


def test_slots_are_those_that_the_layers_of_the_plan_have(old):
    """Layer 0 has 3 slots a rank, one of them free; layer 1 has 2, all in use; `slots_per_rank` is the limit."""
    uneven = [list(row) for row in old.layers[0].slots]
    three, two = [[0, 1, 2]] * 7 + [[3, 4]], [[0, 1]] * 8
    layers = [one.model_copy(update={"slots": tuple(map(tuple, rows)), "shares": {}})
              for one, rows in zip(old.layers, (three, two, uneven), strict=True)]  # fmt: skip
    slots_LR, even = slots_of(old.model_copy(update={"layers": tuple(layers)}))
    assert slots_LR[:2].tolist() == [[3] * 8, [2] * 8]
    assert not even
    assert slots_of(old.model_copy(update={"layers": (layers[1],)}))[1]
    few = old.workload.model_copy(update={"slots_per_rank": (1, *[3] * 7)})
    assert slots_of(old.model_copy(update={"layers": (layers[1],), "workload": few}))[0].tolist() == [[1, *[2] * 7]]


def test_a_plan_pays_where_gain_and_pay_back_meet_the_threshold(old, cluster):
    _, found = _next(old, cluster, LOAD[:, ::-1])
    steps = found.pay_back_steps
    assert Threshold(found.gain * 0.99, steps * 1.01).objection(found) is None
    assert "less than" in Threshold(found.gain * 1.01, steps * 1.01).objection(found)
    assert "pays back after" in Threshold(found.gain * 0.99, steps * 0.99).objection(found)
    assert "no plan found is faster" in Threshold(0, 1e9).objection(replace(found, new_us=found.old_us * 1.1))


def test_drift_is_the_part_of_the_load_that_moved():
    """10,000 of 40,000 tokens go to another expert: a quarter, less what chance alone would move."""
    before = np.tile([10_000.0, 10_000, 10_000, 10_000], (LAYERS, 1))
    now = np.tile([20_000.0, 0, 10_000, 10_000], (LAYERS, 1))
    assert drift_between(_routing(before), _routing(now)) == pytest.approx(0.25, abs=0.01)
    assert drift_between(_routing(before), _routing(before)) == 0
    assert drift_between(_routing(before), replace(_routing(now), layers=(0, 1, 5))) is None
