"""How many slots a plan may use: as the user says, as the plan in force has, or as memory and engines allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from planner import Solution, TimingProfile, Workload, slots_of_ranks
from planner.memory import LOAD_QUANTILE, MemoryUse, size_text
from planner.placement import IntArray, Placement
from planner.rank_speeds import RankSpeeds
from planner.request import default_slots_per_rank
from topologies import BadInput, Infeasible

if TYPE_CHECKING:
    from app.in_force import PlanInForce
    from planner.solve.slot_budget import SlotBudget


class Asked(NamedTuple):
    """What the user says of slots.

    Attributes:
        slots_per_rank, memory_per_rank_gb: at most one of them; None for neither.
        training: gradients and optimizer states take memory too.
        engine_compatible: as many slots on every rank and in every layer, all in use, copies that serve equal shares.

    """

    slots_per_rank: int | None
    memory_per_rank_gb: float | None
    training: bool
    engine_compatible: bool

    def check(self, speeds: RankSpeeds | None, *, scenarios: int) -> None:
        """Refuse what does not go together; BadInput names both options."""
        if self.slots_per_rank is not None and self.memory_per_rank_gb is not None:
            raise BadInput("--slots-per-rank and --memory-per-rank both say how many slots there are; give one of them")
        if self.training and self.memory_per_rank_gb is None:
            raise BadInput("--training says what --memory-per-rank has to hold; give it too")
        if self.memory_per_rank_gb is not None and scenarios > 1:
            raise BadInput(f"--memory-per-rank goes with one scenario, not with {scenarios}; leave one of them out")
        for option, given in (
            ("--memory-per-rank", self.memory_per_rank_gb is not None),
            ("--engine-compatible", self.engine_compatible),
        ):
            if given and speeds is not None and speeds.slots:
                raise BadInput(f"{option} gives every rank as many slots, --rank-speed names others; leave one out")


@dataclass(frozen=True, eq=False)
class Room:
    """The slots of a plan.

    Attributes:
        slots: of each rank [R], or of each rank in each layer [L, R].
        budget: how they were chosen, where they were.

    """

    slots: IntArray
    even: bool
    budget: SlotBudget | None = None

    def solved(self, workload: Workload, profile: TimingProfile, asked: Mapping[str, Any]) -> Solution:
        """Search for the plan."""
        from planner.solve import solve  # noqa: PLC0415 - solvers load only where one searches

        if self.budget is None:
            return solve(workload, profile, self.slots, even=self.even, **asked)
        from planner.solve.slot_budget import solve_budgeted  # noqa: PLC0415

        return solve_budgeted(workload, profile, self.budget, even=self.even, asked=asked)

    def slots_of(self, solution: Solution) -> IntArray:
        """Return the slots of the ranks under a plan that was found, for which a budget may have been spent anew."""
        if self.budget is None:
            return self.slots
        used_L = np.array([int(placement.slots_R.max()) for placement in solution.placements])
        slots_LR: IntArray = np.maximum(self.slots, used_L[:, None])
        return slots_LR

    def check(self, workload: Workload, placements: list[Placement]) -> None:
        """Raise Infeasible where what followed the search (moves, copies elsewhere) left the limit on memory."""
        budget = self.budget
        if budget is None or budget.limit_bytes is None:
            return
        used = budget.use(workload, placements).total_bytes
        if used > budget.limit_bytes:
            raise Infeasible(
                f"--memory-per-rank: the plan takes {size_text(used)} of {size_text(budget.limit_bytes)} after --from, "
                f"--survive or --replica-choice; leave them out, or --memory-per-rank {np.ceil(used / 1e6) / 1e3:g}"
            )

    def lines(self, workload: Workload, placements: list[Placement]) -> list[str]:
        """Say what a plan takes of the fullest rank, by kind, and how many slots its layers got."""
        budget, lines = self.budget, []
        if self.even:
            lines.append(
                f"engine-compatible: {int(placements[0].slots_R[0])} slots on every rank in every layer, equal shares"
            )
        if budget is not None and budget.limit_bytes is not None:
            use = budget.use(workload, placements)
            kinds = ", ".join(f"{name} {size_text(size)}" for name, size in _kinds(use).items() if size)
            layers = Counter(int(placement.slots_R.max()) for placement in placements)
            slots = ", ".join(f"{slots} in {count}" for slots, count in sorted(layers.items()))
            lines += [
                f"memory of a rank (predicted): {size_text(use.total_bytes)} of {size_text(budget.limit_bytes)}: "
                f"{kinds} (for the {LOAD_QUANTILE:.0%} quantile of the load)",
                f"slots of a rank, in how many layers: {slots}; alike in every layer {budget.alike} would fit",
            ]
        return lines

    def memory_json(self, workload: Workload, placements: list[Placement]) -> dict[str, Any]:
        """Return the same in bytes, with the slots of every layer; nothing where there is no limit on memory."""
        budget = self.budget
        if budget is None or budget.limit_bytes is None:
            return {}
        memory = {
            "limit_bytes": budget.limit_bytes,
            "training": budget.training,
            "load_quantile": LOAD_QUANTILE,
            "used": asdict(budget.use(workload, placements)),
            "slots_per_layer": [int(placement.slots_R.max()) for placement in placements],
            "slots_alike": budget.alike,
        }
        return {"memory": memory}

    def total(self, num_layers: int) -> int:
        """Return the slots of all ranks and layers."""
        return int(np.broadcast_to(self.slots, (num_layers, self.slots.shape[-1])).sum())


def room_for(
    asked: Asked,
    workload: Workload,
    profile: TimingProfile,
    old: PlanInForce | None,
    speeds: RankSpeeds | None,
    options: Mapping[str, Any],
    *,
    scenarios: int,
) -> Room:
    """Return the slots that a plan may use; `options` are those of `solve`, for the search of their best number."""
    even = asked.engine_compatible
    if asked.memory_per_rank_gb is not None:
        from planner.solve.slot_budget import check_limit, spend_memory  # noqa: PLC0415 - as above

        limit_bytes = check_limit(asked.memory_per_rank_gb)
        budget = spend_memory(workload, profile, limit_bytes, training=asked.training, even=even, asked=options)
        return Room(budget.slots_LR(workload.num_ranks), even, budget)
    slots_R = _slots_R(workload, asked.slots_per_rank, old, speeds)
    if not even or scenarios > 1:
        return Room(slots_R, even)
    from planner.solve.slot_budget import best_even_slots  # noqa: PLC0415 - as above

    budget = best_even_slots(workload, profile, int(slots_R[0]), asked=options)
    return Room(budget.slots_LR(workload.num_ranks), even, budget)


def _slots_R(
    workload: Workload, slots_per_rank: int | None, old: PlanInForce | None, speeds: RankSpeeds | None
) -> IntArray:
    """Return the slots of every rank: as many as the user says, else as the plan in force has, if they suffice."""
    model, cluster = workload.model, workload.cluster
    if slots_per_rank is None:
        slots_per_rank = default_slots_per_rank(model, cluster)
        if old is not None and old.slots_per_rank * cluster.num_ranks >= model.experts:
            slots_per_rank = old.slots_per_rank
    return slots_of_ranks(model, cluster, slots_per_rank, workload.num_layers, speeds.slots if speeds else None)


def _kinds(use: MemoryUse) -> dict[str, int]:
    return {
        "weights of experts": use.expert_bytes,
        "gradients": use.gradient_bytes,
        "optimizer": use.optimizer_bytes,
        "shared experts and routers": use.shared_bytes,
        "dispatch buffers": use.buffer_bytes,
    }
