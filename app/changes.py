"""What follows the free search of `epplan plan`: a plan that survives a lost host, and one that moves few weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner import Prediction, Solution, TimingProfile, Workload
from planner.placement import IntArray
from topologies import BadInput

if TYPE_CHECKING:
    from app.in_force import PlanInForce
    from planner.migrate import Migration, MoveLimit
    from planner.solve.replan import Replanned
    from planner.solve.survivors import Surviving

SEARCH_PART = 0.7  # of a time limit, for the free search; the rest is for what follows it


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
        old: the plan in force, if there is one.
        limit: on moves from that plan; None without one.
        survive: whether experts have to survive the loss of a host.
        deadline: `time.monotonic()` moment when all should be done.

    """

    old: PlanInForce | None
    limit: MoveLimit | None
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
        if self.survive and self._is_limited:
            raise BadInput("--survive cannot be limited by --max-moves or --move-cost; leave one of them out")
        if self.survive and workload.cluster.num_hosts == 1:
            raise BadInput(f"--survive host: {workload.cluster.name} has ranks on one host only")

    def search_s(self, time_limit_s: float | None) -> float | None:
        """Return the seconds for the free search."""
        follows = self.survive or self._is_limited
        return SEARCH_PART * time_limit_s if time_limit_s is not None and follows else time_limit_s

    @property
    def _is_limited(self) -> bool:
        return self.limit is not None and not self.limit.is_free

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
        if self.old is not None and self.limit is not None:
            from planner.migrate import migration  # noqa: PLC0415 - few plans follow one in force
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
