"""What `epplan plan` prints: the comparison, the proof, and what was paid for moving little or surviving much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from app.changes import Outcome
from app.console import messages, print_json, results
from app.room import Room
from app.scenarios import scenario_table, scenarios_json
from app.tables import as_json, comparison, groups_note
from planner import Cluster, Plan, TimingProfile, Workload
from planner.plan import Certificate
from planner.survive import survivors_E

if TYPE_CHECKING:
    from planner.solve.scenarios import RobustSolution


def report(
    result: Plan,
    outcome: Outcome,
    robust: RobustSolution | None,
    profile: TimingProfile,
    workload: Workload,
    room: Room,
    output: str | None,
    *,
    json_: bool,
) -> None:
    """Print a plan beside its baselines."""
    cluster, placements = workload.cluster, outcome.solution.placements
    if json_:
        memory = room.memory_json(workload, placements)
        print_json(memory | _as_json(result, outcome, cluster) | ({} if robust is None else scenarios_json(robust)))
        return
    certificate = result.certificate
    predictions = outcome.predictions
    gap = f"{certificate.gap:.2%}" if certificate.proven else f"<= {certificate.gap:.1%}"
    console = results()
    note = groups_note(cluster)
    if robust is not None:
        console.print(scenario_table(robust))
        note += f"; in the scenario where this plan takes longest, {robust.workloads[robust.worst].routing.name}"
    console.print(comparison(predictions, profile, {"this plan": gap}, note=note))
    console.print(_verdict(outcome, certificate))
    if result.replica_choice == "cover":
        console.print("replica choice cover: a token uses the copies on ranks and in domains that it visits anyway")
    if cluster.groups.count > 1:
        console.print(
            f"one plan for {cluster.groups.count} EP groups: rank numbers are those within a group; predicted with the "
            "traffic of all groups on the links that they share"
        )
    for line in room.lines(workload, placements):
        console.print(line)
    _print_survival(console, outcome, cluster)
    _print_moves(console, outcome, cluster)
    if profile.status == "uncalibrated":
        console.print(f"profile {profile.name}: {profile.note}")
    for reason in predictions[-1].reasons:
        console.print(f"extrapolated: {reason}")
    if output is None:
        messages().print("no file written: add -o plan.json")
    else:
        console.print(f"wrote {output}")


def _verdict(outcome: Outcome, certificate: Certificate) -> str:
    best, this = outcome.solution.to_beat, outcome.predictions[-1]
    rival = best.name if best.exchange == this.exchange else f"{best.name}, which is faster with {best.exchange}"
    proof = (
        f"proven within {certificate.gap:.2%} of optimal"
        if certificate.proven
        else f"not proven optimal: the lower bound is {certificate.gap:.1%} away"
    )
    return (
        f"{best.total_us / this.total_us:.3f}x the speed of the best baseline ({rival}); "
        f"{proof} ({certificate.objective}); {certificate.seconds:.1f} s with {certificate.solver}"
    )


def _print_moves(console: Console, outcome: Outcome, cluster: Cluster) -> None:
    made, moved = outcome.replanned, outcome.migration
    if made is None or moved is None:
        return
    from app.migration_report import pay_back_text, print_migration  # noqa: PLC0415 - few plans follow one in force

    print_migration(console, moved, cluster)
    if made.moves < made.free_moves:
        console.print(
            f"{made.part_of_gain:.0%} of what any moves ({made.free_moves:,} of them) would save, with {made.moves:,}"
        )
    if not moved.lost:
        console.print(pay_back_text(moved, made.in_force.total_us, outcome.solution.predictions[-1].total_us))


def _print_survival(console: Console, outcome: Outcome, cluster: Cluster) -> None:
    if outcome.surviving is None:
        return
    found = _survival(outcome, cluster)
    lost = max(found["lost_with_host"])
    others = f", at most {lost:,} are lost with one host" if lost else ""
    console.print(
        f"{found['survive']:,} of {found['experts']:,} experts (all layers) survive the loss of any host{others}; "
        f"the price is {found['price']:+.1%} of the step time (predicted)"
    )


def _survival(outcome: Outcome, cluster: Cluster) -> dict[str, Any]:
    from planner.solve.survivors import lost_on_each_host  # noqa: PLC0415 - solvers load only where one searches

    assert outcome.surviving is not None
    placements, host_R = outcome.solution.placements, np.asarray(cluster.host_of_rank)
    return {
        "survive": sum(int(survivors_E(placement, host_R).sum()) for placement in placements),
        "experts": sum(placement.num_experts for placement in placements),
        "lost_with_host": lost_on_each_host(placements, host_R),
        "price": outcome.surviving.price,
    }


def _as_json(result: Plan, outcome: Outcome, cluster: Cluster) -> dict[str, Any]:
    document = as_json(outcome.predictions)
    document |= {
        "exchange": result.exchange,
        "replica_choice": result.replica_choice,
        "certificate": result.certificate.model_dump(),
    }
    if outcome.surviving is not None:
        document["survival"] = _survival(outcome, cluster)
    made, moved = outcome.replanned, outcome.migration
    if made is not None and moved is not None:
        from app.migration_report import migration_json  # noqa: PLC0415 - few plans follow one in force

        new_us = outcome.solution.predictions[-1].total_us
        document["migration"] = migration_json(moved, cluster, made.in_force.total_us, new_us)
        document["migration"] |= {"part_of_gain": made.part_of_gain, "moves_without_limit": made.free_moves}
    return document
