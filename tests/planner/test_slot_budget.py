"""Slots bought with memory: the knapsack against brute force, bytes by hand, and where redundancy pays."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.baselines import BASELINES, baseline
from planner.memory import LOAD_QUANTILE, buffer_rows, memory_use, slot_bytes
from planner.placement import Placement, check_placement
from planner.predict import predict
from planner.routing import Routing
from planner.solve.knapsack import cheapest_within
from planner.solve.slot_budget import SlotBudget, best_even_slots, check_limit, solve_budgeted, spend_memory
from planner.timing import EXCHANGES
from planner.workload import build_workload
from tests.planner.definitions import PROFILE, tiny_cluster, tiny_model
from topologies import BadInput, Infeasible

ASKED = {"objective": "time", "exchange": "pairwise", "overlap": "none", "seed": 0, "workers": 1}
HOT, FLAT = [900, 20, 20, 20, 20, 20, 20, 20], [100] * 8


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_knapsack_equals_brute_force(data):
    layers = data.draw(st.integers(1, 4))
    options = [data.draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6)), min_size=1, max_size=4))
               for _ in range(layers)]  # fmt: skip
    least = sum(min(weight for _, weight in layer) for layer in options)
    limit = data.draw(st.integers(least, least + 10))
    best = min(
        sum(cost for cost, _ in choice)
        for choice in itertools.product(*options)
        if sum(weight for _, weight in choice) <= limit
    )
    costs = [np.array([float(cost) for cost, _ in layer]) for layer in options]
    weights = [np.array([weight for _, weight in layer]) for layer in options]
    taken = cheapest_within(costs, weights, limit)
    assert sum(weights[i][o] for i, o in enumerate(taken)) <= limit
    assert sum(costs[i][o] for i, o in enumerate(taken)) == best


def workload_of(counts, tokens=2000, hosts=1, experts=8, **model):
    layers = len(counts)
    made = tiny_model(experts).model_copy(update={"num_layers": layers, "moe_layers": tuple(range(layers)), **model})
    routing = Routing(tuple(range(layers)), np.array(counts, dtype=float)[:, None], name="made")
    return build_workload(made, tiny_cluster(4, hosts), routing, tokens)


def test_bytes_by_hand():
    """hidden 4096, intermediate 1024, gated: 12,582,912 parameters an expert; a shared expert of 512; two layers."""
    workload = workload_of([FLAT, FLAT], shared_experts=1, shared_intermediate=512)
    expert, shared, router = 3 * 4096 * 1024, 2 * 3 * 4096 * 512, 2 * 4096 * 8
    used = memory_use(workload, 5, 100, training=False)
    assert (used.expert_bytes, used.shared_bytes) == (5 * 2 * expert, 2 * shared + 2 * router)
    assert (used.gradient_bytes, used.optimizer_bytes) == (0, 0)
    assert used.buffer_bytes == 100 * (2 * 4096 + 2 * 4096)
    trained = memory_use(workload, 5, 0, training=True)
    parameters = 5 * expert + shared + router
    assert trained.total_bytes == 16 * parameters
    assert (trained.gradient_bytes, trained.optimizer_bytes) == (2 * parameters, 12 * parameters)
    assert slot_bytes(workload.model, training=True) == 16 * expert
    assert slot_bytes(workload.model, training=False) == workload.model.expert_bytes


@pytest.mark.parametrize(("storage", "each"), [("fp32", 4), ("bf16", 2), ("fp8", 1), ("int4-g32", 2), ("mxfp4", 2)])
def test_shared_experts_of_4_bit_checkpoints_are_not_of_4_bits(storage, each):
    """Kimi-K2.5: gate, up and down [2048, 7168] in bf16 beside int4; here two layers of 4096 x 512, and routers."""
    workload = workload_of([FLAT, FLAT], shared_experts=1, shared_intermediate=512, weight_dtype=storage)
    used = memory_use(workload, 5, 0, training=False)
    assert used.shared_bytes == each * 2 * 3 * 4096 * 512 + 2 * 2 * 4096 * 8


def test_buffers_hold_the_quantile_of_the_load():
    """4 ranks x 2,000 tokens x top-2, 8 even experts, 2 a rank: every rank expects 4,000 rows."""
    workload = workload_of([FLAT])
    placement = Placement.equal_shares([[0, 1], [2, 3], [4, 5], [6, 7]], 8, 1)
    assert LOAD_QUANTILE == 0.99
    assert buffer_rows(workload, [placement]) == int(np.ceil(4000 + 2.3263479 * np.sqrt(4000)))


def room_for_slots(workload, slots, *, training=False):
    """Return a limit that holds `slots` slots of all layers, buffers of the worst placement included."""
    rows = int(workload.load_LE.sum(axis=1).max())
    used = memory_use(workload, slots, rows, training=training)
    return used.total_bytes


def test_memory_goes_to_the_layer_that_gains():
    """One layer is even, one has an expert with nine times its part: a copy of it on each of four ranks, no more."""
    workload = workload_of([FLAT, HOT])
    budget = spend_memory(workload, PROFILE, room_for_slots(workload, 7), training=False, even=False, asked=ASKED)
    assert budget.slots_L.tolist() == [2, 3]
    solution = solve_budgeted(workload, PROFILE, budget, even=False, asked=ASKED)
    for row, placement in enumerate(solution.placements):
        check_placement(placement, np.full(4, budget.slots_L[row]))
    used = budget.use(workload, solution.placements)
    assert used.total_bytes <= budget.limit_bytes
    assert solution.predictions[-1].total_us <= min(p.total_us for p in solution.predictions[:-1])


def test_a_plan_never_takes_more_than_the_limit():
    """One byte too few for the buffers of the plan that was found: it is searched again, with fewer slots."""
    workload = workload_of([FLAT, HOT], tokens=100)
    budget = spend_memory(workload, PROFILE, room_for_slots(workload, 7), training=False, even=False, asked=ASKED)
    need = budget.use(workload, solve_budgeted(workload, PROFILE, budget, even=False, asked=ASKED).placements)
    tight = replace(budget, limit_bytes=need.total_bytes - 1)
    used = tight.use(workload, solve_budgeted(workload, PROFILE, tight, even=False, asked=ASKED).placements)
    assert used.total_bytes < need.total_bytes
    assert used.expert_bytes < need.expert_bytes
    least = memory_use(workload, 4, need.buffer_bytes // (4 * 4096), training=False)
    with pytest.raises(Infeasible, match="every expert once is 2 slots x 2 layers"):
        solve_budgeted(workload, PROFILE, replace(budget, limit_bytes=least.total_bytes - 1), even=False, asked=ASKED)


def test_no_redundancy_where_reading_weights_costs_more():
    """A step of one token a rank reads weights and computes next to nothing: copies only cost."""
    workload = workload_of([FLAT, FLAT], tokens=8)
    limit = room_for_slots(workload, 12)
    for even in (False, True):
        budget = spend_memory(workload, PROFILE, limit, training=False, even=even, asked=ASKED)
        assert budget.slots_L.tolist() == [2, 2]
        assert budget.alike > 2


def test_even_slots_are_alike_in_all_layers():
    workload = workload_of([FLAT, HOT])
    budget = spend_memory(workload, PROFILE, room_for_slots(workload, 7), training=False, even=True, asked=ASKED)
    assert len(set(budget.slots_L.tolist())) == 1
    solution = solve_budgeted(workload, PROFILE, budget, even=True, asked=ASKED)
    assert all((placement.slots_R == budget.slots_L[0]).all() for placement in solution.placements)
    best = best_even_slots(workload, PROFILE, 4, asked=ASKED)
    assert best.slots_L[0] <= 4
    assert best.us_LK.sum(axis=0).min() == best.us_LK.sum(axis=0)[best.counts_K.tolist().index(best.slots_L[0])]


def test_training_buys_fewer_slots():
    workload = workload_of([HOT, HOT])
    limit = room_for_slots(workload, 4, training=True)
    serving = spend_memory(workload, PROFILE, limit, training=False, even=False, asked=ASKED)
    training = spend_memory(workload, PROFILE, limit, training=True, even=False, asked=ASKED)
    assert training.slots_L.sum() < serving.slots_L.sum()


def test_layers_without_statistics_keep_their_place():
    """A model of three MoE layers, statistics of two: the third holds each expert once."""
    workload = workload_of([FLAT, HOT], num_layers=3, moe_layers=(0, 1, 2))
    limit = room_for_slots(workload, 8)
    budget = spend_memory(workload, PROFILE, limit, training=False, even=False, asked=ASKED)
    assert budget.slots_L.sum() + 2 <= 8
    solution = solve_budgeted(workload, PROFILE, budget, even=False, asked=ASKED)
    assert budget.use(workload, solution.placements).total_bytes <= limit


@pytest.mark.parametrize("training", [False, True])
def test_too_little_memory_names_what_would_do(training):
    workload = workload_of([FLAT, FLAT])
    least = memory_use(workload, 4, 0, training=training).total_bytes
    with pytest.raises(Infeasible, match="2 slots x 2 layers") as found:
        spend_memory(workload, PROFILE, least // 2, training=training, even=False, asked=ASKED)
    nearest = float(str(found.value).split("--memory-per-rank ")[-1].split(",")[0])
    assert least / 1e9 <= nearest <= least / 1e9 * 1.02


def test_more_than_a_gpu_has():
    workload = workload_of([FLAT])
    with pytest.raises(Infeasible, match=r"81 GB is over the 80\.00 GB .* by 1\.00 GB; .* 80"):
        spend_memory(workload, PROFILE, 81 * 10**9, training=False, even=False, asked=ASKED)


@pytest.mark.parametrize("amount", [0, -1, float("nan"), float("inf")])
def test_no_amount_of_memory(amount):
    with pytest.raises(BadInput, match="--memory-per-rank"):
        check_limit(amount)


def test_the_baseline_to_beat_takes_the_exchange_that_suits_it_best():
    """Two layers at 4 and 2 slots, baselines at 3 and 3: the plan is best with pairwise, linear with dedup."""
    counts = np.random.default_rng(9).zipf(1.3, (2, 8)).clip(1, 2000)
    workload = workload_of(counts, tokens=8.0, hosts=2)
    budget = SlotBudget(np.array([4, 2]), 3, np.zeros((2, 2)), np.array([2, 4]))
    solution = solve_budgeted(workload, PROFILE, budget, even=False, asked=ASKED | {"exchange": "auto"})
    every_way = {
        (name, exchange): predict(name, baseline(name, workload, np.full(4, 3)), workload, PROFILE, exchange).total_us
        for name in BASELINES
        for exchange in EXCHANGES
    }
    fastest = min(every_way, key=every_way.__getitem__)
    assert (solution.exchange, fastest) == ("pairwise", ("linear", "dedup"))
    assert (solution.to_beat.name, solution.to_beat.exchange) == fastest
    assert solution.to_beat.total_us == pytest.approx(every_way[fastest], rel=1e-12)
    assert {one.exchange for one in solution.predictions} == {"pairwise"}
