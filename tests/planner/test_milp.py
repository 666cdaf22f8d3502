"""The PuLP shim: what it reports is what the solver proved, on a time-out too; a second solver agrees."""

import numpy as np
import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from planner.solve import milp as shim
from planner.solve.milp import solve_milp
from planner.solve.solvers import cbc_path


def knapsack(values, weights, room):
    problem = pulp.LpProblem("knapsack", pulp.LpMinimize)
    take = [problem.add_variable(f"take{i}", 0, 1, pulp.LpBinary) for i in range(len(values))]
    problem += pulp.lpSum(-v * x for v, x in zip(values, take, strict=True))
    problem += pulp.lpSum(w * x for w, x in zip(weights, take, strict=True)) <= room
    return problem


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=10), st.integers(0, 60))
def test_agrees_with_scipy(items, room):
    values, weights = zip(*items, strict=True)
    ours = solve_milp(knapsack(values, weights, room))
    theirs = milp(
        -np.array(values), constraints=LinearConstraint(np.array([weights]), -np.inf, room),
        integrality=np.ones(len(values)), bounds=Bounds(0, 1),
    )  # fmt: skip
    assert ours.proven_optimal
    assert ours.objective == pytest.approx(theirs.fun)
    assert ours.bound == pytest.approx(theirs.fun, abs=1e-5)


@pytest.fixture
def cbc(monkeypatch):
    """Let CBC solve, as where HiGHS is not installed."""
    if cbc_path() is None:
        pytest.skip("CBC is not installed, and PuLP 4 brings none along")
    monkeypatch.setattr(shim, "available_solver", lambda: "CBC")


@pytest.mark.usefixtures("cbc")
def test_cbc_says_the_same_and_proves_no_more_than_it_can():
    """Items worth 5, 4 and 3 take 4, 3 and 2 of 7: the first two are best, for 9. A time limit proves nothing."""
    small = solve_milp(knapsack([5, 4, 3], [4, 3, 2], 7))
    assert small.proven_optimal
    assert (small.objective, small.values["take2"]) == (-9.0, 0.0)
    assert small.bound == pytest.approx(-9.0, rel=1e-5)
    assert not solve_milp(knapsack([1], [1], -1)).has_solution
    problem, start, mean = hard_partition()
    late = solve_milp(problem, warm_start=start, time_limit_s=1.0, relative_gap=0.0)
    assert late.has_solution
    assert not late.proven_optimal
    assert mean * (1 - 1e-9) <= late.objective <= start["most"]
    assert late.bound <= late.objective


def hard_partition(items=60, ranks=8):
    """Symmetric bins: no solver closes this in a moment."""
    weights = np.random.default_rng(0).integers(1000, 9999, items)
    problem = pulp.LpProblem("partition", pulp.LpMinimize)
    most = problem.add_variable("most", 0)
    x = {(i, g): problem.add_variable(f"x_{i}_{g}", 0, 1, pulp.LpBinary) for i in range(items) for g in range(ranks)}
    problem += most
    for i in range(items):
        problem += pulp.lpSum(x[i, g] for g in range(ranks)) == 1
    for g in range(ranks):
        problem += pulp.lpSum(int(weights[i]) * x[i, g] for i in range(items)) <= most
    start = {f"x_{i}_{i % ranks}": 1.0 for i in range(items)}
    loads = [sum(int(weights[i]) for i in range(g, items, ranks)) for g in range(ranks)]
    return problem, start | {"most": float(max(loads))}, weights.sum() / ranks


def test_time_out_is_not_called_optimal():
    problem, start, mean = hard_partition()
    result = solve_milp(problem, warm_start=start, time_limit_s=0.3, relative_gap=0.0)
    assert result.has_solution
    assert not result.proven_optimal
    assert result.bound < result.objective <= start["most"]
    assert result.bound >= mean * (1 - 1e-9)


def test_node_limit_is_survived_and_repeats():
    """PuLP 3 does not know the status of a node limit; the answer is the same twice."""
    results = []
    for _ in range(2):
        problem, start, _ = hard_partition(30, 5)
        results.append(solve_milp(problem, warm_start=start, max_nodes=1, relative_gap=0.0))
    assert results[0].has_solution
    assert results[0].values == results[1].values


def test_infeasible_has_no_solution():
    problem = pulp.LpProblem("none", pulp.LpMinimize)
    x = problem.add_variable("x", 0, 1, pulp.LpBinary)
    problem += 1 * x
    problem += 1 * x >= 2
    assert not solve_milp(problem).has_solution
