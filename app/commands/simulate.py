"""`epplan simulate`: one layer of a plan as flows on the cluster graph, with a timeline."""

from __future__ import annotations

import json
from typing import Any

import click
import numpy as np
from rich.table import Table as RichTable

from app.console import print_json, progress, results
from app.inputs import workload_of_plan
from app.profile_option import profile_option
from planner import Plan, load_plan, load_profile
from planner.simulate import Simulation, simulate_layer
from planner.timing import EXCHANGES, Exchange, plain
from planner.trace import busiest_link, chrome_trace
from topologies.errors import BadInput
from topologies.files import refuse_overwriting, write_text


@click.command()
@click.argument("plan")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False), help="Where to write the Chrome trace; opens in Perfetto."
)
@click.option("--routing", help="Routing statistics, as in `epplan plan`. [default: the bundled trace]")
@click.option("--layer", type=int, help="Layer of the model. [default: the plan's slowest by its own prediction]")
@click.option("--cluster", help="Cluster file, where the plan's cluster is not in the catalog.")
@click.option("--exchange", type=click.Choice(EXCHANGES), help="All-to-all algorithm. [default: the plan's]")
@profile_option
@click.option("--barriers", is_flag=True, help="Let every phase wait for the one before, as the closed form does.")
@click.option(
    "--pieces",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Two-level: forward messages in so many parts; the closed form assumes as many as you like.",
)
@click.option("--json", "json_", is_flag=True, help="Print the times as JSON instead of a table.")
def simulate(
    plan: str,
    output: str | None,
    routing: str | None,
    layer: int | None,
    cluster: str | None,
    exchange: Exchange | None,
    profile: str,
    barriers: bool,
    pieces: int,
    json_: bool,
) -> None:
    """Simulate one layer of a plan, message by message, and draw its timeline.

    Links are shared fairly; a rank starts its experts when its own tokens are in. The table sets the simulation beside
    the closed form: they agree where one link holds a phase up, and differ under incast and mixed message sizes.

    \b
    epplan simulate plan.json --routing loads.json -o trace.json
    """
    refuse_overwriting(output, plan)
    loaded = load_plan(plan)
    index = _layer_index(loaded, layer)
    workload = workload_of_plan(loaded, [loaded.layers[index].layer], routing=routing, cluster=cluster)
    timing = load_profile(profile)
    use = exchange or plain(loaded.exchange)
    with progress("simulating, percent of the flows", 100, shown=True) as on_percent:
        done = simulate_layer(
            workload, loaded.placement(index), 0, timing, use, barriers=barriers, pieces=pieces, on_percent=on_percent
        )
    if output is not None:
        write_text(output, json.dumps(chrome_trace(done), separators=(",", ":"), allow_nan=False))
    if json_:
        print_json(_document(done))
        return
    results().print(_table(done, f"{timing.name} ({timing.status}, {done.closed_form.cost.label})"))
    if output is not None:
        results().print(f"wrote {output}; open it at ui.perfetto.dev")


def _layer_index(plan: Plan, layer: int | None) -> int:
    numbers = [entry.layer for entry in plan.layers]
    if layer is None:
        slowest = max(plan.predicted.layers, key=lambda entry: entry.layer_us, default=None)
        return numbers.index(slowest.layer) if slowest is not None and slowest.layer in numbers else 0
    if layer not in numbers:
        raise BadInput(f"--layer {layer}: the plan has layers {numbers[0]} to {numbers[-1]} ({len(numbers)} of them)")
    return numbers.index(layer)


def _phases(done: Simulation) -> list[tuple[str, float, float]]:
    closed = done.closed_form
    return [
        ("dispatch, until the last rank has its tokens", closed.dispatch_us, done.dispatch_us),
        (
            "experts, until the last rank is done",
            closed.dispatch_us + closed.compute_us,
            float(done.experts_done_R.max()),
        ),
        (
            "layer, until the last result is back",
            closed.dispatch_us + closed.compute_us + closed.combine_us,
            done.layer_us,
        ),
    ]


def _table(done: Simulation, profile: str) -> RichTable:
    table = RichTable(
        title=f"Layer {done.layer}: {len(done.timeline.finish_F)} flows, profile {profile}",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("moment")
    for name in ("closed form us", "simulated us", "ratio"):
        table.add_column(name, justify="right")
    for name, closed_us, simulated_us in _phases(done):
        table.add_row(name, f"{closed_us:,.1f}", f"{simulated_us:,.1f}", f"{simulated_us / closed_us:.3f}")
    link, part = busiest_link(done)
    if link:
        table.caption = (
            f"busiest link: {link}, at work {part:.0%} of the time; last rank: {int(np.argmax(done.back_R))}"
        )
    return table


def _document(done: Simulation) -> dict[str, Any]:
    link, part = busiest_link(done)
    return {
        "layer": done.layer,
        "flows": len(done.timeline.finish_F),
        "simulated_us": done.layer_us,
        "closed_form_us": done.closed_form.layer_us,
        "moments": [{"moment": n, "closed_form_us": c, "simulated_us": s} for n, c, s in _phases(done)],
        "ranks": [
            {"rank": rank, "tokens_in_us": float(a), "experts_done_us": float(b), "back_us": float(c)}
            for rank, (a, b, c) in enumerate(zip(done.tokens_in_R, done.experts_done_R, done.back_R, strict=True))
        ],
        "busiest_link": {"name": link, "busy": part},
    }
