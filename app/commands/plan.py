"""`epplan plan`: from a cluster, a model and routing statistics to plan.json."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click

from app.console import messages, print_json, progress, results
from app.inputs import Inputs, load_inputs
from app.tables import as_json, comparison
from planner import (
    Plan,
    Prediction,
    TimingProfile,
    Workload,
    assemble_plan,
    build_workload,
    load_profile,
    slots_of_ranks,
    solve,
)
from planner.request import default_slots_per_rank
from planner.solve import OBJECTIVES
from planner.timing import EXCHANGES, OVERLAPS, Exchange, Overlap
from topologies import BadInput


@click.command()
@click.option("--model", help="Known name (deepseek-v3, mixtral-8x7b, ...) or a Hugging Face config.json.")
@click.option("--cluster", help="Catalog name and size (hgx-h100:4) or a cluster file.")
@click.option("--routing", help="Routing statistics: logical_count JSON, SGLang recorder .pt, .npz, or CSV.")
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
    routing: str | None,
    slots_per_rank: int | None,
    tokens_per_rank: float | None,
    exchange: Exchange | Literal["auto"],
    objective: Literal["time", "balance"],
    time_limit: float | None,
    overlap: Overlap,
    profile: str,
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
    """
    _check_output(output)
    if time_limit is not None and not math.isfinite(time_limit):
        raise BadInput(f"--time-limit is {time_limit}, must be a finite number of seconds")
    inputs = load_inputs(model, cluster, routing)
    workload = build_workload(inputs.model, inputs.cluster, inputs.routing, tokens_per_rank, seed)
    if slots_per_rank is None:
        slots_per_rank = default_slots_per_rank(inputs.model, inputs.cluster)
    slots_R = slots_of_ranks(inputs.model, inputs.cluster, slots_per_rank, workload.num_layers)
    timing = load_profile(profile)
    _say_what_is_planned(inputs, workload, slots_per_rank)
    with progress("placing layers", workload.num_layers, shown=time_limit != 0) as on_layer:
        solution = solve(
            workload, timing, slots_R, objective=objective, exchange=exchange, overlap=overlap,
            time_limit_s=time_limit, seed=seed, workers=workers, on_layer=on_layer,
        )  # fmt: skip
    if not solution.complete:
        messages().print("interrupted: keeping the best plan so far")
    result = assemble_plan(
        workload, timing, slots_R, solution, seed=seed, inputs=inputs.sources,
        command=shlex.join(["epplan", *sys.argv[1:]]),
    )  # fmt: skip
    if output is not None:
        result.save(output)
    _report(result, solution.predictions, timing, output, json_=json_)


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


def _say_what_is_planned(inputs: Inputs, workload: Workload, slots_per_rank: int) -> None:
    model, cluster = inputs.model, inputs.cluster
    say = messages()
    for remark in inputs.routing.remarks:
        say.print(f"note: {remark}")
    say.print(
        f"{model.name}: {workload.num_layers} layers x {model.experts} experts (top-{model.top_k}) on {cluster.name}: "
        f"{cluster.num_ranks} ranks x {slots_per_rank} slots, {workload.tokens_per_rank:g} tokens a rank, "
        f"routing {inputs.routing.name}"
    )


def _report(
    result: Plan, predictions: Sequence[Prediction], profile: TimingProfile, output: str | None, *, json_: bool
) -> None:
    certificate = result.certificate
    if json_:
        print_json(as_json(predictions) | {"exchange": result.exchange, "certificate": certificate.model_dump()})
        return
    gap = f"{certificate.gap:.2%}" if certificate.proven else f"<= {certificate.gap:.1%}"
    console = results()
    console.print(comparison(predictions, profile, {"this plan": gap}))
    best = min(predictions[:-1], key=lambda prediction: prediction.total_us)
    console.print(
        f"{best.total_us / predictions[-1].total_us:.3f}x the speed of the best baseline ({best.name}); "
        + (
            f"proven within {certificate.gap:.2%} of optimal"
            if certificate.proven
            else f"not proven optimal: the lower bound is {certificate.gap:.1%} away"
        )
        + f" ({certificate.objective}); {certificate.seconds:.1f} s with {certificate.solver}"
    )
    if profile.status == "uncalibrated":
        console.print(f"profile {profile.name}: {profile.note}")
    for reason in predictions[-1].reasons:
        console.print(f"extrapolated: {reason}")
    if output is None:
        messages().print("no file written: add -o plan.json")
    else:
        console.print(f"wrote {output}")
