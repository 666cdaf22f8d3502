"""`epplan plan`: from a cluster, a model and routing statistics to plan.json."""

from __future__ import annotations

import math
import shlex
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.changes import Changes, Outcome
from app.console import messages, progress
from app.inputs import Inputs, load_inputs
from app.plan_options import PlanOptions, plan_options
from app.plan_report import report
from app.room import Asked, Room, room_for
from app.scenarios import Scenarios
from planner import Cluster, TimingProfile, Workload, assemble_plan, build_workload, load_profile
from planner.coherent import coherent_step
from planner.rank_speeds import load_rank_speeds
from topologies import BadInput
from topologies.files import refuse_overwriting

if TYPE_CHECKING:
    from app.in_force import PlanInForce
    from planner.migrate import MoveLimit


@click.command()
@plan_options
def plan(**given: Any) -> None:
    """Place experts and replicas at the least predicted step time, and prove how close to optimal that is.

    Compares the plan with what people use today: linear, round-robin, EPLB (hierarchical) and EPLB (global). With no
    options it plans a bundled, really trained model on two H100 hosts. Ctrl-C keeps the best plan so far.

    \b
    epplan plan --model deepseek-v3 --cluster hgx-h100:4 --routing loads.json --slots-per-rank 9 -o plan.json
    epplan plan ... --memory-per-rank 24 -o plan.json
    epplan plan ... --routing today.json --from plan.json --max-moves 10% -o next.json
    """
    options, started = PlanOptions(**given), time.monotonic()
    _check(options)
    task = _Task.load(options)
    _say_statistics(task.inputs)
    workload, room = task.workload, task.room
    changes = task.changes(options, started)
    _say_what_is_planned(task.inputs, workload, room)
    task.scenarios.say()
    search = options.time_limit != 0
    with progress("placing layers", workload.num_layers, shown=search) as on_layer:
        asked = _asked(options) | {"time_limit_s": changes.search_s(options.time_limit), "on_layer": on_layer}
        workload, solution, robust = task.scenarios.solved(workload, options.tokens_per_rank, task.profile, room, asked)
    if not solution.complete:
        messages().print("interrupted: keeping the best plan so far")
    slots = room.slots_of(solution)
    outcome = changes.made(solution, workload, task.profile, slots, search=search)
    outcome = _with_copies_chosen(outcome, workload, task.profile, options)
    room.check(workload, outcome.solution.placements)
    result = assemble_plan(
        workload, task.profile, slots, outcome.solution, seed=options.seed,
        inputs=task.inputs.sources | task.scenarios.sources | changes.sources,
        command=shlex.join(["epplan", *sys.argv[1:]]),
    )  # fmt: skip
    if options.output is not None:
        result.save(options.output)
    report(result, outcome, robust, task.profile, workload, room, options.output, json_=options.json_)


@dataclass(frozen=True, eq=False)
class _Task:
    """What is to be planned, read and checked: the statistics, what there is room for, and the plan in force."""

    inputs: Inputs
    workload: Workload
    profile: TimingProfile
    scenarios: Scenarios
    old: PlanInForce | None
    room: Room

    @classmethod
    def load(cls, options: PlanOptions) -> _Task:
        """Read all that the options name."""
        speeds = None if options.rank_speed is None else load_rank_speeds(options.rank_speed)
        first = options.routing[0] if options.routing else None
        inputs = load_inputs(
            options.model, options.cluster, first, lost=options.lost, rank_speeds=speeds,
            ep_groups=options.ep_groups, ep_stride=options.ep_stride,
        )  # fmt: skip
        scenarios = Scenarios.load(inputs, options.routing[1:], options.windows, options.robust)
        workload = build_workload(inputs.model, inputs.cluster, inputs.routing, options.tokens_per_rank, options.seed)
        old = _plan_in_force(options.from_, workload)
        profile = load_profile(options.profile)
        if options.exchange == "coherent":
            coherent_step(workload, profile, "dedup")  # raises where there is no trace, before any search
        wanted = Asked(options.slots_per_rank, options.memory_per_rank, options.training, options.engine_compatible)
        wanted.check(speeds, scenarios=len(scenarios.routings))
        _check_replica_choice(options, scenarios=len(scenarios.routings))
        asked = _asked(options) | {"time_limit_s": options.time_limit}
        room = room_for(wanted, workload, profile, old, speeds, asked, scenarios=len(scenarios.routings))
        return cls(inputs, workload, profile, scenarios, old, room)

    def changes(self, options: PlanOptions, started: float) -> Changes:
        """Return what is asked of the plan besides its time, checked."""
        limit = self._move_limit(options)
        deadline = None if options.time_limit is None else started + options.time_limit
        survive = options.survive is not None
        changes = Changes(self.old, limit, survive, options.seed, options.workers, deadline)
        changes.check(self.workload, scenarios=len(self.scenarios.routings))
        return changes

    def _move_limit(self, options: PlanOptions) -> MoveLimit | None:
        if self.old is None:
            if options.max_moves is not None or options.move_cost is not None:
                raise BadInput("--max-moves and --move-cost need the plan in force: --from plan.json")
            return None
        from app.in_force import move_limit  # noqa: PLC0415 - few plans follow one in force

        return move_limit(options.max_moves, options.move_cost, self.room.total(self.workload.num_layers))


def _plan_in_force(path: str | None, workload: Workload) -> PlanInForce | None:
    """Return the plan that --from names, if it names one."""
    if path is None:
        return None
    from app.in_force import PlanInForce  # noqa: PLC0415 - few plans follow one in force

    return PlanInForce.load(path, workload)


def _with_copies_chosen(outcome: Outcome, workload: Workload, profile: TimingProfile, options: PlanOptions) -> Outcome:
    """Return the plan under the replica choice that was asked for."""
    if options.replica_choice == "shares":
        return outcome
    from planner.solve.copies import choose_copies  # noqa: PLC0415 - solvers load only where one searches

    return replace(outcome, solution=choose_copies(outcome.solution, workload, profile, options.replica_choice))


def _asked(options: PlanOptions) -> dict[str, Any]:
    """Return the options of `planner.solve.solve`."""
    names = ("objective", "exchange", "overlap", "seed", "workers")
    return {name: getattr(options, name) for name in names}


def _check(options: PlanOptions) -> None:
    """Refuse what needs no file to be seen as wrong, before any work."""
    if options.time_limit is not None and not math.isfinite(options.time_limit):
        raise BadInput(f"--time-limit is {options.time_limit}, must be a finite number of seconds")
    options.check_coherent()
    _check_output(options.output)
    read = (options.model, options.cluster, options.profile, options.rank_speed, *options.routing)
    refuse_overwriting(options.output, *(name for name in read if name is not None))


def _check_replica_choice(options: PlanOptions, *, scenarios: int) -> None:
    """Refuse a cover where copies have to serve equal shares, or several scenarios weigh shares against each other."""
    if options.replica_choice == "shares":
        return
    if options.engine_compatible:
        raise BadInput(f"--replica-choice {options.replica_choice}: --engine-compatible copies serve equal shares")
    if scenarios > 1:
        raise BadInput(f"--replica-choice {options.replica_choice} goes with one scenario, not with {scenarios}")


def _check_output(output: str | None) -> None:
    """Refuse a place that cannot be written before the search, not after it."""
    if output is None:
        return
    try:
        with suppress(FileNotFoundError):
            Path(output).stat()  # raises for a loop of links, which Python 3.13 resolves to itself
        folder = Path(output).resolve().parent
        usable = bool(output) and folder.is_dir() and not (Path(output).exists() and Path(output).is_dir())
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long, a NUL byte
        raise BadInput(f"{output[:80]!r}: cannot be written: {error}") from error
    if not usable:
        raise BadInput(f"{output!r}: cannot be written: no such folder, or no name of a file (-o plan.json)")


def _say_statistics(inputs: Inputs) -> None:
    for remark in inputs.routing.remarks:
        messages().print(f"note: {remark}")


def _say_what_is_planned(inputs: Inputs, workload: Workload, room: Room) -> None:
    model, cluster = inputs.model, inputs.cluster
    least, most = int(room.slots.min()), int(room.slots.max())
    slots = f"{most}" if least == most else f"{least} to {most}"
    messages().print(
        f"{model.name}: {workload.num_layers} layers x {model.experts} experts (top-{model.top_k}) on {cluster.name}: "
        f"{_groups_text(cluster)}{cluster.num_ranks} ranks x {slots} slots, {workload.tokens_per_rank:g} tokens a "
        f"rank, routing {inputs.routing.name}"
    )


def _groups_text(cluster: Cluster) -> str:
    return "" if cluster.groups.count == 1 else f"{cluster.groups.count} EP groups of "
