"""`epplan plan`: from a cluster, a model and routing statistics to plan.json."""

from __future__ import annotations

import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any, Literal

import click

from app.changes import Changes, PlanInForce, move_limit
from app.console import messages, progress
from app.inputs import Inputs, load_inputs
from app.plan_report import report
from app.scenarios import Scenarios
from planner import Workload, assemble_plan, build_workload, load_profile, slots_of_ranks
from planner.placement import IntArray
from planner.rank_speeds import RankSpeeds, load_rank_speeds
from planner.request import default_slots_per_rank
from planner.solve import OBJECTIVES
from planner.timing import EXCHANGES, OVERLAPS, Exchange, Overlap
from topologies import BadInput


@click.command()
@click.option("--model", help="Known name (deepseek-v3, mixtral-8x7b, ...) or a Hugging Face config.json.")
@click.option("--cluster", help="Catalog name and size (hgx-h100:4) or a cluster file.")
@click.option(
    "--routing",
    multiple=True,
    help="Routing statistics: logical_count JSON, SGLang recorder .pt, .npz, CSV, ... Several: scenarios of one plan.",
)
@click.option("--windows", type=click.IntRange(min=2), help="Take this many spans of a recording as scenarios.")
@click.option(
    "--robust",
    metavar="worst|mean|cvar:Q",
    help="How scenarios count: the worst, their mean, or the mean of the worst 1-Q of them. [default: worst]",
)
@click.option(
    "--slots-per-rank", type=int, help="Expert slots on every rank. [default: what the experts need, plus one]"
)
@click.option(
    "--tokens-per-rank",
    type=float,
    help="Tokens of a rank in a step. [default: the trace itself; 4096 for plain counts]",
)
@click.option(
    "--exchange",
    type=click.Choice(["auto", *EXCHANGES]),
    default="auto",
    show_default=True,
    help="All-to-all algorithm; auto takes the fastest.",
)
@click.option(
    "--objective",
    type=click.Choice(OBJECTIVES),
    default="time",
    show_default=True,
    help="Predicted time, or load balance alone.",
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0),
    help="Seconds for the search; 0 = best baseline. [default: a fixed amount of work, reproducible]",
)
@click.option(
    "--overlap",
    type=click.Choice(OVERLAPS),
    default="none",
    show_default=True,
    help="Phases that run at once: the dispatch under the shared experts, or two micro-batches.",
)
@click.option("--profile", default="vendor", show_default=True, help="Timing profile: a shipped name or a YAML file.")
@click.option("--from", "from_", metavar="PLAN", help="Plan in force: the next one is made to move few weights.")
@click.option("--max-moves", metavar="N|N%", help="With --from: experts that may travel, or which part of all slots.")
@click.option(
    "--move-cost",
    type=click.FloatRange(min=0),
    metavar="US",
    help="With --from: microseconds of step time that each move has to save.",
)
@click.option("--without", multiple=True, metavar="PART", help="Lost part: host3, host1/gpu2, host0/nic4. Repeatable.")
@click.option("--rank-speed", metavar="FILE", help="Ranks of other speed or memory: CSV or YAML of rank,speed[,slots].")
@click.option(
    "--survive",
    type=click.Choice(["host"]),
    help="Keep copies on two hosts, for as many experts as the slots allow, and print the price.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="The same seed gives the same plan, on any number of workers.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Layers solved at once. [default: one per core]")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Where to write plan.json.")
@click.option("--json", "json_", is_flag=True, help="Print the comparison as JSON instead of a table.")
def plan(
    model: str | None,
    cluster: str | None,
    routing: tuple[str, ...],
    windows: int | None,
    robust: str | None,
    slots_per_rank: int | None,
    tokens_per_rank: float | None,
    exchange: Exchange | Literal["auto"],
    objective: Literal["time", "balance"],
    time_limit: float | None,
    overlap: Overlap,
    profile: str,
    from_: str | None,
    max_moves: str | None,
    move_cost: float | None,
    without: tuple[str, ...],
    rank_speed: str | None,
    survive: str | None,
    seed: int,
    workers: int | None,
    output: str | None,
    json_: bool,
) -> None:
    """Place experts and replicas at the least predicted step time, and prove how close to optimal that is.

    Compares the plan with what people use today: linear, round-robin, EPLB (hierarchical) and EPLB (global). With no
    options it plans a bundled, really trained model on two H100 hosts. Ctrl-C keeps the best plan so far.

    \b
    epplan plan --model deepseek-v3 --cluster hgx-h100:4 --routing loads.json --slots-per-rank 9 -o plan.json
    epplan plan ... --routing today.json --from plan.json --max-moves 10% -o next.json
    """
    started = time.monotonic()
    _check_output(output)
    if time_limit is not None and not math.isfinite(time_limit):
        raise BadInput(f"--time-limit is {time_limit}, must be a finite number of seconds")
    speeds = None if rank_speed is None else load_rank_speeds(rank_speed)
    lost = [part for parts in without for part in parts.split(",") if part]
    inputs = load_inputs(model, cluster, routing[0] if routing else None, lost=lost, rank_speeds=speeds)
    scenarios = Scenarios.load(inputs, routing[1:], windows, robust)
    workload = build_workload(inputs.model, inputs.cluster, inputs.routing, tokens_per_rank, seed)
    old = None if from_ is None else PlanInForce.load(from_, workload)
    slots_R = _slots(workload, slots_per_rank, old, speeds)
    limit = move_limit(max_moves, move_cost, int(slots_R.sum()) * workload.num_layers, has_plan=old is not None)
    changes = Changes(
        limit, old, survive is not None, seed, workers, None if time_limit is None else started + time_limit
    )
    changes.check(workload, scenarios=len(scenarios.routings))
    timing = load_profile(profile)
    _say_what_is_planned(inputs, workload, slots_R)
    scenarios.say()
    with progress("placing layers", workload.num_layers, shown=time_limit != 0) as on_layer:
        asked: dict[str, Any] = {
            "objective": objective, "exchange": exchange, "overlap": overlap, "seed": seed, "workers": workers,
            "time_limit_s": changes.search_s(time_limit), "on_layer": on_layer,
        }  # fmt: skip
        workload, solution, robust_solution = scenarios.solved(workload, tokens_per_rank, timing, slots_R, asked)
    if not solution.complete:
        messages().print("interrupted: keeping the best plan so far")
    outcome = changes.made(solution, workload, timing, slots_R, search=time_limit != 0)
    result = assemble_plan(
        workload, timing, slots_R, outcome.solution, seed=seed,
        inputs=inputs.sources | scenarios.sources | changes.sources,
        command=shlex.join(["epplan", *sys.argv[1:]]),
    )  # fmt: skip
    if output is not None:
        result.save(output)
    report(result, outcome, robust_solution, timing, workload.cluster, output, json_=json_)


def _slots(
    workload: Workload, slots_per_rank: int | None, old: PlanInForce | None, speeds: RankSpeeds | None
) -> IntArray:
    """Return the slots of every rank: as many as the user says, else as the plan in force has, if they suffice."""
    model, cluster = workload.model, workload.cluster
    if slots_per_rank is None:
        slots_per_rank = default_slots_per_rank(model, cluster)
        if old is not None and old.slots_per_rank * cluster.num_ranks >= model.experts:
            slots_per_rank = old.slots_per_rank
    return slots_of_ranks(model, cluster, slots_per_rank, workload.num_layers, speeds.slots if speeds else None)


def _check_output(output: str | None) -> None:
    """Refuse a place that cannot be written before the search, not after it."""
    if output is None:
        return
    try:
        folder = Path(output).resolve().parent
        usable = bool(output) and folder.is_dir() and not (Path(output).exists() and Path(output).is_dir())
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long, a NUL byte
        raise BadInput(f"{output[:80]!r}: cannot be written: {error}") from error
    if not usable:
        raise BadInput(f"{output!r}: cannot be written: no such folder, or no name of a file (-o plan.json)")


def _say_what_is_planned(inputs: Inputs, workload: Workload, slots_R: IntArray) -> None:
    model, cluster = inputs.model, inputs.cluster
    say = messages()
    for remark in inputs.routing.remarks:
        say.print(f"note: {remark}")
    least, most = int(slots_R.min()), int(slots_R.max())
    slots = f"{most}" if least == most else f"{least} to {most}"
    say.print(
        f"{model.name}: {workload.num_layers} layers x {model.experts} experts (top-{model.top_k}) on {cluster.name}: "
        f"{cluster.num_ranks} ranks x {slots} slots, {workload.tokens_per_rank:g} tokens a rank, "
        f"routing {inputs.routing.name}"
    )
