"""Ranks of other speed or memory: against GPUs whose own figures are slower, and files that are wrong."""

from dataclasses import replace

import numpy as np
import pytest

from planner import build_workload, slots_of_ranks, solve
from planner.cost import step_cost
from planner.placement import check_placement
from planner.plan import plan_cluster
from planner.rank_speeds import load_rank_speeds
from planner.solve.incumbents import place_baselines
from tests.planner.definitions import PROFILE, routing_of, tiny_cluster, tiny_model
from topologies import BadInput, Infeasible

SPEEDS = [1.0, 0.5, 1.0, 0.25]


def workload_on(cluster, experts=8, seed=0):
    counts = np.random.default_rng(seed).integers(20, 100, experts)
    return build_workload(tiny_model(experts), cluster, routing_of(counts), 2000)


def slow_gpus(cluster):
    """The same ranks on GPUs whose data sheets say it."""
    gpus = tuple(
        replace(
            gpu,
            hbm_gbps=gpu.hbm_gbps * speed,
            peak_tflops={dtype: peak * speed for dtype, peak in gpu.peak_tflops.items()},
        )
        for gpu, speed in zip(cluster.gpus, SPEEDS, strict=True)
    )
    return replace(cluster, gpus=gpus)


def test_a_slow_rank_is_a_rank_with_a_slow_gpu():
    cluster = tiny_cluster(4, 2)
    ours, theirs = (
        step_cost(workload_on(one), PROFILE, "pairwise") for one in (cluster.with_speeds(SPEEDS), slow_gpus(cluster))
    )
    assert ours.slot_us_R == pytest.approx(theirs.slot_us_R)
    assert ours.row_us_R == pytest.approx(theirs.row_us_R)


@pytest.mark.parametrize("objective", ["time", "balance"])
def test_a_slow_rank_gets_less_where_time_counts(objective):
    workload = workload_on(tiny_cluster(4, 1).with_speeds(SPEEDS))
    solution = solve(workload, PROFILE, np.full(4, 4), exchange="pairwise", objective=objective, workers=1)
    placement = solution.placements[0]
    load_R = np.bincount(placement.rank_S, workload.load_LE[0][placement.expert_S] * placement.share_DS[0], minlength=4)
    if objective == "time":  # a slot costs time too, so that loads are not quite as the speeds
        assert load_R[0] > 1.5 * load_R[1] > 1.5 * load_R[3]
        assert solution.layers[0].gap < 0.05
    else:
        assert load_R == pytest.approx(np.full(4, load_R.mean()), rel=1e-3)


def test_speeds_go_into_the_plan_and_stay_with_a_subset():
    cluster = tiny_cluster(4, 2).with_speeds(SPEEDS)
    assert [entry.speed for entry in plan_cluster(cluster).ranks] == SPEEDS
    assert [rank.speed for rank in cluster.subset([3, 1]).ranks] == [0.25, 0.5]


@pytest.mark.parametrize("slots", [[4, 1, 2, 1], [3, 2, 2, 2], [8, 1, 1, 1]])
def test_uneven_slots_have_a_start_and_a_plan(slots):
    """Slots too uneven for any baseline are filled in order; the search goes on from there."""
    workload, slots_R = workload_on(tiny_cluster(4, 2)), np.array(slots)
    starts = place_baselines(workload, slots_R)
    assert (min(slots) >= 2) == ("linear" in starts)
    solution = solve(workload, PROFILE, slots_R, exchange="pairwise", workers=1)
    check_placement(solution.placements[0], slots_R)
    assert solution.layers[0].objective <= min(prediction.total_us for prediction in solution.predictions)


def write(tmp_path, text, name="speeds.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "rank,speed,slots\n3,0.8,\n\n# a comment\n1, 1 ,6\n"),
        ("a.yaml", "- {rank: 3, speed: 0.8}\n- {rank: 1, slots: 6}\n"),
    ],
)
def test_files(tmp_path, name, text):
    found = load_rank_speeds(write(tmp_path, text, name))
    assert (found.speed, found.slots) == ({3: 0.8, 1: 1.0}, {1: 6})
    cluster = found.applied(tiny_cluster(4, 2))
    assert [rank.speed for rank in cluster.ranks] == [1.0, 1.0, 1.0, 0.8]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected rank, speed"),
        ("rank,sped\n1,2\n", "'rank, sped'"),
        ("rank,speed\n1,0\n", "speed of rank 1 is '0'"),
        ("rank,speed\n1,nan\n", "'nan'"),
        ("rank,speed\n-1,1\n", "rank is '-1'"),
        ("rank,speed\n1,1\n1,2\n", "rank 1 is named twice"),
        ("rank,speed\n1,1,4\n", "3 values for the 2"),
        ("rank,speed,slots\n1,1,x\n", "slots of rank 1 is 'x'"),
    ],
)
def test_wrong_files_name_the_entry(tmp_path, text, message):
    with pytest.raises(BadInput, match=message) as caught:
        load_rank_speeds(write(tmp_path, text))
    assert "speeds.csv" in str(caught.value)


def test_a_rank_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match=r"rank 9 is not in 0\.\.3"):
        load_rank_speeds(write(tmp_path, "rank,speed\n9,1\n")).applied(tiny_cluster(4, 2))


def test_slots_of_named_ranks():
    model, cluster = tiny_model(8), tiny_cluster(4, 2)
    assert slots_of_ranks(model, cluster, 2, 1, {1: 5, 3: 99}).tolist() == [2, 5, 2, 8]
    with pytest.raises(BadInput, match=r"slots of all 4 ranks \(7, of which 1 on 1 named ranks\) < experts \(8\)"):
        slots_of_ranks(model, cluster, 2, 1, {1: 1})
    with pytest.raises(BadInput, match="--slots-per-rank 3 or more"):
        slots_of_ranks(model, cluster, 2, 1, {1: 1})
    huge = model.model_copy(update={"hidden": 2**16, "intermediate": 2**15})
    with pytest.raises(Infeasible, match=r"memory: 8 slots x 1 layers"):
        slots_of_ranks(huge, cluster, 2, 1, {3: 8})
