"""`epplan import`: from the placement file of an engine to plan.json."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from typing import Literal

import click

from app.console import messages, print_json, results
from app.inputs import load_inputs
from app.profile_option import profile_option
from app.tables import as_json, comparison
from planner import build_workload, load_profile, predict
from planner.importers import FORMATS, import_plan, read_placement
from planner.timing import EXCHANGES, Exchange, plain
from topologies.files import refuse_overwriting


@click.command(name="import")
@click.argument("file")
@click.option("--from", "fmt", required=True, metavar="FORMAT", help="One of: " + ", ".join(FORMATS) + ".")
@click.option("--model", required=True, help="Known name (deepseek-v3, ...) or a Hugging Face config.json.")
@click.option("--cluster", required=True, help="Where it runs: catalog name and size (hgx-h100:4) or a cluster file.")
@click.option("--routing", required=True, help="Routing statistics that times are predicted on.")
@click.option("--tokens-per-rank", type=float, help="As in `epplan plan`.")
@click.option(
    "--exchange",
    type=click.Choice(["auto", *EXCHANGES]),
    default="auto",
    show_default=True,
    help="All-to-all algorithm of the engine; auto takes the fastest.",
)
@profile_option
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Where to write plan.json.")
@click.option("--json", "json_", is_flag=True, help="Print the prediction as JSON instead of a table.")
def import_(
    file: str,
    *,
    fmt: str,
    model: str,
    cluster: str,
    routing: str,
    tokens_per_rank: float | None,
    exchange: Exchange | Literal["auto"],
    profile: str,
    output: str | None,
    json_: bool,
) -> None:
    """Read the placement that an engine uses, predict it, and write it as a plan.

    The plan can then be evaluated, compared and improved like any other.

    \b
    epplan import location.json --from sglang --model deepseek-v3 --cluster hgx-h100:4 --routing loads.json -o now.json
    """
    refuse_overwriting(output, file)
    inputs = load_inputs(model, cluster, routing)
    imported = read_placement(file, fmt, inputs.model, inputs.cluster)
    for remark in (*inputs.routing.remarks, *imported.remarks):
        messages().print(f"note: {remark}", highlight=False, markup=False)
    statistics = inputs.routing.select(imported.layers)
    workload = build_workload(inputs.model, inputs.cluster, statistics, tokens_per_rank)
    timing = load_profile(profile)
    plan = import_plan(
        imported, workload, timing, exchange, fmt=fmt, inputs=inputs.sources,
        command=shlex.join(["epplan", *sys.argv[1:]]),
    )  # fmt: skip
    if output is not None:
        plan.save(output)
    row = replace(predict(fmt, imported.placements, workload, timing, plain(plan.exchange)), name=f"{fmt} placement")
    if json_:
        print_json(as_json([row]))
        return
    results().print(comparison([row], timing))
    messages().print("no file written: add -o plan.json" if output is None else f"wrote {output}")
