"""One plan for several scenarios: against every placement with shares by a linear program of the test's own."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from planner import build_workload, load_cluster, solve
from planner.baselines import BASELINES
from planner.cost import step_cost
from planner.layer import layer_problem
from planner.placement import check_placement
from planner.robust import Risk, RobustProblem, parse_risk
from planner.routing import Routing
from planner.solve.one_layer import Budget
from planner.solve.scenarios import mean_workload, solve_scenarios
from planner.solve.shares import best_shares
from planner.solve.swaps import descend_by_swaps
from tests.planner.definitions import PROFILE, _phases, all_placements, layer_us, routing_of, tiny_cluster, tiny_model
from tests.planner.test_layer import random_placement
from topologies import BadInput

FAST = Budget(swaps=15, domain_swaps=15)
LEVELS = [0.0, 0.5, 1.0]


def scenarios_on(cluster, experts=4, count=3, seed=0, tokens=500, top_k=2):
    rng = np.random.default_rng(seed)
    counts = rng.integers(20, 100, (count, experts))
    return [build_workload(tiny_model(experts, top_k=top_k), cluster, routing_of(one), tokens) for one in counts]


def worth_by_hand(values, level):
    """Fill the tail from the worst scenario down."""
    left, total = max((1 - level) * len(values), 1.0), 0.0
    tail = left
    for value in sorted(values, reverse=True):
        total += min(left, 1.0) * value
        left -= min(left, 1.0)
    return total / tail


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=7), st.floats(0, 1))
def test_risk_is_the_mean_of_the_worst(values, level):
    risk = Risk(level)
    assert risk.of(np.array(values)) == pytest.approx(worth_by_hand(values, level))
    assert Risk(1.0).of(np.array(values)) == max(values)
    assert Risk(0.0).of(np.array(values)) == pytest.approx(np.mean(values))


def test_risk_as_the_user_writes_it():
    assert [parse_risk(text).level for text in ("worst", "mean", "cvar:0.8", "cvar:0")] == [1.0, 0.0, 0.8, 0.0]
    for wrong in ("best", "cvar", "cvar:1", "cvar:-1", "cvar:nan", ""):
        with pytest.raises(BadInput, match="--robust"):
            parse_risk(wrong)


def best_by_lp(workloads, held, level):
    """Least worth over all shares: shares, three phase times a scenario, then value at risk and excesses."""
    D, R, E = workloads[0].num_domains, workloads[0].num_ranks, workloads[0].num_experts
    columns = {key: i for i, key in enumerate((d, e, g) for d in range(D) for g in range(R) for e in held[g])}
    n, S = len(columns), len(workloads)
    width = n + 4 * S + 1
    rows, rhs = [], []
    for s, workload in enumerate(workloads):
        for phase, (matrix, base) in enumerate(_phases(workload, held, columns, balance=False)):
            for line, constant in zip(matrix, base, strict=True):
                row = np.zeros(width)
                row[:n] = line
                row[n + 3 * s + phase] = -1
                rows.append(row)
                rhs.append(-constant)
        excess = np.zeros(width)
        excess[n + 3 * s : n + 3 * s + 3] = 1
        excess[[n + 3 * S + s, width - 1]] = -1
        rows.append(excess)
        rhs.append(0.0)
    sums = np.zeros((D * E, width))
    for (d, e, _), i in columns.items():
        sums[d * E + e, i] = 1
    price = np.zeros(width)
    price[n + 3 * S : n + 4 * S] = 1 / max((1 - level) * S, 1.0)
    price[-1] = 1
    return linprog(price, np.array(rows), rhs, sums, np.ones(len(sums)), (0, None)).fun


def problem_of(workloads, level, slots_R, exchange="pairwise"):
    problems = [layer_problem(one, step_cost(one, PROFILE, exchange), slots_R, 0) for one in workloads]
    return RobustProblem(tuple(problems), Risk(level))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(4))
def test_shares_equal_the_linear_program(level, seed):
    rng = np.random.default_rng(seed)
    workloads = scenarios_on(tiny_cluster(4, 2), 6, seed=seed)
    start = random_placement(rng, 6, 4, 2)
    shared = best_shares(problem_of(workloads, level, np.full(4, 6)), start)
    worth = worth_by_hand([sum(layer_us(one, shared)) for one in workloads], level)
    held = start.without_duplicates().slots()
    # the test prices every slot, the planner leaves out slots that serve nobody: it may do better, never worse
    assert worth <= best_by_lp(workloads, held, level) * (1 + 1e-6)
    if len(shared.expert_S) == sum(map(len, held)):
        assert worth == pytest.approx(best_by_lp(workloads, held, level), rel=1e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_close_to_the_best_of_all_placements(level):
    """Four experts on three hosts of one rank, two slots each: every placement with its best shares."""
    workloads = scenarios_on(tiny_cluster(3, 3), 4, seed=2)
    best = min(best_by_lp(workloads, held, level) for held in all_placements(4, 3, 2))
    found = solve_scenarios(workloads, PROFILE, np.full(3, 2), Risk(level), exchange="pairwise", workers=1)
    layer = found.solution.layers[0]
    by_hand = worth_by_hand([sum(layer_us(one, layer.placement)) for one in workloads], level)
    assert layer.objective == pytest.approx(by_hand)
    assert layer.bound <= best * (1 + 1e-9)
    assert best * (1 - 1e-9) <= layer.objective <= best * 1.02


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["pairwise", "two-level"]), st.sampled_from(LEVELS))
def test_swaps_never_make_it_worse_than_softly(seed, exchange, level):
    rng = np.random.default_rng(seed)
    workloads = scenarios_on(tiny_cluster(4, 2), 6, seed=seed)
    problem = problem_of(workloads, level, np.full(4, 3), exchange)
    start = random_placement(rng, 6, 4, 2)
    swapped = descend_by_swaps(problem, start, 20)
    check_placement(swapped, problem.slots_R)
    assert problem.evaluate(swapped).layer_us <= problem.evaluate(start).layer_us * 1.05  # smooth stand-in, log(S N)/64


def drifting(seed=0, layers=2):
    """Three scenarios of two hosts, of which half of the experts stay alike."""
    rng = np.random.default_rng(seed)
    model = tiny_model(32, top_k=4).model_copy(update={"num_layers": layers, "moe_layers": tuple(range(layers))})
    common = rng.integers(10, 200, (layers, 1, 32)).astype(float)
    counts = [np.where(rng.random(common.shape) < 0.5, common, rng.integers(10, 200, common.shape)) for _ in range(3)]
    return [
        build_workload(model, load_cluster("hgx-h100:2"), Routing(tuple(range(layers)), one, name=f"hour {i}"), 1000)
        for i, one in enumerate(counts)
    ]


@pytest.mark.parametrize("limit", [None, 0])
def test_never_worse_than_any_baseline_of_any_scenario(limit):
    workloads, slots_R = drifting(), np.full(16, 3)
    found = solve_scenarios(workloads, PROFILE, slots_R, Risk(1.0), workers=1, budget=FAST, time_limit_s=limit)
    exchange = found.solution.exchange
    for row, layer in enumerate(found.solution.layers):
        problems = [layer_problem(one, step_cost(one, PROFILE, exchange), slots_R, row) for one in workloads]
        worst = max(problem.evaluate(layer.placement).layer_us for problem in problems)
        assert layer.objective == pytest.approx(worst)
        assert layer.bound <= worst
        for one, name in itertools.product(workloads, BASELINES):
            theirs = solve(one, PROFILE, slots_R, exchange=exchange, time_limit_s=0).baselines[name][row]
            assert worst <= max(problem.evaluate(theirs).layer_us for problem in problems) * (1 + 1e-9)
    totals = [prediction.total_us for prediction in found.table["this plan"]]
    assert found.worst == int(np.argmax(totals))
    assert found.solution.predictions[-1].total_us == max(totals)


def test_the_worst_scenario_gains_and_any_number_of_workers_agrees():
    workloads, slots_R = drifting(), np.full(16, 3)
    one, two = (
        solve_scenarios(workloads, PROFILE, slots_R, Risk(1.0), exchange="two-level", workers=n, budget=FAST)
        for n in (1, 2)
    )
    assert [p.slots() for p in one.solution.placements] == [p.slots() for p in two.solution.placements]
    worst = {name: max(prediction.total_us for prediction in row) for name, row in one.table.items()}
    assert worst["this plan"] < worst["plan of the mean"]
    assert worst["this plan"] < min(worst[name] for name in BASELINES)


def test_scenarios_that_do_not_go_together():
    first, second, _ = drifting()
    other = build_workload(first.model, first.cluster, second.routing.select([1]), 1000)
    with pytest.raises(BadInput, match="hour 0 has 2 layers from 0, hour 1 1 from 1"):
        mean_workload([first, other])
    by_rank = Routing(second.layers, np.repeat(second.routing.counts, 16, axis=1), name="by rank")
    with pytest.raises(BadInput, match="hour 0 names 1 sources, by rank 16"):
        mean_workload([first, build_workload(first.model, first.cluster, by_rank, 1000)])


def test_the_mean_weighs_scenarios_alike():
    """A recording ten times as long counts no more than the others."""
    first, second, third = drifting()
    long = build_workload(first.model, first.cluster, Routing(second.layers, second.routing.counts * 10), 1000)
    assert mean_workload([first, long, third]).load_LE == pytest.approx(
        np.mean([one.load_LE for one in (first, second, third)], axis=0)
    )
