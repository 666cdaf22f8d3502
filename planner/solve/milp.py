"""PuLP models solved by HiGHS, or by CBC where HiGHS is not installed; one frozen result for PuLP 3 and PuLP 4.

PuLP is the modelling layer only: what was proven is read from HiGHS itself, and for CBC from PuLP's *solution* status,
because PuLP's problem status says "Optimal" for a point that is merely feasible at the time limit.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pulp

from planner.solve.solvers import available_solver, cbc_path

TOLERANCE = 1e-6  # by which a solver's point may miss a bound or an integer


@dataclass(frozen=True)
class SolveResult:
    """What a solver found: `bound` is proven, `objective` and `values` belong to the best feasible point if any."""

    has_solution: bool = False
    proven_optimal: bool = False
    objective: float = float("inf")
    bound: float = float("-inf")
    values: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class _Limits:
    """When a solver has to stop, and where it starts."""

    max_nodes: int | None
    time_limit_s: float | None
    relative_gap: float
    warm_start: Mapping[str, float] | None


def solve_milp(
    problem: pulp.LpProblem,
    *,
    warm_start: Mapping[str, float] | None = None,
    max_nodes: int | None = None,
    time_limit_s: float | None = None,
    relative_gap: float = 1e-6,
) -> SolveResult:
    """Minimise a PuLP problem on one thread; node limits give the same answer on every machine, time limits do not.

    A solver that is missing, crashes or returns a point outside the variables' bounds has found nothing.
    """
    started = time.perf_counter()
    limits = _Limits(max_nodes, time_limit_s, relative_gap, warm_start)
    solver = available_solver()
    if solver == "none":
        return SolveResult()
    try:
        found = _by_highs(problem, limits) if solver == "HiGHS" else _by_cbc(problem, limits)
    except pulp.PulpSolverError:
        found = {}
    if found.get("has_solution") and not _is_within_bounds(problem, found["values"]):
        found = {"bound": found["bound"]}
    return SolveResult(**found, seconds=time.perf_counter() - started)


def _by_highs(problem: pulp.LpProblem, limits: _Limits) -> dict[str, Any]:
    """Return the fields of the result of HiGHS."""
    import highspy  # noqa: PLC0415 - optional

    options: dict[str, Any] = {"random_seed": 0, "output_flag": False}
    if limits.max_nodes is not None:
        options["mip_max_nodes"] = limits.max_nodes
    solver = pulp.HiGHS(msg=False, threads=1, gapRel=limits.relative_gap, timeLimit=limits.time_limit_s, **options)
    solver.createAndConfigureSolver(problem)
    solver.buildSolverModel(problem)
    highs, columns = problem.solverModel, _columns(problem)
    if limits.warm_start is not None:
        start = np.array([limits.warm_start.get(column.name, 0.0) for column in columns])
        highs.setSolution(len(columns), np.arange(len(columns), dtype=np.int32), start)
    solver.callSolver(problem)
    info, status = highs.getInfo(), highs.getModelStatus()
    has_solution = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    optimal = status == highspy.HighsModelStatus.kOptimal
    point = highs.getSolution().col_value if has_solution else []
    objective = float(info.objective_function_value) if has_solution else float("inf")
    is_mip = any(column.cat == pulp.LpInteger for column in columns)
    return {
        "has_solution": has_solution,
        "proven_optimal": optimal,
        "objective": objective,
        "bound": float(info.mip_dual_bound) if is_mip else (objective if optimal else float("-inf")),
        "values": dict(zip((column.name for column in columns), point, strict=False)),
    }


def _by_cbc(problem: pulp.LpProblem, limits: _Limits) -> dict[str, Any]:
    """Return the fields of the result of CBC, which PuLP tells less of: a bound only where it is optimal."""
    columns = _columns(problem)
    if limits.warm_start is not None:
        for column in columns:
            column.setInitialValue(limits.warm_start.get(column.name, 0.0), check=False)
    solver = pulp.COIN_CMD(
        path=cbc_path(), msg=False, threads=1, gapRel=limits.relative_gap, timeLimit=limits.time_limit_s,
        maxNodes=limits.max_nodes, warmStart=limits.warm_start is not None,
    )  # fmt: skip
    has_solution, optimal = _ended(problem, problem.solve(solver))
    if not has_solution:
        return {}
    objective = float(pulp.value(problem.objective))
    return {
        "has_solution": True,
        "proven_optimal": optimal,
        "objective": objective,
        "bound": objective - limits.relative_gap * abs(objective) if optimal else float("-inf"),
        "values": {column.name: float(column.varValue or 0.0) for column in columns},
    }


def _ended(problem: pulp.LpProblem, result: Any) -> tuple[bool, bool]:
    """Return whether there is a solution, and whether it is optimal within the gap; PuLP 4 returns it, 3 keeps it."""
    if hasattr(result, "has_solution"):
        return bool(result.has_solution), result.status.name in ("Optimal", "GapLimit")
    optimal = problem.sol_status == pulp.LpSolutionOptimal
    return optimal or problem.sol_status == pulp.LpSolutionIntegerFeasible, optimal


def _columns(problem: pulp.LpProblem) -> list[Any]:
    found: list[Any] = problem.exported_variables() if hasattr(problem, "exported_variables") else problem.variables()
    return found


def _is_within_bounds(problem: pulp.LpProblem, values: Mapping[str, float]) -> bool:
    """Return whether a point holds a finite value for every variable, within its bounds, whole where it must be."""
    for column in _columns(problem):
        value = values.get(column.name, np.nan)
        low = -np.inf if column.lowBound is None else column.lowBound
        high = np.inf if column.upBound is None else column.upBound
        slack = TOLERANCE * max(1.0, abs(value))
        if not (np.isfinite(value) and low - slack <= value <= high + slack):
            return False
        if column.cat == pulp.LpInteger and abs(value - round(value)) > 10 * TOLERANCE:
            return False
    return True
