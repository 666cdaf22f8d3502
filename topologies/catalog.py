"""Named systems: the facts in `catalog/*.yaml`, composed to clusters such as `hgx-h100:4` or `gb200-nvl72:2`."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Literal

from pydantic import Field

from topologies.cluster_file import parse_document, parse_yaml
from topologies.errors import unknown_name
from topologies.spec import ClusterSpec, Fabric, Frozen, Gpu, Host, HostGroup, HostLink, HostNode, Name, Speed

CATALOG = Path(__file__).parent / "catalog"


class GpuEntry(Frozen):
    """A GPU of the catalog: its figures and how to recognise it.

    Attributes:
        figures: what `Gpu` holds.
        pci_ids: PCI device ids, as NCCL XML prints them.
        names: pieces of the product name that nvidia-smi prints, most specific first.
    """

    figures: Gpu
    pci_ids: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


class ScaleUp(Frozen):
    """The links between the GPUs of a domain.

    Attributes:
        kind: nvlink or xgmi.
        layout: switch (every GPU to one crossbar) or mesh (every GPU to every other of its host).
        lanes: links of a GPU (switch) or of a pair (mesh).
        lane_gbps: GB/s per direction of one of them.
        latency_us: GPU to GPU, one way, microseconds.
        source: where the figures come from.
    """

    kind: Literal["nvlink", "xgmi"]
    layout: Literal["switch", "mesh"]
    lanes: int = Field(ge=1)
    lane_gbps: Speed
    latency_us: float = 0.0
    source: str


class Nics(Frozen):
    """The scale-out ports of a host, dealt to its GPUs in order.

    Attributes:
        model: adapter.
        per_host: ports.
        gbps: line rate of a port, GB/s per direction.
        source: where the figures come from.
    """

    model: Name
    per_host: int = Field(ge=1)
    gbps: Speed
    source: str


class Pcie(Frozen):
    """How GPUs and NICs attach to the CPUs.

    Attributes:
        gbps: of every PCIe link, GB/s per direction.
        switches: PCIe switches of a host, each with its share of GPUs and NICs; 0 where NICs sit on the CPU.
        c2c_gbps: GPU to CPU where they are joined by C2C.
        cpus: NUMA nodes; cpu_gbps: between two of them.
        source: where the figures come from.
    """

    gbps: Speed
    switches: int = Field(ge=0)
    c2c_gbps: Speed | None = None
    cpus: int = Field(default=2, ge=1)
    cpu_gbps: Speed
    source: str


class System(Frozen):
    """One catalog entry: a host, how many of them make a unit, and the fabric it is sold with.

    Attributes:
        summary: one line.
        gpu: key in gpus.yaml.
        gpus_per_host, domain_hosts: hosts that share a scale-up domain; `NAME:2` is two domains.
        scale_up, nics, pcie, fabric: the parts.
    """

    summary: str
    gpu: str
    gpus_per_host: int = Field(ge=1)
    domain_hosts: int = Field(default=1, ge=1)
    scale_up: ScaleUp
    nics: Nics
    pcie: Pcie
    fabric: Fabric


@cache
def catalog_names() -> list[str]:
    """Return the names of all systems."""
    return sorted(path.stem for path in CATALOG.glob("*.yaml") if path.stem != "gpus")


@cache
def gpu_entries() -> dict[str, GpuEntry]:
    """Return the GPUs of the catalog by key."""
    path = CATALOG / "gpus.yaml"
    document = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    assert isinstance(document, dict)
    return {key: GpuEntry.model_validate(entry) for key, entry in document.items()}


@cache
def load_system(name: str) -> System:
    """Return a catalog entry; BadInput with the nearest names when there is none."""
    if name not in catalog_names():
        raise unknown_name("system", name, catalog_names())
    path = CATALOG / f"{name}.yaml"
    return parse_document(System, path.read_text(encoding="utf-8"), path.name)


def system_host(system: System) -> Host:
    """Compose the host of a system."""
    return Host(nodes=tuple(_nodes(system)), links=tuple(_links(system)))


def _nodes(system: System) -> list[HostNode]:
    lanes = system.scale_up.lanes * (1 if system.scale_up.layout == "switch" else system.gpus_per_host - 1)
    nodes = [HostNode(name=f"gpu{i}", kind="gpu", model=system.gpu, lanes=lanes) for i in range(system.gpus_per_host)]
    if system.scale_up.layout == "switch":
        nodes.append(HostNode(name="nvswitch", kind="nvswitch"))
    nodes += [HostNode(name=f"pci{i}", kind="pci") for i in range(system.pcie.switches)]
    nodes += [
        HostNode(name=f"nic{i}", kind="nic", model=system.nics.model, gbps=system.nics.gbps)
        for i in range(system.nics.per_host)
    ]
    return nodes + [HostNode(name=f"cpu{i}", kind="cpu") for i in range(system.pcie.cpus)]


def _links(system: System) -> list[HostLink]:
    pcie, count = system.pcie, system.gpus_per_host
    links = scale_up_links(system, [f"gpu{i}" for i in range(count)])
    sockets = [(f"pci{i}", f"cpu{i * pcie.cpus // pcie.switches}") for i in range(pcie.switches)]
    ports = [f"pci{i}" for i in range(pcie.switches)] or [f"cpu{i}" for i in range(pcie.cpus)]
    gpu_speed, gpu_kind = (pcie.gbps, "pcie") if pcie.c2c_gbps is None else (pcie.c2c_gbps, "c2c")
    links += [_link(f"gpu{i}", ports[i * len(ports) // count], gpu_kind, gpu_speed) for i in range(count)]
    nics = system.nics.per_host
    links += [_link(f"nic{i}", ports[i * len(ports) // nics], "pcie", pcie.gbps) for i in range(nics)]
    links += [_link(switch, cpu, "pcie", pcie.gbps) for switch, cpu in sockets]
    links += [
        _link(f"cpu{i}", f"cpu{j}", "qpi", pcie.cpu_gbps) for i in range(pcie.cpus) for j in range(i + 1, pcie.cpus)
    ]
    return links


def scale_up_links(system: System, gpus: list[str]) -> list[HostLink]:
    """Return the NVLink or xGMI cables of a system between GPUs of these names, or to a node `nvswitch`."""
    scale_up = system.scale_up
    pairs = [(gpu, "nvswitch") for gpu in gpus] if scale_up.layout == "switch" else list(combinations(gpus, 2))
    hops = 2 if scale_up.layout == "switch" else 1
    return [
        HostLink(
            a=a,
            b=b,
            kind=scale_up.kind,
            gbps=scale_up.lanes * scale_up.lane_gbps,
            lanes=scale_up.lanes,
            latency_us=scale_up.latency_us / hops,
        )
        for a, b in pairs
    ]


def _link(a: str, b: str, kind: str, gbps: float) -> HostLink:
    return HostLink.model_validate({"a": a, "b": b, "kind": kind, "gbps": gbps})


def system_spec(name: str, units: int) -> ClusterSpec:
    """Return `units` of a system: hosts, or whole domains where a domain spans hosts."""
    system = load_system(name)
    return ClusterSpec(
        name=f"{name}:{units}",
        gpus={system.gpu: gpu_entries()[system.gpu].figures},
        hosts={name: system_host(system)},
        layout=(HostGroup(host=name, count=units * system.domain_hosts),),
        domain_hosts=system.domain_hosts,
        fabric=system.fabric,
        provenance=(f"catalog: {name}, vendor figures",),
    )
