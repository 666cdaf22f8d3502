"""Re-planning while a job runs: what new statistics say of the plan in force, and whether the next plan pays.

    gain     = 1 - step time of the next plan / step time of the plan in force, both predicted on the new statistics
    pay-back = time of the migration / time saved a step

A plan pays where its gain and its pay-back meet what the user asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from planner.assemble import assemble_plan
from planner.migrate import ANY_MOVES, InForce, Migration, MoveLimit, migration, pay_back_steps
from planner.placement import IntArray
from planner.plan import Plan
from planner.routing import Routing
from planner.routing_report import drift
from planner.solve import solve
from planner.timing import TimingProfile, plain
from planner.workload import Workload


@dataclass(frozen=True)
class Search:
    """How the next plan is looked for; see `solve` and `MoveLimit`."""

    limit: MoveLimit = ANY_MOVES
    time_limit_s: float | None = None
    seed: int = 0
    workers: int | None = None


@dataclass(frozen=True, eq=False)
class NextPlan:
    """The plan that could follow the one in force, on the statistics that it is made for.

    Attributes:
        old_us, new_us: predicted time of a step under the plan in force and under this one.
        migration: what it takes to put it into force.
        complete: False where the search was interrupted.

    """

    plan: Plan
    old_us: float
    new_us: float
    migration: Migration
    complete: bool

    @property
    def gain(self) -> float:
        """Part of the step time that it saves."""
        return 1.0 - self.new_us / self.old_us

    @property
    def pay_back_steps(self) -> float | None:
        """Steps after which the migration has paid back; None where no time is saved."""
        return pay_back_steps(self.migration, self.old_us, self.new_us)


@dataclass(frozen=True)
class Threshold:
    """When a plan pays: it saves at least `min_gain` of the step time, within `pay_back_steps` steps."""

    min_gain: float
    pay_back_steps: float

    def objection(self, found: NextPlan) -> str | None:
        """Return why a plan does not pay, or None where it does."""
        steps = found.pay_back_steps
        if steps is None or found.gain <= 0:
            return "no plan found is faster"
        if found.gain < self.min_gain:
            return f"the next plan saves {found.gain:.2%} of the step, less than the {self.min_gain:.2%} asked for"
        if steps > self.pay_back_steps:
            return f"the next plan pays back after {steps:,.0f} steps, more than the {self.pay_back_steps:,.0f} allowed"
        return None


def next_plan(
    old: Plan,
    workload: Workload,
    profile: TimingProfile,
    search: Search,
    *,
    inputs: Mapping[str, str],
    command: str,
) -> NextPlan:
    """Return the plan to follow `old` on new statistics: same model, ranks, slots, exchange, overlap and objective.

    `inputs` and `command` go into its provenance. Raises Infeasible where the plan in force cannot be mended within the
    moves that are allowed.
    """
    from planner.solve.replan import replan  # noqa: PLC0415 - solvers load only where one searches

    slots_LR, even = slots_of(old)
    held = InForce(old.placements(), plain(old.exchange))
    free = solve(
        workload, profile, slots_LR, even=even, objective=old.certificate.objective, exchange=old.exchange,
        overlap=old.predicted.overlap, time_limit_s=search.time_limit_s, seed=search.seed, workers=search.workers,
    )  # fmt: skip
    made = replan(
        free, held, workload, profile, slots_LR, search.limit,
        search=search.time_limit_s != 0, seed=search.seed, workers=search.workers,
    )  # fmt: skip
    moved = migration(
        held.placements, made.solution.placements, workload.layers, workload.cluster, workload.model, profile
    )
    plan = assemble_plan(workload, profile, slots_LR, made.solution, seed=search.seed, inputs=inputs, command=command)
    return NextPlan(plan, made.in_force.total_us, made.solution.predictions[-1].total_us, moved, free.complete)


def slots_of(plan: Plan) -> tuple[IntArray, bool]:
    """Return the slots of each rank in each layer [L, R] that a plan makes use of, and whether it is even.

    A layer may have fewer slots than its ranks have at most, to save memory; what its fullest rank has, others may have
    too. In an even plan every slot is in use and copies serve equal shares, so that engines can hold it.
    """
    used_LR = np.array([[len(row) for row in layer.slots] for layer in plan.layers])
    slots_LR = np.minimum(used_LR.max(axis=1, keepdims=True), np.array(plan.workload.slots_per_rank))
    even = bool((used_LR == used_LR[:, :1]).all()) and not any(layer.shares for layer in plan.layers)
    return slots_LR, even


def drift_between(before: Routing, now: Routing) -> float | None:
    """Return the part of the load that moved to other experts, mean over layers, less chance; None of other layers."""
    if before.layers != now.layers or before.num_experts != now.num_experts:
        return None
    return float(drift(np.stack([before.expert_counts, now.expert_counts])).mean())
