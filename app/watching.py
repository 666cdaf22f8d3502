"""The loop of `epplan watch`: statistics come in, a plan goes out where that pays, and every step is told.

The state is the plan's file alone. The next plan is written beside it, the command is called with that, and only when
the command has succeeded does the next plan take the file's place: a restart at any moment finds the plan in force, or
one older with the same statistics still in the folder, and comes to the same plan again.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.apply_command import ApplyCommand, stops_held_back
from app.in_force import move_limit
from app.inputs import workload_of_plan
from planner import Plan, Routing, TimingProfile, Workload, load_plan
from planner.inbox import Arrival, Inbox, Look
from planner.watch import NextPlan, Search, Threshold, drift_between, next_plan, slots_of
from topologies.errors import EpplanError

Tell = Callable[..., None]  # (event, text, **fields)


@dataclass(eq=False)
class Watch:
    """A plan in force, the folder that is watched for it, and what to do where another pays.

    Attributes:
        plan_file: the plan in force; replaced as described above.
        tokens_per_rank, cluster: of the workload, where they are not the plan's.
        max_moves: as in `epplan plan --max-moves`.
        tell: called with an event, a line for people, and the event's fields.

    """

    plan_file: Path
    inbox: Inbox
    command: ApplyCommand
    threshold: Threshold
    profile: TimingProfile
    max_moves: str | None
    time_limit_s: float | None
    workers: int | None
    cluster: str | None
    tokens_per_rank: float | None
    tell: Tell
    failed: bool = False
    _planned_on: Routing | None = field(default=None, init=False)
    _awaited: set[Path] = field(default_factory=set, init=False)

    def turn(self) -> Look:
        """Look into the folder once, and judge the newest statistics that can be read."""
        look = self.inbox.look(time.monotonic(), time.time())
        for one in look.waiting:
            if one.path not in self._awaited:
                self.tell("waiting", f"{one.path.name}: still being written", file=one.path.name)
        self._awaited = {one.path for one in look.waiting}
        for arrival in look.whole:
            if self._judged(arrival):
                break
        return look

    def _judged(self, arrival: Arrival) -> bool:
        """Judge the plan in force on some statistics; return whether they could be read."""
        name = arrival.path.name
        old = load_plan(self.plan_file)
        try:
            workload = workload_of_plan(
                old, [layer.layer for layer in old.layers], routing=str(arrival.path),
                cluster=self.cluster, tokens_per_rank=self.tokens_per_rank,
            )  # fmt: skip
        except (EpplanError, OSError) as error:
            if arrival.is_unchanged:
                self.inbox.refuse(arrival)
                self.tell("skipped", f"{name}: skipped: {error}", file=name, reason=str(error))
            return False
        if not arrival.is_unchanged:  # it grew while it was read; the next look waits for it
            return False
        self.inbox.take(arrival)
        digest = f"sha256:{workload.routing.sha256}"
        if old.provenance.inputs.get("routing") == digest:
            self._planned_on = workload.routing
            self.tell("in force", f"{name}: the plan in force was made on it", file=name)
            return True
        try:
            self._follow(old, name, workload, digest)
        except EpplanError as error:
            self.failed = True
            self.tell("failed", f"{name}: no plan: {error}; the plan in force stays", file=name, reason=str(error))
        return True

    def _follow(self, old: Plan, name: str, workload: Workload, digest: str) -> None:
        """Look for the next plan, and put it into force where it pays."""
        drift = None
        if self._planned_on is None:  # the plan was made on statistics that never were here: count from now on
            self._planned_on = workload.routing
        else:
            drift = drift_between(self._planned_on, workload.routing)
        slots = int(slots_of(old)[0].sum())
        search = Search(
            move_limit(self.max_moves, None, slots),
            self.time_limit_s,
            old.workload.seed,
            self.workers,
        )
        in_force = f"sha256:{hashlib.sha256(self.plan_file.read_bytes()).hexdigest()}"
        found = next_plan(
            old, workload, self.profile, search,
            inputs=old.provenance.inputs | {"routing": digest, "from": in_force},
            command=shlex.join(["epplan", *sys.argv[1:]]),
        )  # fmt: skip
        if not found.complete:
            raise KeyboardInterrupt
        fields = _fields(name, drift, found)
        objection = self.threshold.objection(found)
        if objection is not None:
            self.tell("kept", f"{name}: {_drift_text(drift)}plan kept: {objection}", **fields, reason=objection)
            return
        with stops_held_back():
            if self._applied(found, f"{name}: {_drift_text(drift)}{_gain_text(found)}", fields):
                self._planned_on = workload.routing

    def _applied(self, found: NextPlan, text: str, fields: dict[str, Any]) -> bool:
        """Hand a plan to the command; return whether it is in force now."""
        following = next_file(self.plan_file)
        found.plan.save(following)
        trouble = self.command.run(following)
        if trouble is not None:
            self.failed = True
            stays = f"{text}; {trouble}; the plan in force stays, the new one is in {following.name}"
            self.tell("failed", stays, **fields, reason=trouble)
            return False
        following.replace(self.plan_file)
        self.tell("applied", f"{text}; in force", **fields)
        return True


def next_file(plan_file: Path) -> Path:
    """Return where the plan that is to follow the one in `plan_file` stands until it is in force."""
    return plan_file.with_name(f"{plan_file.stem}.next{plan_file.suffix}")


def _fields(name: str, drift: float | None, found: NextPlan) -> dict[str, Any]:
    return {
        "file": name,
        "drift": drift,
        "gain": found.gain,
        "step_us_in_force": found.old_us,
        "step_us_new": found.new_us,
        "moves": len(found.migration.moves),
        "migration_us": found.migration.time_us,
        "pay_back_steps": found.pay_back_steps,
    }


def _drift_text(drift: float | None) -> str:
    return "" if drift is None else f"{drift:.1%} of the load moved; "


def _gain_text(found: NextPlan) -> str:
    return (
        f"the next plan saves {found.gain:.2%} of the step (predicted) for {len(found.migration.moves):,} moves, "
        f"paid back after {found.pay_back_steps or 0:,.0f} steps"
    )
