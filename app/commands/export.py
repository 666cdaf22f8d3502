"""`epplan export`: from plan.json to the file that an engine loads."""

from __future__ import annotations

from pathlib import Path

import click

from app.console import messages
from app.inputs import workload_of_plan
from app.profile_option import profile_option
from planner import load_plan, load_profile
from planner.exporters import TARGETS, Loss, export_plan
from topologies import BadInput
from topologies.files import refuse_overwriting, write_bytes


@click.command()
@click.argument("plan")
@click.option("--to", "target", required=True, metavar="TARGET", help="One of: " + ", ".join(TARGETS) + ".")
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Where to write the file."
)
@click.option("--lossy", is_flag=True, help="Leave out what the target cannot hold, and print what that costs.")
@click.option("--routing", help="Statistics that the cost is predicted on. [default: the bundled trace]")
@click.option("--cluster", help="Cluster file, where the plan's cluster is not in the catalog.")
@profile_option
def export(
    plan: str, target: str, output: Path, *, lossy: bool, routing: str | None, cluster: str | None, profile: str
) -> None:
    """Write a plan as an engine loads it, and print to stderr how to start the engine with it.

    What the target cannot hold (uneven slots, unequal shares, replicas, layers that the plan lacks) is refused with the
    remedy; with --lossy it is left out, with the predicted cost.

    \b
    epplan export plan.json --to sglang -o location.json
    epplan export plan.json --to trtllm --lossy --routing loads.json -o moe_load_balancer.yaml
    """
    loaded = load_plan(plan)
    setting = None
    if lossy:
        layers = [layer.layer for layer in loaded.layers]
        setting = (workload_of_plan(loaded, layers, routing=routing, cluster=cluster), load_profile(profile))
    exported = export_plan(loaded, target, lossy=setting, name=plan)
    files = {output: exported.data}
    if (beside := exported.beside()) is not None:
        second = output.with_suffix(beside[0])
        if second == output:
            raise BadInput(f"-o {output}: a second file goes to {second}; end the name of the first in .pt")
        files[second] = beside[1]
    for file in files:
        refuse_overwriting(file, plan)
    for file, data in files.items():
        write_bytes(file, data)
    say = messages()
    if exported.loss is not None:
        _warn(exported.loss, target)
    say.print(f"wrote {' and '.join(map(str, files))} ({exported.target.summary})", highlight=False, markup=False)
    say.print(f"launch: {exported.hint(str(output))}", highlight=False, markup=False)


def _warn(loss: Loss, target: str) -> None:
    """Say what was lost and what it costs, in all and on the layer that it costs most."""
    say = messages()
    for what in loss.what:
        say.print(f"warning: {target}: lost {what}", highlight=False, markup=False)
    pairs = zip(loss.before.layers, loss.after.layers, strict=True)
    worst, before_us, after_us = max(
        ((new.layer, old.layer_us, new.layer_us) for old, new in pairs), key=lambda entry: entry[2] / entry[1]
    )
    part = loss.cost_us / loss.before.total_us
    say.print(
        f"predicted cost of the losses: {loss.cost_us:+,.1f} us over {len(loss.before.layers)} layers ({part:+.2%}); "
        f"imbalance {loss.before.mean('imbalance'):.3f} -> {loss.after.mean('imbalance'):.3f}; most on layer {worst}: "
        f"{before_us:,.1f} -> {after_us:,.1f} us",
        highlight=False,
        markup=False,
    )
