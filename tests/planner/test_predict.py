"""All layers at once (prediction, bounds, limit 0) against one layer after the other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.baselines import BASELINES
from planner.cost import step_cost
from planner.layer import layer_problem
from planner.placement import Placement
from planner.predict import PlanCounts, predict
from planner.routing import Routing
from planner.solve import solve
from planner.solve.bounds import BoundedLayers, imbalance_bounds, lower_bound, lower_bounds
from planner.step_rows import StepSlots
from planner.timing import EXCHANGES, OVERLAPS
from planner.workload import build_workload
from tests.planner.definitions import PROFILE, tiny_model
from tests.planner.test_layer import random_placement
from topologies import load_cluster

FIELDS = ("imbalance", "dispatch_us", "compute_us", "combine_us", "layer_us")


def made_workload(seed, spec="hgx-h100:2", experts=32, layers=3, sources=1, masked=False):
    """Skewed counts by source, or a trace with masked entries and tokens of different lengths."""
    rng = np.random.default_rng(seed)
    model = tiny_model(experts, top_k=4).model_copy(
        update={"num_layers": layers, "moe_layers": tuple(range(layers)), "shared_intermediate": 64}
    )
    if masked:
        ids_LTK = np.stack([[rng.choice(experts, 4, replace=False) for _ in range(50)] for _ in range(layers)])
        ids_LTK[1][:, 1:] = -1  # tokens of layer 1 visit one expert
        counts_LSE = np.ones((layers, 1, experts))
        return build_workload(model, load_cluster(spec), Routing(tuple(range(layers)), counts_LSE, ids_LTK), 500)
    shape = (layers, sources, experts)
    counts_LSE = rng.zipf(1.7, shape).clip(1, 300) * rng.integers(1, 15, shape)
    return build_workload(model, load_cluster(spec), Routing(tuple(range(layers)), counts_LSE.astype(float)), 1000)


def random_placements(workload, seed, slots):
    rng = np.random.default_rng(seed)
    return [
        random_placement(rng, workload.num_experts, workload.num_ranks, workload.num_domains, slots)
        for _ in range(workload.num_layers)
    ]


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize(
    ("spec", "sources", "slots"),
    [("hgx-h100:2", 1, 4), ("hgx-h100:2", 2, 4), ("hgx-h100:2", 16, 4), ("gb200-nvl72:1", 1, 2), ("hgx-h100:9", 1, 2)],
)
def test_prediction_equals_every_layer_on_its_own(exchange, spec, sources, slots):
    """Also with more than 64 targets, where masks have several words."""
    workload = made_workload(0, spec, sources=sources)
    placements = random_placements(workload, 1, slots)
    cost = step_cost(workload, PROFILE, exchange)
    slots_R = np.full(workload.num_ranks, slots)
    for row, layer in enumerate(predict("plan", placements, workload, PROFILE, exchange).layers):
        alone = layer_problem(workload, cost, slots_R, row).evaluate(placements[row], every_link=True)
        for field in FIELDS:
            assert getattr(layer, field) == pytest.approx(getattr(alone, field), rel=1e-9), field
        assert layer.bottleneck == alone.bottleneck


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_overlapped_layers_are_priced_alike(overlap):
    workload = made_workload(3)
    placements = random_placements(workload, 2, 4)
    cost = step_cost(workload, PROFILE, "pairwise", overlap=overlap)
    priced = predict("plan", placements, workload, PROFILE, "pairwise", overlap=overlap)
    for row, layer in enumerate(priced.layers):
        alone = layer_problem(workload, cost, np.full(16, 4), row).evaluate(placements[row])
        assert layer.layer_us == pytest.approx(alone.layer_us, rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(EXCHANGES))
def test_merging_duplicates_in_the_price_is_merging_them_in_the_plan(seed, exchange):
    """Slots at random, so that ranks hold experts twice; some slots serve nobody."""
    workload, rng = made_workload(5, layers=2), np.random.default_rng(seed)
    placements = []
    for _ in range(2):
        expert_S = np.concatenate([np.arange(32), rng.integers(0, 4, 32)])
        placement = Placement.of_slots(expert_S, rng.integers(0, 16, 64), 32, 16, 2)
        share_DS = rng.random((2, 64)) * (rng.random((2, 64)) < 0.7)
        share_DS[:, np.unique(placement.expert_S, return_index=True)[1]] += 0.1
        total_DE = np.stack([np.bincount(placement.expert_S, share_S, 32) for share_S in share_DS])
        placements.append(placement.with_shares(share_DS / total_DE[:, placement.expert_S]))
    counts = PlanCounts(step_cost(workload, PROFILE, exchange), StepSlots(workload, placements))
    merged = predict("plan", [one.without_duplicates() for one in placements], workload, PROFILE, exchange)
    ours = counts.price("plan", merged=True)
    assert ours.memory_bytes == merged.memory_bytes
    for left, right in zip(ours.layers, merged.layers, strict=True):
        assert [getattr(left, field) for field in FIELDS] == pytest.approx([getattr(right, field) for field in FIELDS])


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("spare", [0, 8])
@pytest.mark.parametrize("masked", [False, True])
def test_bounds_of_all_layers_are_those_of_each(exchange, spare, masked):
    workload = made_workload(4, masked=masked)
    slots_R = np.full(16, 2)
    slots_R[:spare] += 1
    cost = step_cost(workload, PROFILE, exchange)
    together = lower_bounds(BoundedLayers.of_workload(workload, cost, slots_R))
    problems = [layer_problem(workload, cost, slots_R, row) for row in range(workload.num_layers)]
    assert together == pytest.approx([lower_bound(problem) for problem in problems], rel=1e-12)
    balance = imbalance_bounds(workload.load_LE, slots_R)
    assert balance == pytest.approx([lower_bound(problem.for_balance()) for problem in problems], rel=1e-12)


@pytest.mark.parametrize("exchange", [*EXCHANGES, "auto"])
@pytest.mark.parametrize("objective", ["time", "balance"])
def test_limit_zero_is_the_best_baseline_of_every_layer(exchange, objective):
    workload, slots_R = made_workload(6), np.full(16, 3)
    solution = solve(workload, PROFILE, slots_R, objective=objective, exchange=exchange, time_limit_s=0)
    cost = step_cost(workload, PROFILE, solution.exchange)
    for row, layer in enumerate(solution.layers):
        problem = layer_problem(workload, cost, slots_R, row)
        problem = problem.for_balance() if objective == "balance" else problem
        merged = [solution.baselines[name][row].without_duplicates() for name in BASELINES]
        best = min(problem.evaluate(placement).layer_us for placement in merged)
        assert layer.objective == pytest.approx(best, rel=1e-12)
        assert layer.objective == pytest.approx(problem.evaluate(layer.placement).layer_us, rel=1e-12)
        assert layer.bound == pytest.approx(lower_bound(problem), rel=1e-12)
    assert [one.name for one in solution.predictions] == [*BASELINES, "this plan"]
    for one, placements in zip(solution.predictions, [*solution.baselines.values(), solution.placements], strict=True):
        again = predict(one.name, placements, workload, PROFILE, solution.exchange)
        assert one.total_us == pytest.approx(again.total_us, rel=1e-12)
        assert one.memory_bytes == again.memory_bytes
