"""A cluster from the topology files of its hosts, completed by what the user knows and the files do not say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from topologies.affinity import HostPaths
from topologies.catalog import System, gpu_entries, load_system, scale_up_links
from topologies.cluster_file import validate
from topologies.errors import BadInput
from topologies.files import read_bytes
from topologies.nccl_xml import MAX_BYTES, is_topology_xml, read_nccl_xml
from topologies.nvidia_smi import LinkFigures, is_matrix, read_nvidia_smi
from topologies.reading import Reading
from topologies.spec import SCALE_UP, ClusterSpec, Host, HostNode

EXPECTED = "neither NCCL topology XML (<system>) nor the output of `nvidia-smi topo -m` (GPU0 GPU1 ...)"
MANAGEMENT_GBPS = 3.125  # 25 Gb/s Ethernet


@dataclass(frozen=True)
class Knowledge:
    """What the user adds to topology files.

    Attributes:
        system: catalog name; gives GPU figures, the speed of an NVLink, and NVLinks where the file holds none.
        nic_gbps: GB/s per direction of every NIC that GPUs use.
    """

    system: str | None = None
    nic_gbps: float | None = None

    def entry(self) -> System | None:
        """Return the catalog entry."""
        return None if self.system is None else load_system(self.system)


def read_topology(path: str, knowledge: Knowledge) -> Reading:
    """Read the hosts of a NCCL XML or `nvidia-smi topo -m` file, told apart by content, and complete them."""
    return parse_topology(read_bytes(path, limit_bytes=MAX_BYTES), Path(path).name, knowledge)


def parse_topology(content: bytes, where: str, knowledge: Knowledge) -> Reading:
    """Read hosts from the content of a topology file; `where` names it."""
    system = knowledge.entry()
    if is_topology_xml(content):
        reading = read_nccl_xml(content, where, lane_gbps=None if system is None else system.scale_up.lane_gbps)
    elif is_matrix(content):
        reading = read_nvidia_smi(
            content, where, figures=None if system is None else _figures(system, knowledge.system)
        )
    else:
        raise BadInput(f"{where}: {EXPECTED}")
    hosts, notes = [], list(reading.notes)
    for host in reading.hosts:
        completed, said = _complete(host, knowledge, system, where)
        hosts.append(completed)
        notes += said
    return replace(reading, hosts=tuple(hosts), notes=tuple(dict.fromkeys(notes)))


def _figures(system: System, name: str | None) -> LinkFigures:
    pcie = system.pcie
    return LinkFigures(
        system.scale_up.lane_gbps, pcie.gbps, pcie.cpu_gbps, pcie.c2c_gbps, f"taken from the catalog's {name}"
    )


def _complete(host: Host, knowledge: Knowledge, system: System | None, where: str) -> tuple[Host, list[str]]:
    notes = []
    if system is not None:
        host, said = _add_system(host, system, knowledge.system, where)
        notes += said
    if knowledge.nic_gbps is not None:
        used = _used_nics(host)
        nodes = [
            node.model_copy(update={"gbps": knowledge.nic_gbps}) if i in used else node
            for i, node in enumerate(host.nodes)
        ]
        host = host.model_copy(update={"nodes": tuple(nodes)})
        notes.append(f"{where}: {len(used)} NICs taken as {knowledge.nic_gbps:g} GB/s (--nic-gbps)")
    return host, notes + _gaps(host, where)


def _used_nics(host: Host) -> set[int]:
    """Return the node indices of the NICs that GPUs send on."""
    paths = HostPaths(host)
    return {paths.nics[nic] for rail in paths.rails for nic in rail.nics}


def _gaps(host: Host, where: str) -> list[str]:
    """Say what is still not known of a host."""
    gaps = []
    if any(node.kind == "gpu" and node.model is None for node in host.nodes):
        gaps.append(f"{where}: the GPU model is not known; --system names it")
    if any(host.nodes[nic].gbps is None for nic in _used_nics(host)):
        gaps.append(f"{where}: the speed of NICs is not known; --nic-gbps gives that of those that GPUs use")
    used = [nic.gbps for nic in host.nodes if nic.kind == "nic" and nic.gbps is not None]
    if used and max(used) <= MANAGEMENT_GBPS:
        gaps.append(
            f"{where}: its only NICs run at {max(used):g} GB/s: management Ethernet? --nic-gbps gives the fabric's"
        )
    if not any(link.kind in SCALE_UP for link in host.links) and len(host.of_kind("gpu")) > 1:
        gaps.append(f"{where}: GPUs are joined by PCIe alone; --system adds the NVLink of a catalog entry")
    return gaps


def _add_system(host: Host, system: System, name: str | None, where: str) -> tuple[Host, list[str]]:
    """Give a host the GPU model and the NVLinks of a catalog system where the file holds none."""
    notes = []
    other = {node.model for node in host.nodes if node.kind == "gpu" and node.model not in (None, system.gpu)}
    if other:
        notes.append(
            f"{where}: GPU figures of {', '.join(sorted(map(str, other)))}, as its device ids say, not of {name}"
        )
    missing = not any(link.kind in SCALE_UP for link in host.links)
    gpus = [node for node in host.nodes if node.kind == "gpu"]
    links = scale_up_links(system, [gpu.name for gpu in gpus]) if missing and len(gpus) > 1 else []
    lanes = {gpu.name: sum(link.lanes or 0 for link in links if gpu.name in (link.a, link.b)) for gpu in gpus}
    nodes = []
    for node in host.nodes:
        changes: dict[str, object] = {"model": node.model or system.gpu} if node.kind == "gpu" else {}
        nodes.append(node.model_copy(update=changes | ({"lanes": lanes[node.name]} if links and changes else {})))
    if links:
        notes.append(
            f"{where}: no usable NVLink or xGMI in the file; {system.scale_up.kind} taken from the catalog's {name}"
        )
        if system.scale_up.layout == "switch":
            nodes.append(HostNode(name="nvswitch", kind="nvswitch"))
    return validate(Host, {"nodes": nodes, "links": [*host.links, *links]}, where), notes


def join_hosts(
    readings: Sequence[Reading],
    knowledge: Knowledge,
    *,
    name: str,
    hosts: int | None = None,
    domain_hosts: int | None = None,
) -> ClusterSpec:
    """Join hosts to a cluster: those of one reading repeated up to `hosts`, or those of several in their order."""
    found = [host for reading in readings for host in reading.hosts]
    count = len(found) if hosts is None else hosts
    if count % len(found) or (len(readings) > 1 and count != len(found)):
        raise BadInput(
            f"--hosts {count} does not fit the {len(found)} hosts of the {len(readings)} file(s): "
            + ("give one file per host" if len(readings) > 1 else f"take a multiple of {len(found)}")
        )
    kinds: dict[str, Host] = {}
    order = [_kind_name(host, kinds, name) for host in found] * (count // len(found))
    system = knowledge.entry()
    document = {
        "name": name,
        "gpus": {key: gpu_entries()[key].figures for key in _models(found)},
        "hosts": kinds,
        "layout": _runs(order),
        "domain_hosts": _domain_hosts(readings, system, count, domain_hosts),
        "fabric": {} if system is None else system.fabric,
        "provenance": tuple(note for reading in readings for note in reading.notes),
    }
    return validate(ClusterSpec, document, name)


def _kind_name(host: Host, kinds: dict[str, Host], name: str) -> str:
    for known, other in kinds.items():
        if other == host:
            return known
    key = name if not kinds else f"{name}-{len(kinds) + 1}"
    kinds[key] = host
    return key


def _models(hosts: Sequence[Host]) -> list[str]:
    models = {node.model for host in hosts for node in host.nodes if node.kind == "gpu" and node.model is not None}
    return sorted(models)


def _runs(order: list[str]) -> list[dict[str, object]]:
    runs: list[list[str]] = []
    for name in order:
        if runs and runs[-1][0] == name:
            runs[-1].append(name)
        else:
            runs.append([name])
    return [{"host": run[0], "count": len(run)} for run in runs]


def _domain_hosts(readings: Sequence[Reading], system: System | None, count: int, given: int | None) -> int:
    """Return the hosts per scale-up domain: as given, as a fused dump shows, or as the system has them."""
    if given is not None:
        if not 1 <= given <= count:
            raise BadInput(f"--domain-hosts {given} must lie in 1..{count}, the number of hosts")
        return given
    if len(readings) == 1 and readings[0].joined:
        return len(readings[0].hosts)
    return 1 if system is None else min(system.domain_hosts, count)
