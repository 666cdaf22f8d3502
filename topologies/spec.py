"""What a cluster is made of, as data: hosts with their parts and cables, and the fabric between them.

Every source (catalog, NCCL XML, nvidia-smi, a cluster file) ends in a `ClusterSpec`; `build.py` lays it out as a graph.
Units: GB/s = 1e9 bytes/s per direction; a cable has the same speed both ways.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

NodeKind = Literal["gpu", "nic", "card", "nvswitch", "pci", "root", "cpu"]
LinkKind = Literal["nvlink", "xgmi", "c2c", "pcie", "qpi", "local"]
FabricKind = Literal["rail", "rail-only", "fat-tree", "single-switch"]

SCALE_UP: frozenset[str] = frozenset({"nvlink", "xgmi"})
MAX_NODES_PER_HOST = 1024
MAX_HOSTS = 4096


def _printable(text: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", text) or not text.strip():
        raise ValueError(f"{text!r} must be printable and not empty")
    return text


Name = Annotated[str, Field(max_length=200), AfterValidator(_printable)]
Speed = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Gpu:
    """The figures of one GPU model.

    Attributes:
        name: marketing name.
        memory_bytes: HBM capacity, bytes.
        hbm_gbps: HBM bandwidth, GB/s.
        peak_tflops: dense peak by number format, TFLOP/s; a format that the chip lacks is absent.
        source: where the figures come from.
    """

    name: Name
    memory_bytes: Annotated[int, Field(ge=0)]
    hbm_gbps: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    peak_tflops: dict[str, Speed]
    source: str = ""


UNKNOWN_GPU = Gpu(name="unknown", memory_bytes=0, hbm_gbps=0.0, peak_tflops={})


class Frozen(BaseModel):
    """A model whose fields are fixed, and which refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class HostNode(Frozen):
    """One part of a host.

    Attributes:
        name: unique in its host, such as gpu0.
        kind: gpu, nic (one network port), card (one PCIe function with several ports or GPUs), nvswitch (the
            crossbar of a scale-up domain), pci (a bridge or switch), root (a PCIe host bridge), cpu (a NUMA node).
        model: what it is; for a GPU the key of its figures in the cluster's `gpus`.
        busid: PCI address, where the source gives it.
        gbps: line rate of a NIC, GB/s per direction; None when the source does not say.
        lanes: NVLink or xGMI links that the source counts on a GPU.
        lost: of a NIC that is cabled and carries nothing; its GPUs use those that are left.
    """

    name: Name
    kind: NodeKind
    model: Name | None = None
    busid: Name | None = None
    gbps: Speed | None = None
    lanes: int | None = Field(default=None, ge=0, le=1024)
    lost: bool = False

    @model_validator(mode="after")
    def _only_nics_are_lost(self) -> HostNode:
        if self.lost and self.kind != "nic":
            raise ValueError(f"{self.name} is a {self.kind}; only a nic can be lost (leave the others out)")
        return self


class HostLink(Frozen):
    """One cable inside a host, equally fast both ways.

    Attributes:
        a, b: names of the nodes at its ends.
        kind: nvlink, xgmi, c2c, pcie, qpi (between CPUs), local (on one board, no limit of its own).
        gbps: GB/s per direction.
        latency_us: one way, microseconds; 0 when the source does not say.
        lanes: links bundled in it.
    """

    a: Name
    b: Name
    kind: LinkKind
    gbps: Speed
    latency_us: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    lanes: int | None = Field(default=None, ge=1, le=1024)


class Host(Frozen):
    """One machine: its parts and the cables between them."""

    nodes: tuple[HostNode, ...] = Field(min_length=1, max_length=MAX_NODES_PER_HOST, fail_fast=True)
    links: tuple[HostLink, ...] = Field(max_length=16 * MAX_NODES_PER_HOST, fail_fast=True)

    @model_validator(mode="after")
    def _consistent(self) -> Host:
        names = Counter(node.name for node in self.nodes)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(f"two nodes are named {twice[0]!r}")
        for link in self.links:
            for end in (link.a, link.b):
                if end not in names:
                    raise ValueError(f"link {link.a} - {link.b} names {end!r}, which is no node of the host")
            if link.a == link.b:
                raise ValueError(f"link {link.a} - {link.b} ends where it starts")
        pairs = Counter(frozenset((link.a, link.b)) for link in self.links)
        if pairs and max(pairs.values()) > 1:
            twins, _ = pairs.most_common(1)[0]
            raise ValueError(f"two links join {' and '.join(sorted(twins))}; bundle them into one")
        if not any(node.kind == "gpu" for node in self.nodes):
            raise ValueError("the host has no node of kind gpu")
        return self

    def of_kind(self, kind: NodeKind) -> list[int]:
        """Return the indices of the nodes of one kind, in order."""
        return [i for i, node in enumerate(self.nodes) if node.kind == kind]

    def index(self) -> dict[str, int]:
        """Return the position of every node by name."""
        return {node.name: i for i, node in enumerate(self.nodes)}


class HostGroup(Frozen):
    """A run of equal hosts in the order of their ranks."""

    host: Name
    count: int = Field(default=1, ge=1, le=MAX_HOSTS)


class Fabric(Frozen):
    """The scale-out network.

    Attributes:
        kind: rail (same NIC index of all hosts on one leaf; leaves joined by a spine), rail-only (no spine),
            fat-tree (all NICs of a host on one leaf), single-switch.
        radix: ports of a leaf switch; with a spine half of them face down.
        oversubscription: capacity below a leaf over capacity above it; 1 is non-blocking.
        nic_latency_us, spine_latency_us: one way, of a NIC-leaf and of a leaf-spine cable.
        source: where radix and latencies come from.
    """

    kind: FabricKind = "rail"
    radix: int = Field(default=64, ge=2, le=100_000)
    oversubscription: float = Field(default=1.0, ge=1.0, le=1000, allow_inf_nan=False)
    nic_latency_us: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    spine_latency_us: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    source: str = ""


class ClusterSpec(Frozen):
    """A whole cluster as data.

    Attributes:
        name: as the user calls it.
        gpus: figures by GPU model.
        hosts: kinds of host by name.
        layout: which hosts, in rank order.
        domain_hosts: consecutive hosts that share one scale-up domain through their NVSwitch (1: every host its own).
        fabric: what joins the hosts.
        provenance: where the description came from, and what was assumed.
    """

    name: Name
    gpus: dict[Name, Gpu] = Field(default_factory=dict)
    hosts: dict[Name, Host] = Field(min_length=1)
    layout: tuple[HostGroup, ...] = Field(min_length=1, max_length=MAX_HOSTS, fail_fast=True)
    domain_hosts: int = Field(default=1, ge=1, le=MAX_HOSTS)
    fabric: Fabric = Fabric()
    provenance: tuple[str, ...] = Field(default=(), fail_fast=True)

    @model_validator(mode="after")
    def _consistent(self) -> ClusterSpec:
        for group in self.layout:
            if group.host not in self.hosts:
                raise ValueError(f"layout names host {group.host!r}; hosts has {', '.join(sorted(self.hosts))}")
        if self.num_hosts > MAX_HOSTS:
            raise ValueError(f"layout has {self.num_hosts} hosts, over the limit of {MAX_HOSTS}")
        for name, host in self.hosts.items():
            for node in host.nodes:
                if node.kind == "gpu" and node.model is not None and node.model not in self.gpus:
                    raise ValueError(f"hosts.{name}: {node.name} is a {node.model!r}, which gpus does not describe")
            switches = len(host.of_kind("nvswitch"))
            if self.domain_hosts > 1 and switches != 1:
                raise ValueError(
                    f"domain_hosts is {self.domain_hosts}; host {name!r} has {switches} nvswitch nodes, not 1"
                )
        return self

    @property
    def num_hosts(self) -> int:
        """Hosts in the cluster."""
        return sum(group.count for group in self.layout)

    def host_names(self) -> list[str]:
        """Return the kind of every host, in rank order."""
        return [group.host for group in self.layout for _ in range(group.count)]
