"""`epplan lab`: the network of a cluster in miniature on this machine.

`executor.lab` needs pyroute2 and is imported by what uses it: the help is for those too who only plan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import click
from rich.table import Table

from app.console import messages, print_json, results
from app.inputs import cluster_of_plan
from planner import Cluster, load_cluster
from planner.plan import load_plan
from topologies import BadInput
from topologies.routes import Policy

if TYPE_CHECKING:
    from executor.lab import Lab

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group()
def lab() -> None:
    """Build a cluster's network in miniature: a namespace a rank, shaped wires for its links (Linux, root).

    \b
    epplan lab up hgx-h100:2       every link has its bandwidth times one factor
    epplan lab status              what labs there are, and what their links carried
    epplan lab down                remove what no running process holds
    """


@lab.command()
@click.argument("spec")
@click.option("--cluster", help="Where SPEC is a plan of a cluster that is not in the catalog: its file.")
@click.option("--scale", type=click.FloatRange(0, 1, min_open=True), help="Bandwidth here over bandwidth there.")
@click.option("--nic-mbit", type=click.FloatRange(0, 100_000, min_open=True), help="Speed of the fastest NIC, Mbit/s.")
@click.option(
    "--policy",
    type=click.Choice(get_args(Policy)),
    default="pxn",
    show_default=True,
    help="Between rails: through the neighbour on the rail of the destination, or across the spine.",
)
@AS_JSON
def up(
    spec: str, *, cluster: str | None, scale: float | None, nic_mbit: float | None, policy: str, as_json: bool
) -> None:
    """Make a lab of SPEC, a cluster (NAME:HOSTS or its file) or a plan.json; it stands until `epplan lab down`."""
    from executor.lab import default_scale, raise_lab, scale_for_nic  # noqa: PLC0415 - needs pyroute2

    if scale is not None and nic_mbit is not None:
        raise BadInput("--scale and --nic-mbit say the same thing; give one of them")
    machine = _cluster(spec, cluster)
    if nic_mbit is not None:
        scale = scale_for_nic(machine, nic_mbit)
    made = raise_lab(machine, scale=default_scale(machine) if scale is None else scale, policy=policy)
    if as_json:
        print_json(_summary(made))
        return
    results().print(_table([_summary(made)]))
    messages().print(f"remove it: epplan lab down {made.name}", highlight=False, markup=False)


def _cluster(spec: str, cluster: str | None) -> Cluster:
    if spec.lower().endswith(".json"):
        return cluster_of_plan(load_plan(spec), cluster)
    if cluster is not None:
        raise BadInput(f"--cluster completes a plan.json; {spec} is a cluster itself")
    return load_cluster(spec)


@lab.command()
@click.argument("names", metavar="[LAB]...", nargs=-1)
def down(names: tuple[str, ...]) -> None:
    """Remove labs; without a name, all that no running process holds."""
    from executor.lab import Lab, registry  # noqa: PLC0415 - needs pyroute2

    records = [registry.load(name) for name in names or registry.names()]
    left = [record for record in records if names or record.standing() != "held"]
    for record in left:
        Lab(record).down()
        click.echo(record.name)


@lab.command()
@click.option("--links", is_flag=True, help="List the bytes that each link carried.")
@AS_JSON
def status(*, links: bool, as_json: bool) -> None:
    """List the labs on this machine: standing, held by a running process, or stale (left over from one that died)."""
    from executor.lab import Lab, registry  # noqa: PLC0415 - needs pyroute2

    labs = [Lab(registry.load(name)) for name in registry.names()]
    if as_json:
        print_json([_summary(one) | {"links": _links(one)} for one in labs])
        return
    if labs:
        results().print(_table([_summary(one) for one in labs]))
    for one in labs if links else ():
        results().print(_links_table(one))


@lab.command()
@click.argument("link")
@click.argument("factor", type=click.FloatRange(0, 1, min_open=True))
@click.option("--lab", "name", help="Which lab, where there are several.")
def throttle(link: str, factor: float, *, name: str | None) -> None:
    """Slow one LINK of the graph (such as h0/nic0->leaf0.0) to FACTOR of its bandwidth; 1 undoes it."""
    from executor.lab import attach, registry  # noqa: PLC0415 - needs pyroute2

    known = registry.names()
    if name is None and len(known) > 1:
        raise BadInput(f"there are {len(known)} labs; name one with --lab: {', '.join(known)}")
    chosen = attach(name if name is not None else known[0] if known else "")
    number = chosen.throttle(link, factor)
    click.echo(f"{chosen.name}: {chosen.network.links[number].name} at {factor:g} of its bandwidth")


def _summary(one: Lab) -> dict[str, Any]:
    network, record = one.network, one.record
    return {
        "name": one.name,
        "standing": record.standing(),
        "cluster": network.cluster,
        "ranks": network.num_ranks,
        "routes": network.policy,
        "scale": network.scale,
        "slowest_mbit": min((network.bytes_per_s(port) * 8e-6 for port in network.ports()), default=0.0),
        "fastest_mbit": max((network.bytes_per_s(port) * 8e-6 for port in network.ports()), default=0.0),
        "throttled": {network.links[link].name: factor for link, factor in record.throttled.items()},
        "namespaces": {place: record.namespace(place) for place in network.places},
        "addresses": list(network.addresses),
    }


def _table(summaries: list[dict[str, Any]]) -> Table:
    from executor.lab.network import FABRIC  # noqa: PLC0415 - needs pyroute2

    table = Table("lab", "standing", "cluster", "ranks", "routes", "wires, Mbit/s", "slowed by hand", "a namespace")
    for one in summaries:
        slowed = ", ".join(f"{link} x {factor:g}" for link, factor in one["throttled"].items()) or "-"
        rates = f"{one['slowest_mbit']:.0f} to {one['fastest_mbit']:.0f}"
        table.add_row(
            one["name"],
            one["standing"],
            one["cluster"],
            str(one["ranks"]),
            one["routes"],
            rates,
            slowed,
            one["namespaces"][FABRIC],
        )
    return table


def _links(one: Lab) -> list[dict[str, Any]]:
    """Return every link with the bytes that it carried; None where the lab is no longer whole."""
    from executor.lab import attach  # noqa: PLC0415 - needs pyroute2

    try:
        carried = attach(one.name).counted()
    except BadInput:
        carried = {}
    return [
        {"link": link.name, "mbit": link.gbps * one.network.scale * 8000, "bytes": carried.get(number)}
        for number, link in one.network.links.items()
    ]


def _links_table(one: Lab) -> Table:
    table = Table("link", "Mbit/s", "bytes (counted)", title=one.name)
    for row in _links(one):
        table.add_row(row["link"], f"{row['mbit']:.0f}", "-" if row["bytes"] is None else f"{row['bytes']:.0f}")
    return table
