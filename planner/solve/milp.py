"""PuLP models solved by HiGHS, one frozen result for PuLP 3 and PuLP 4.

PuLP is the modelling layer only: the solver's own status, bound and point are read from HiGHS itself, because PuLP 3
reports "Optimal" for a point that is merely feasible at the time limit and knows no bound.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np
import pulp


@dataclass(frozen=True)
class SolveResult:
    """What a solver found: `bound` is proven, `objective` and `values` belong to the best feasible point if any."""

    has_solution: bool
    proven_optimal: bool
    objective: float
    bound: float
    values: Mapping[str, float]
    seconds: float


def solve_milp(
    problem: pulp.LpProblem,
    *,
    warm_start: Mapping[str, float] | None = None,
    max_nodes: int | None = None,
    time_limit_s: float | None = None,
    relative_gap: float = 1e-6,
) -> SolveResult:
    """Minimise a PuLP problem on one thread; node limits give the same answer on every machine, time limits do not."""
    started = time.perf_counter()
    options: dict[str, Any] = {"random_seed": 0, "output_flag": False}
    if max_nodes is not None:
        options["mip_max_nodes"] = max_nodes
    solver = pulp.HiGHS(msg=False, threads=1, gapRel=relative_gap, timeLimit=time_limit_s, **options)
    solver.createAndConfigureSolver(problem)
    solver.buildSolverModel(problem)
    highs = problem.solverModel
    columns = problem.exported_variables() if hasattr(problem, "exported_variables") else problem.variables()
    if warm_start is not None:
        start = np.array([warm_start.get(column.name, 0.0) for column in columns])
        highs.setSolution(len(columns), np.arange(len(columns), dtype=np.int32), start)
    solver.callSolver(problem)

    info, status = highs.getInfo(), highs.getModelStatus()
    has_solution = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    optimal = status == highspy.HighsModelStatus.kOptimal
    point = highs.getSolution().col_value if has_solution else []
    is_mip = any(column.cat == pulp.LpInteger for column in columns)
    objective = float(info.objective_function_value) if has_solution else float("inf")
    bound = float(info.mip_dual_bound) if is_mip else (objective if optimal else float("-inf"))
    return SolveResult(
        has_solution=has_solution,
        proven_optimal=optimal,
        objective=objective,
        bound=bound,
        values=dict(zip((column.name for column in columns), point, strict=False)),
        seconds=time.perf_counter() - started,
    )
