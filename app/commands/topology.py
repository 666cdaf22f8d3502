"""`epplan topology`: show, import, export, lint and discover clusters."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click

from app.commands.topology_export import export
from app.commands.topology_tables import findings_table, show_tables
from app.console import messages, print_json, results
from topologies.build import build_cluster
from topologies.catalog import catalog_names, load_system
from topologies.cluster_file import save_spec
from topologies.discover import discover as discover_host
from topologies.draw import draw
from topologies.files import write_text
from topologies.importing import Knowledge, join_hosts, read_topology
from topologies.lint import lint as lint_spec
from topologies.load import resolve, with_fabric
from topologies.spec import ClusterSpec, FabricKind
from topologies.summary import summarise


def _number(_context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """Refuse NaN, which passes every range."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is not a number", param=option)
    return value


SYSTEM = click.option(
    "--system", metavar="NAME", help="Catalog system that gives what a topology file lacks: GPU figures, NVLink."
)
NIC_GBPS = click.option(
    "--nic-gbps",
    type=click.FloatRange(0, 10_000, min_open=True),
    callback=_number,
    help="Speed of every NIC that GPUs use, GB/s per direction (400 Gb/s = 50).",
)
RADIX = click.option("--radix", type=click.IntRange(2, 100_000), help="Ports of a leaf switch.")
OVERSUBSCRIPTION = click.option(
    "--oversubscription",
    type=click.FloatRange(1, 1000),
    callback=_number,
    help="Capacity below a leaf over capacity above it.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
OUTPUT = click.option("-o", "--output", type=click.Path(path_type=Path), help="Cluster file (YAML) to write.")


@click.group()
def topology() -> None:
    """Describe, check and draw clusters.

    \b
    A cluster is NAME:HOSTS of the catalog (hgx-h100:4; gb200-nvl72:2 is two racks), a cluster file (.yaml),
    or a topology file of one host: NCCL XML or the output of `nvidia-smi topo -m`.
    """


topology.add_command(export)


@topology.command()
@click.argument("spec", required=False)
@SYSTEM
@NIC_GBPS
@RADIX
@OVERSUBSCRIPTION
@click.option("--svg", type=click.Path(path_type=Path), help="Draw the cluster into this file.")
@AS_JSON
def show(
    spec: str | None,
    *,
    system: str | None,
    nic_gbps: float | None,
    radix: int | None,
    oversubscription: float | None,
    svg: Path | None,
    as_json: bool,
) -> None:
    """Print ranks, domains, links and bisection of a cluster; without SPEC, list the catalog.

    \b
    epplan topology show
    epplan topology show hgx-h100:4 --svg cluster.svg
    epplan topology show topo.txt --system hgx-h20 --nic-gbps 50
    """
    if spec is None:
        _list_catalog(as_json)
        return
    cluster = build_cluster(_resolve(spec, Knowledge(system, nic_gbps), radix, oversubscription), strict=False)
    if svg is not None:
        write_text(svg, draw(cluster))
    summary = summarise(cluster)
    if as_json:
        print_json(summary)
        return
    for table in show_tables(summary):
        results().print(table)
    if svg is not None:
        messages().print(f"drawn: {svg}", highlight=False, markup=False)


def _list_catalog(as_json: bool) -> None:
    entries = [{"name": name, "summary": load_system(name).summary} for name in catalog_names()]
    if as_json:
        print_json(entries)
        return
    for entry in entries:
        click.echo(f"{entry['name']:<14}{entry['summary']}")


@topology.command(name="import")
@click.argument("files", nargs=-1, required=True)
@click.option("--hosts", type=click.IntRange(1, 4096), help="Hosts in all; the hosts of one FILE are repeated.")
@click.option("--fabric", type=click.Choice(get_args(FabricKind)), help="What joins the hosts.  [default: rail]")
@NIC_GBPS
@SYSTEM
@RADIX
@OVERSUBSCRIPTION
@click.option("--domain-hosts", type=click.IntRange(1, 4096), help="Hosts that share one NVLink domain.")
@click.option("--name", help="Name of the cluster.  [default: that of the first FILE]")
@OUTPUT
@AS_JSON
def import_(
    files: tuple[str, ...],
    *,
    hosts: int | None,
    fabric: str | None,
    nic_gbps: float | None,
    system: str | None,
    radix: int | None,
    oversubscription: float | None,
    domain_hosts: int | None,
    name: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Make a cluster file from NCCL XML or `nvidia-smi topo -m`: one FILE for equal hosts, or one a host.

    \b
    epplan topology import nccl_topo.xml --hosts 4 --fabric rail --nic-gbps 50 -o cluster.yaml
    epplan topology import host0.xml host1.xml --nic-gbps 50 -o cluster.yaml
    """
    knowledge = Knowledge(system, nic_gbps)
    readings = [read_topology(file, knowledge) for file in files]
    _say([note for reading in readings for note in reading.notes])
    spec = join_hosts(readings, knowledge, name=name or Path(files[0]).stem, hosts=hosts, domain_hosts=domain_hosts)
    _finish(with_fabric(spec, kind=fabric, radix=radix, oversubscription=oversubscription), output, as_json)


@topology.command()
@click.argument("spec")
@SYSTEM
@NIC_GBPS
@RADIX
@OVERSUBSCRIPTION
@AS_JSON
def lint(
    spec: str,
    *,
    system: str | None,
    nic_gbps: float | None,
    radix: int | None,
    oversubscription: float | None,
    as_json: bool,
) -> None:
    """Find what is wrong with a cluster, what it costs in all-to-all, and the fix; silent when all is well.

    \b
    nvidia-smi topo -m > topo.txt && epplan topology lint topo.txt
    epplan topology lint cluster.yaml
    """
    knowledge = Knowledge(system, nic_gbps)
    findings = lint_spec(_resolve(spec, knowledge, radix, oversubscription), knowledge.entry())
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    elif findings:
        results().print(findings_table(findings))


@topology.command()
@SYSTEM
@NIC_GBPS
@OUTPUT
@AS_JSON
def discover(system: str | None, nic_gbps: float | None, output: Path | None, as_json: bool) -> None:
    """Read the machine that this runs on: nvidia-smi, NVML where its Python module is installed, and port rates."""
    knowledge = Knowledge(system, nic_gbps)
    reading = discover_host(knowledge)
    _say(reading.notes)
    _finish(join_hosts([reading], knowledge, name="this-host"), output, as_json)


def _resolve(spec: str, knowledge: Knowledge, radix: int | None, oversubscription: float | None) -> ClusterSpec:
    resolved = resolve(spec, knowledge)
    _say(resolved.notes)
    return with_fabric(resolved.spec, radix=radix, oversubscription=oversubscription)


def _finish(spec: ClusterSpec, output: Path | None, as_json: bool) -> None:
    """Check that the cluster can be planned on, write it, and print its summary."""
    summary: dict[str, Any] = summarise(build_cluster(spec))
    if output is not None:
        save_spec(spec, output)
    if as_json:
        print_json(summary)
        return
    for table in show_tables(summary):
        results().print(table)
    if output is not None:
        _say([f"written: {output}"])


def _say(notes: list[str] | tuple[str, ...]) -> None:
    for note in dict.fromkeys(notes):
        click.echo(f"note: {note}", err=True)
