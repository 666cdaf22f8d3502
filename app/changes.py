"""What follows the free search of `epplan plan`: a plan that survives a lost host, and one that moves few weights."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.in_force import in_force
from planner import Prediction, Solution, TimingProfile, Workload, load_plan
from planner.migrate import InForce, Migration, MoveLimit, migration
from planner.placement import IntArray
from topologies import BadInput

if TYPE_CHECKING:
    from planner.solve.replan import Replanned
    from planner.solve.survivors import Surviving

SEARCH_PART = 0.7  # of a time limit, for the free search; the rest is for what follows it


@dataclass(frozen=True, eq=False)
class PlanInForce:
    """The plan named by --from, on the ranks that there are now."""

    plan: InForce
    slots_per_rank: int
    sha256: str

    @classmethod
    def load(cls, path: str, workload: Workload) -> PlanInForce:
        """Read it; BadInput where it is for other experts, layers or ranks."""
        loaded = load_plan(path)
        held = in_force(loaded, path, workload.cluster, workload.layers, workload.num_experts)
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return cls(held, max(loaded.workload.slots_per_rank), f"sha256:{digest}")


@dataclass(frozen=True, eq=False)
class Outcome:
    """The plan that comes out, and what is to be said of the steps that led to it."""

    solution: Solution
    surviving: Surviving | None
    replanned: Replanned | None
    migration: Migration | None

    @property
    def predictions(self) -> list[Prediction]:
        """Return baselines, the plan in force, the plan with no limit on moves where there is one, and this plan."""
        *baselines, this = self.solution.predictions
        if self.replanned is None:
            return [*baselines, this]
        return [*baselines, self.replanned.in_force, self.replanned.free, this]


@dataclass(frozen=True, eq=False)
class Changes:
    """What the user asks of the plan besides its time.

    Attributes:
        limit: on moves from the plan in force.
        old: that plan, if there is one.
        survive: whether experts have to survive the loss of a host.
        deadline: `time.monotonic()` moment when all should be done.

    """

    limit: MoveLimit
    old: PlanInForce | None
    survive: bool
    seed: int
    workers: int | None
    deadline: float | None

    def check(self, workload: Workload, *, scenarios: int) -> None:
        """Refuse what cannot be met, before the search."""
        if scenarios > 1 and (self.survive or self.old is not None):
            raise BadInput(
                f"--from and --survive go with one scenario, not with {scenarios}; leave them or the others out"
            )
        if self.survive and not self.limit.is_free:
            raise BadInput("--survive cannot be limited by --max-moves or --move-cost; leave one of them out")
        if self.survive and workload.cluster.num_hosts == 1:
            raise BadInput(f"--survive host: {workload.cluster.name} has ranks on one host only")

    def search_s(self, time_limit_s: float | None) -> float | None:
        """Return the seconds for the free search."""
        follows = self.survive or not self.limit.is_free
        return SEARCH_PART * time_limit_s if time_limit_s is not None and follows else time_limit_s

    @property
    def sources(self) -> dict[str, str]:
        """Return what plan.json says of the plan in force."""
        return {} if self.old is None else {"from": self.old.sha256}

    def made(
        self, solution: Solution, workload: Workload, profile: TimingProfile, slots_R: IntArray, *, search: bool
    ) -> Outcome:
        """Return the plan that meets it all."""
        surviving = replanned = moved = None
        if self.survive:
            from planner.solve.survivors import survive_host  # noqa: PLC0415 - solvers load only where one searches

            surviving = survive_host(
                solution, workload, profile, slots_R, search=search, workers=self.workers, deadline=self.deadline
            )
            solution = surviving.solution
        if self.old is not None:
            from planner.solve.replan import replan  # noqa: PLC0415 - solvers load only where one searches

            replanned = replan(
                solution, self.old.plan, workload, profile, slots_R, self.limit,
                backups=surviving.backups if surviving else None, search=search, seed=self.seed, workers=self.workers,
                deadline=self.deadline,
            )  # fmt: skip
            solution = replanned.solution
            moved = migration(
                self.old.plan.placements,
                solution.placements,
                workload.layers,
                workload.cluster,
                workload.model,
                profile,
            )
        return Outcome(solution, surviving, replanned, moved)


def move_limit(max_moves: str | None, move_cost: float | None, slots: int, *, has_plan: bool) -> MoveLimit:
    """Read the limits of `epplan plan`: a number of moves or a part of all `slots`, and a price in microseconds."""
    if not has_plan and (max_moves is not None or move_cost is not None):
        raise BadInput("--max-moves and --move-cost need the plan in force: --from plan.json")
    if move_cost is not None and not math.isfinite(move_cost):
        raise BadInput(f"--move-cost is {move_cost}, must be a finite number of microseconds")
    return MoveLimit(None if max_moves is None else _count(max_moves, slots), move_cost or 0.0)


def _count(text: str, slots: int) -> int:
    match = re.fullmatch(r"([0-9]{1,9})|([0-9]{1,3}(?:\.[0-9]{1,6})?)%", text.strip(), re.ASCII)
    if match is None or (match[2] is not None and float(match[2]) > 100):
        raise BadInput(f"--max-moves is {text[:40]!r}, must be a whole number, or a part of all slots such as 10%")
    return int(match[1]) if match[1] is not None else int(float(match[2]) * slots / 100)
