"""From what a user names (a catalog string, a cluster file, a topology file) to a cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from topologies.build import build_cluster
from topologies.catalog import catalog_names, load_system, system_spec
from topologies.cluster_file import load_spec, validate
from topologies.errors import BadInput, unknown_name
from topologies.files import what_is_there
from topologies.graph import Cluster
from topologies.importing import Knowledge, join_hosts, read_topology
from topologies.spec import MAX_HOSTS, ClusterSpec, Fabric
from topologies.without import split_without, without

CLUSTER_FILE = re.compile(r".+\.(ya?ml)", re.IGNORECASE)
NAME_AND_UNITS = re.compile(r"([^:]*)(?::(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Resolved:
    """A description, and notes for the user on what was taken from where."""

    spec: ClusterSpec
    notes: tuple[str, ...] = ()


def resolve(spec_or_file: str, knowledge: Knowledge | None = None) -> Resolved:
    """Return the description that a string stands for.

    `NAME:UNITS` or `NAME` of the catalog; a cluster file (.yaml); or a topology file (NCCL XML, `nvidia-smi topo -m`)
    as the one host it describes, completed by what the user knows.
    """
    knowledge = knowledge or Knowledge()
    if CLUSTER_FILE.fullmatch(spec_or_file):
        _refuse_knowledge(knowledge, spec_or_file)
        return Resolved(load_spec(spec_or_file))
    if what_is_there(spec_or_file) == "file":
        reading = read_topology(spec_or_file, knowledge)
        return Resolved(join_hosts([reading], knowledge, name=Path(spec_or_file).stem), reading.notes)
    _refuse_knowledge(knowledge, spec_or_file)
    name, units = NAME_AND_UNITS.fullmatch(spec_or_file.lower()).groups()  # type: ignore[union-attr]  # it matches any string
    if name not in catalog_names():
        if "/" in spec_or_file or "." in spec_or_file:
            raise BadInput(f"{spec_or_file}: no such file, nor a system of the catalog: {', '.join(catalog_names())}")
        raise unknown_name("cluster", name, catalog_names())
    if units is not None and (not re.fullmatch(r"[0-9]{1,4}", units, re.ASCII) or int(units) == 0):
        raise BadInput(
            f"{spec_or_file!r}: the number of hosts must be a whole number from 1 to {MAX_HOSTS}, not {units[:20]!r}; "
            f"try {name}:4"
        )
    count = 1 if units is None else int(units)
    hosts = count * load_system(name).domain_hosts
    if hosts > MAX_HOSTS:
        raise BadInput(f"{spec_or_file!r}: {hosts} hosts, over the limit of {MAX_HOSTS}")
    return Resolved(system_spec(name, count))


def _refuse_knowledge(knowledge: Knowledge, spec: str) -> None:
    """Refuse a NIC speed for a cluster that states its own, rather than ignore it."""
    if knowledge.nic_gbps is not None:
        raise BadInput(
            f"--nic-gbps {knowledge.nic_gbps:g} completes a topology file (NCCL XML, nvidia-smi); {spec} states its own"
        )


def load_cluster(spec_or_file: str, *, radix: int | None = None, oversubscription: float | None = None) -> Cluster:
    """Return the cluster that a specification string or a file describes.

    `hgx-h100:4` is four hosts of 8 GPUs joined by rail-optimised leaves and a spine; `gb200-nvl72:2` two racks of 72;
    `hgx-h100:4 without host3,host0/nic4` lacks a host and a NIC. `radix` and `oversubscription` replace those of the
    fabric.
    """
    base, lost = (spec_or_file, ()) if what_is_there(spec_or_file) == "file" else split_without(spec_or_file)
    spec = with_fabric(resolve(base).spec, radix=radix, oversubscription=oversubscription)
    return without(build_cluster(spec), lost)


def with_fabric(spec: ClusterSpec, **changes: object) -> ClusterSpec:
    """Return a description with some fields of its fabric replaced; those given as None stay."""
    given = {key: value for key, value in changes.items() if value is not None}
    if not given:
        return spec
    fabric = validate(Fabric, {**spec.fabric.model_dump(), **given}, f"fabric of {spec.name}")
    return spec.model_copy(update={"fabric": fabric})
