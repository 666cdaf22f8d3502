"""`epplan topology export`: a cluster as the files that engines and NCCL read."""

from __future__ import annotations

from pathlib import Path

import click

from app.console import messages
from topologies.build import build_cluster
from topologies.errors import BadInput
from topologies.exporting import cost_matrix_json
from topologies.exporting_nccl import nccl_xml
from topologies.files import write_text
from topologies.importing import Knowledge
from topologies.load import resolve
from topologies.spec import ClusterSpec

TARGETS = ("nccl-xml", "sglang-cost-matrix")


@click.command()
@click.argument("spec")
@click.option("--to", "target", required=True, type=click.Choice(TARGETS), help="What to write.")
@click.option("--host", type=click.IntRange(0), help="nccl-xml: which host, where they differ.")
@click.option("--system", metavar="NAME", help="Catalog system that gives what a topology file lacks.")
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Where to write the file."
)
def export(spec: str, *, target: str, host: int | None, system: str | None, output: Path) -> None:
    """Write a cluster for others to read.

    nccl-xml: one host as NCCL_TOPO_FILE. sglang-cost-matrix: microseconds a megabyte takes between any two ranks, as
    --eplb-topology of SGLang's proposal #37923 takes it.

    \b
    epplan topology export hgx-h100:4 --to sglang-cost-matrix -o costs.json
    """
    resolved = resolve(spec, Knowledge(system))
    say = messages()
    for note in dict.fromkeys(resolved.notes):
        say.print(f"note: {note}", highlight=False, markup=False)
    if target == "nccl-xml":
        kind = _host_kind(resolved.spec, host)
        text, launch = nccl_xml(resolved.spec.hosts[kind], kind), f"NCCL_TOPO_FILE={output}"
    else:
        if host is not None:
            raise BadInput(f"--host {host}: a cost matrix is of all hosts; leave --host out")
        text, launch = cost_matrix_json(build_cluster(resolved.spec)), f"--eplb-topology {output} (SGLang #37923)"
    write_text(output, text)
    say.print(f"wrote {output}", highlight=False, markup=False)
    say.print(f"launch: {launch}", highlight=False, markup=False)


def _host_kind(spec: ClusterSpec, host: int | None) -> str:
    """Return the kind of a host; raise BadInput where the user has to choose one and did not."""
    names = spec.host_names()
    if host is None:
        if len(set(names)) > 1:
            raise BadInput(f"{spec.name}: hosts of {len(set(names))} kinds; choose one with --host 0..{len(names) - 1}")
        return names[0]
    if host >= len(names):
        raise BadInput(f"--host {host}: {spec.name} has hosts 0..{len(names) - 1}")
    return names[host]
