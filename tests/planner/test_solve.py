"""The optimiser against brute force, its own baselines, and its bound."""

import itertools
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.baselines import BASELINES
from planner.cost import step_cost
from planner.layer import layer_problem
from planner.placement import Placement, check_placement
from planner.predict import predict
from planner.routing import Routing
from planner.solve import solve
from planner.solve.bounds import lower_bound
from planner.solve.one_layer import Budget, solve_layer
from planner.solve.shares import best_shares
from planner.solve.swaps import descend_by_swaps
from planner.timing import EXCHANGES
from planner.wire import TokenSample
from planner.workload import build_workload
from tests.planner.definitions import (
    PROFILE,
    all_placements,
    best_by_lp,
    layer_us,
    routing_of,
    tiny_cluster,
    tiny_model,
)
from tests.planner.test_layer import made_workload, random_placement
from topologies import load_cluster


def skewed(rng, experts):
    return rng.zipf(1.7, experts).clip(1, 300) * rng.integers(5, 15, experts)


def tiny_workload(seed, experts, ranks, hosts, tokens=500):
    rng = np.random.default_rng(seed)
    return build_workload(tiny_model(experts), tiny_cluster(ranks, hosts), routing_of(skewed(rng, experts)), tokens)


@pytest.mark.parametrize(
    ("experts", "ranks", "hosts", "slots"), [(4, 3, 3, 2), (4, 2, 2, 3), (5, 3, 1, 2), (3, 4, 2, 2)]
)
@pytest.mark.parametrize("objective", ["time", "balance"])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_brute_force_with_replicas(experts, ranks, hosts, slots, objective, seed):
    """Every placement of every choice of replicas, each with its best shares by an LP of the test's own."""
    workload = tiny_workload(seed, experts, ranks, hosts)
    best = min(
        best_by_lp(workload, held, balance=objective == "balance") for held in all_placements(experts, ranks, slots)
    )
    solution = solve(workload, PROFILE, np.full(ranks, slots), objective=objective, exchange="pairwise", workers=1)
    assert solution.layers[0].objective == pytest.approx(best, rel=2e-6)
    assert solution.layers[0].bound <= best * (1 + 1e-6)


@pytest.mark.parametrize("tokens", [500, 40_000])
def test_equals_brute_force_without_replicas(tokens):
    """Eight experts on four ranks of two hosts, two slots each: all 2,520 placements by the definitions."""
    workload = tiny_workload(5, 8, 4, 2, tokens)
    cost = step_cost(workload, PROFILE, "pairwise")
    problem = layer_problem(workload, cost, np.full(4, 2), 0)
    best = float("inf")
    for order in itertools.permutations(range(8)):
        held = [order[0:2], order[2:4], order[4:6], order[6:8]]
        if all(a < b for a, b in held):
            best = min(best, problem.evaluate(Placement.equal_shares(held, 8, 2)).layer_us)
    solution = solve(workload, PROFILE, np.full(4, 2), exchange="pairwise", workers=1)
    assert solution.layers[0].objective == pytest.approx(best, rel=1e-9)
    assert sum(layer_us(workload, solution.placements[0])) == pytest.approx(best, rel=1e-9)


def random_workload(seed, spec="hgx-h100:2", experts=32, layers=2):
    rng = np.random.default_rng(seed)
    counts = np.stack([skewed(rng, experts) for _ in range(layers)])[:, None].astype(float)
    model = tiny_model(experts, top_k=4, groups=4, top_groups=2).model_copy(
        update={"num_layers": layers, "moe_layers": tuple(range(layers))}
    )
    return build_workload(model, load_cluster(spec), Routing(tuple(range(layers)), counts), 1000)


@pytest.mark.parametrize("exchange", [*EXCHANGES, "auto"])
@pytest.mark.parametrize("spec", ["hgx-h100:2", "mi300x:1", "gb200-nvl72:1"])
def test_never_worse_than_any_baseline_on_any_layer(exchange, spec):
    workload = random_workload(1, spec, experts=96)
    slots_R = np.full(workload.num_ranks, -(-96 // workload.num_ranks) + 1)
    solution = solve(workload, PROFILE, slots_R, exchange=exchange, workers=1, budget=Budget(swaps=10, domain_swaps=10))
    cost = step_cost(workload, PROFILE, solution.exchange)
    for row, placement in enumerate(solution.placements):
        check_placement(placement, slots_R)
        problem = layer_problem(workload, cost, slots_R, row)
        ours = problem.evaluate(placement).layer_us
        assert ours == pytest.approx(solution.layers[row].objective)
        for name in BASELINES:
            assert ours <= problem.evaluate(solution.baselines[name][row]).layer_us * (1 + 1e-12)
        assert solution.layers[row].bound <= ours


def test_auto_is_no_worse_than_any_baseline_under_its_own_best_exchange():
    workload = random_workload(4)
    slots_R = np.full(16, 3)
    solution = solve(workload, PROFILE, slots_R, time_limit_s=0)
    ours = sum(layer.objective for layer in solution.layers)
    for name, exchange in itertools.product(BASELINES, EXCHANGES):
        cost = step_cost(workload, PROFILE, exchange)
        theirs = sum(
            layer_problem(workload, cost, slots_R, row).evaluate(placement).layer_us
            for row, placement in enumerate(solution.baselines[name])
        )
        assert ours <= theirs * (1 + 1e-12)


@pytest.mark.parametrize("objective", ["time", "balance"])
@pytest.mark.parametrize("limit", [0, 0.01, 1])
def test_any_time_limit_gives_a_valid_plan(limit, objective):
    workload = random_workload(2)
    slots_R = np.full(16, 3)
    solution = solve(workload, PROFILE, slots_R, objective=objective, time_limit_s=limit, workers=1)
    for row, (placement, layer) in enumerate(zip(solution.placements, solution.layers, strict=True)):
        check_placement(placement, slots_R)
        problem = layer_problem(workload, step_cost(workload, PROFILE, solution.exchange), slots_R, row)
        problem = problem.for_balance() if objective == "balance" else problem
        assert layer.objective <= min(
            problem.evaluate(placements[row]).layer_us for placements in solution.baselines.values()
        ) * (1 + 1e-12)


def test_same_plan_on_any_number_of_workers():
    workload = random_workload(3)
    one, two = (
        solve(workload, PROFILE, np.full(16, 3), workers=workers, budget=Budget(swaps=5, neighbourhoods=1))
        for workers in (1, 2)
    )
    for left, right in zip(one.placements, two.placements, strict=True):
        assert left.slots() == right.slots()
        assert (left.share_DS == right.share_DS).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(EXCHANGES), st.booleans())
def test_bound_is_below_every_placement(seed, exchange, balance):
    rng = np.random.default_rng(seed)
    workload = made_workload(rng, trace=True)
    problem = layer_problem(workload, step_cost(workload, PROFILE, exchange), np.full(4, 3), 0)
    problem = problem.for_balance() if balance else problem
    bound = lower_bound(problem)
    for _ in range(20):
        assert bound <= problem.evaluate(random_placement(rng, 6, 4, 2)).layer_us * (1 + 1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(EXCHANGES))
def test_shares_and_swaps_never_make_it_worse(seed, exchange):
    rng = np.random.default_rng(seed)
    workload = made_workload(rng, trace=True)
    problem = layer_problem(workload, step_cost(workload, PROFILE, exchange), np.full(4, 3), 0)
    start = random_placement(rng, 6, 4, 2)
    shared = best_shares(problem, start, 3)
    check_placement(shared, problem.slots_R)
    assert problem.evaluate(shared).layer_us <= problem.evaluate(start).layer_us * (1 + 1e-9)
    swapped = descend_by_swaps(problem, shared, 20)
    check_placement(swapped, problem.slots_R)


def test_uneven_slots_and_a_rank_without_any():
    workload = tiny_workload(0, 6, 4, 2)
    slots_R = np.array([3, 2, 4, 0])
    problem = layer_problem(workload, step_cost(workload, PROFILE, "pairwise"), slots_R, 0)
    start = Placement.equal_shares([[0, 1, 2], [3, 4], [5], []], 6, 2)
    solution = solve_layer(problem, [start], Budget())
    check_placement(solution.placement, slots_R)
    assert solution.objective < problem.evaluate(start).layer_us


@pytest.mark.parametrize("tokens", [1.0, 64.0, 4096.0])
def test_more_slots_are_never_worse(tokens):
    """8 experts on 16 ranks: in a small batch a second expert on a rank costs more than the balance that it brings."""
    workload = build_workload(tiny_model(8), load_cluster("hgx-h100:2"), routing_of(np.arange(8) + 20.0), tokens)
    reached = [
        solve(workload, PROFILE, np.full(16, slots), exchange="pairwise", workers=1).layers[0].objective
        for slots in (1, 2, 4)
    ]
    assert reached[1] <= reached[0] * 1.005
    assert reached[2] <= reached[1] * 1.005


def test_one_expert_takes_nearly_all():
    """An expert with 99 % of the load gets a copy on every rank and the load is level."""
    counts = np.ones(16)
    counts[5] = 1500.0
    workload = build_workload(tiny_model(16, top_k=1), load_cluster("hgx-h100:1"), routing_of(counts), 4096)
    solution = solve(workload, PROFILE, np.full(8, 3), objective="balance", workers=1)
    assert solution.placements[0].copies_E[5] == 8
    assert solution.layers[0].objective == pytest.approx(1.0, abs=1e-3)


def test_ctrl_c_keeps_the_best_so_far():
    """SIGINT in mid-search: the command still writes a whole plan, and says that it was interrupted."""
    script = textwrap.dedent("""
        import numpy as np
        from tests.planner.test_solve import PROFILE, random_workload, solve
        workload = random_workload(1, layers=40)
        result = solve(workload, PROFILE, np.full(16, 3), time_limit_s=120, workers=2,
                       on_layer=lambda done: print("layer", flush=True))
        print("complete" if result.complete else "interrupted", len(result.placements), flush=True)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "layer\n"  # one of forty is done
        process.send_signal(signal.SIGINT)
        assert process.stdout.read().splitlines()[-1] == "interrupted 40"
    assert process.returncode == 0


def test_auto_takes_the_fastest_exchange():
    """Few layers are all searched under every exchange, so auto is the best of the three fixed ones."""
    workload = random_workload(6)
    slots_R = np.full(16, 3)
    totals = {
        exchange: sum(layer.objective for layer in solve(workload, PROFILE, slots_R, exchange=exchange).layers)
        for exchange in (*EXCHANGES, "auto")
    }
    assert totals["auto"] == pytest.approx(min(totals.values()))


def test_what_is_reported_is_not_flattered_by_the_sample_it_was_searched_on():
    """Fresh tokens, many more of them, give the reported time of a two-level plan."""
    workload = random_workload(7, "hgx-h100:4", experts=128)
    slots_R = np.full(32, 5)
    solution = solve(workload, PROFILE, slots_R, exchange="two-level")
    cost = step_cost(workload, PROFILE, "two-level")
    for row, layer in enumerate(solution.layers):
        problem = layer_problem(workload, cost, slots_R, row)
        sampler = workload.sampler(row)
        many = TokenSample.of_ids(sampler.draw(20_000, 99), 128, None, problem.tokens.tokens_C)
        fresh = replace(problem, tokens=many).evaluate(layer.placement).layer_us
        assert layer.objective == pytest.approx(fresh, rel=0.03)


def test_a_source_without_tokens_is_no_trouble():
    counts = np.random.default_rng(0).integers(1, 50, (1, 16, 32)).astype(float)
    counts[0, 3:] = 0
    model = tiny_model(32, top_k=4)
    workload = build_workload(model, load_cluster("hgx-h100:2"), Routing((0,), counts), 1000)
    solution = solve(workload, PROFILE, np.full(16, 3), exchange="dedup", workers=1, budget=Budget(swaps=5))
    check_placement(solution.placements[0], np.full(16, 3))


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_single_rank_has_no_links(exchange):
    """One rank holds every expert once; searched where the bound does not end the search at once: two batches."""
    workload = build_workload(tiny_model(6), tiny_cluster(1, 1), routing_of([9, 1, 4, 7, 2, 5]), 128)
    solution = solve(workload, PROFILE, np.array([6]), exchange=exchange, overlap="two-batches", workers=1)
    assert sorted(solution.placements[0].expert_S) == list(range(6))
    assert solution.placements[0].rank_S.tolist() == [0] * 6


@pytest.mark.parametrize("seed", [26, 0, 1])
def test_the_baseline_to_beat_takes_the_exchange_that_suits_it_best(seed):
    """A host of 8 ranks, 32 experts, few tokens: with seed 26 the plan is best with pairwise, linear with dedup."""
    cluster = load_cluster("hgx-h100:1")
    counts = np.random.default_rng(seed).zipf(1.3, 32).clip(1, 2000)
    workload = build_workload(tiny_model(32, 2), cluster, routing_of(counts), 8.0)
    solution = solve(workload, PROFILE, np.full(8, 5), time_limit_s=0)
    every_way = [
        predict(name, placements, workload, PROFILE, exchange)
        for name, placements in solution.baselines.items()
        for exchange in EXCHANGES
    ]
    fastest = min(every_way, key=lambda prediction: prediction.total_us)
    assert solution.to_beat.total_us == pytest.approx(fastest.total_us, rel=1e-12)
    assert solution.predictions[-1].total_us <= fastest.total_us
    assert [one.exchange for one in solution.predictions[:-1]] == [solution.exchange] * len(BASELINES)
