"""`epplan diff`: what it takes to go from one plan to another."""

from __future__ import annotations

from collections.abc import Sequence

import click

from app.console import messages, print_json, results
from app.in_force import in_force
from app.inputs import cluster_of_plan, knows_its_routing, workload_of_plan
from app.migration_report import migration_json, pay_back_text, print_migration
from app.profile_option import profile_option
from planner import Plan, TimingProfile, Workload, load_plan, load_profile, predict
from planner.migrate import migration
from planner.placement import Placement
from planner.timing import Exchange, plain


@click.command()
@click.argument("old")
@click.argument("new")
@click.option("--routing", help="Statistics to compare the steps on. [default: those of the bundled example]")
@click.option("--cluster", help="The cluster's file, where the plans' cluster came from one.")
@click.option("--tokens-per-rank", type=float, help="Tokens of a rank in a step. [default: those of NEW]")
@profile_option
@click.option("--json", "json_", is_flag=True, help="Print every move and every link as JSON instead of tables.")
def diff(
    old: str,
    new: str,
    routing: str | None,
    cluster: str | None,
    tokens_per_rank: float | None,
    profile: str,
    json_: bool,
) -> None:
    """Compare two plans: which experts move where, over which links, for how long, and when that has paid back.

    Each expert comes from the nearest rank that holds it. NEW may be for what is left of OLD's cluster.

    \b
    epplan diff plan.json next.json --routing loads.json
    """
    before, after = load_plan(old), load_plan(new)
    machine = cluster_of_plan(after, cluster)
    layers = tuple(entry.layer for entry in after.layers)
    held = in_force(before, old, machine, layers, after.model.experts)
    timing = load_profile(profile)
    found = migration(held.placements, after.placements(), layers, machine, after.model, timing)
    old_us = new_us = None
    if not found.lost and (routing is not None or knows_its_routing(after)):
        workload = workload_of_plan(after, layers, routing=routing, cluster=cluster, tokens_per_rank=tokens_per_rank)
        old_us = _step_us(held.placements, workload, timing, held.exchange, after)
        new_us = _step_us(after.placements(), workload, timing, plain(after.exchange), after)
    if json_:
        print_json(migration_json(found, machine, old_us, new_us))
        return
    print_migration(results(), found, machine)
    if old_us is not None and new_us is not None:
        results().print(pay_back_text(found, old_us, new_us))
    elif found.lost:
        messages().print("no steps to compare: on these ranks the old plan lacks experts")
    else:
        messages().print("steps until it pays back: name the statistics with --routing")


def _step_us(
    placements: Sequence[Placement], workload: Workload, profile: TimingProfile, exchange: Exchange, plan: Plan
) -> float:
    return predict("plan", placements, workload, profile, exchange, overlap=plan.predicted.overlap).total_us
