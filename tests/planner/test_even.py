"""Plans that engines can hold: brute force over all even placements, and exports that lose nothing."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.assemble import assemble_plan
from planner.even import evened
from planner.exporters import TARGETS, export_plan
from planner.importers import import_plan, read_placement
from planner.placement import Placement, check_placement
from planner.predict import predict
from planner.solve import solve
from planner.solve.incumbents import Incumbents, place_baselines
from planner.solve.one_layer import Budget
from planner.timing import EXCHANGES
from tests.planner.definitions import PROFILE, layer_us
from tests.planner.plans import model_of, placements, plan_of, two_hosts
from tests.planner.test_solve import random_workload, tiny_workload
from topologies import BadInput

QUICK = Budget(swaps=10, domain_swaps=10, neighbourhoods=0)
# what holds replicas and lets the engine choose between copies
ENGINES = ["eplb", "sglang", "trtllm", "vllm-14544", "vllm-49572", "vllm-ascend", "vllm-hygon", "omni"]


def even_placements(experts, ranks, slots):
    """Every choice of exactly `slots` different experts for each rank that covers all experts."""
    for held in itertools.product(itertools.combinations(range(experts), slots), repeat=ranks):
        if len(set().union(*held)) == experts:
            yield held


@pytest.mark.parametrize(("experts", "ranks", "hosts", "slots"), [(4, 3, 3, 2), (4, 2, 2, 3), (5, 3, 1, 2)])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_brute_force(experts, ranks, hosts, slots, seed):
    """Copies are decided with the slots: the exact model has one more binary for each number of copies."""
    workload = tiny_workload(seed, experts, ranks, hosts)
    best = min(
        sum(layer_us(workload, Placement.equal_shares(held, experts, hosts)))
        for held in even_placements(experts, ranks, slots)
    )
    solution = solve(workload, PROFILE, np.full(ranks, slots), even=True, exchange="pairwise", workers=1)
    assert solution.layers[0].objective == pytest.approx(best, rel=2e-6)
    assert solution.layers[0].bound <= best * (1 + 1e-6)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("objective", ["time", "balance"])
def test_is_even_and_never_worse_than_evened_baselines(exchange, objective):
    workload, slots_R = random_workload(7), np.full(16, 3)
    solution = solve(
        workload, PROFILE, slots_R, even=True, exchange=exchange, objective=objective, workers=1, budget=QUICK
    )
    known = Incumbents(workload, PROFILE, slots_R, objective, "none", place_baselines(workload, slots_R), even=True)
    for row, (placement, layer) in enumerate(zip(solution.placements, solution.layers, strict=True)):
        check_placement(placement, slots_R)
        assert (placement.slots_R == 3).all()
        assert np.array_equal(placement.share_DS, placement.with_equal_shares().share_DS)
        problem = known.problem(exchange, row)
        assert problem.evaluate(placement).layer_us == pytest.approx(layer.objective)
        for start in known.starts(row):
            assert layer.objective <= problem.evaluate(start).layer_us * (1 + 1e-12)


def test_without_search_the_starts_are_even():
    workload, slots_R = random_workload(8), np.full(16, 3)
    solution = solve(workload, PROFILE, slots_R, even=True, time_limit_s=0)
    assert all((placement.slots_R == 3).all() for placement in solution.placements)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_evened(data):
    """Nothing that was there goes; what is new is even; a second time changes nothing."""
    placement = data.draw(placements(6, 4, even=False))
    slots = int(placement.slots_R.max())
    even = evened(placement, slots, np.arange(1.0, 7.0))
    check_placement(even, np.full(4, slots))
    assert (even.slots_R == slots).all()
    assert all(set(before) <= set(after) for before, after in zip(placement.slots(), even.slots(), strict=True))
    assert even.share_DS == pytest.approx(1 / even.copies_E[even.expert_S][None].repeat(2, 0))
    assert evened(even, slots, np.ones(6)) is even


@pytest.fixture(scope="module")
def planned():
    workload = random_workload(9)
    slots_R = np.full(16, 3)
    solution = solve(workload, PROFILE, slots_R, even=True, exchange="two-level", workers=1, budget=QUICK)
    return assemble_plan(workload, PROFILE, slots_R, solution, seed=0, inputs={}, command=""), workload


@pytest.mark.parametrize("target", ENGINES)
def test_exports_lose_nothing_and_come_back_with_the_same_times(planned, target, tmp_path):
    """`export_plan` without `lossy` refuses any loss; what an import reads predicts what the plan predicted."""
    plan, workload = planned
    assert TARGETS[target].limits.replicas
    assert not any(layer.shares for layer in plan.layers)
    file = tmp_path / "placement"
    file.write_bytes(export_plan(plan, target).data)
    imported = read_placement(file, target, plan.model, workload.cluster)
    again = import_plan(imported, workload, PROFILE, plan.exchange, fmt=target, inputs={}, command="")
    for old, new in zip(plan.predicted.layers, again.predicted.layers, strict=True):
        assert new.layer_us == pytest.approx(old.layer_us, rel=1e-9)
        assert new.imbalance == pytest.approx(old.imbalance, rel=1e-9)


def test_no_replicas_where_experts_fill_the_slots():
    """32 experts on 16 ranks x 2: the even plan has no spare slot."""
    workload = random_workload(10)
    solution = solve(workload, PROFILE, np.full(16, 2), even=True, exchange="pairwise", workers=1, budget=QUICK)
    assert all((placement.copies_E == 1).all() for placement in solution.placements)
    prediction = predict("this plan", solution.placements, workload, PROFILE, "pairwise")
    assert prediction.total_us == pytest.approx(solution.predictions[-1].total_us)


def test_a_plan_by_hand_is_refused_with_the_option_that_helps():
    unequal = Placement.equal_shares([[0, 1], [1, 2], [3, 4], [5, 0]], 6, 2)
    shares = unequal.share_DS.copy()
    shares[:, unequal.expert_S == 1] = [[0.9, 0.1], [0.2, 0.8]]
    plan, _ = plan_of(model_of(6), two_hosts(), [unequal.with_shares(shares)] * 2)
    with pytest.raises(BadInput, match="--engine-compatible"):
        export_plan(plan, "sglang")
