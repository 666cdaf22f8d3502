"""From a `ClusterSpec` to a `Cluster`: host blocks, shared NVSwitches, leaves and spine, laid out as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from topologies.affinity import HostPaths
from topologies.errors import BadInput
from topologies.fabric import Fabrication, plan_fabric
from topologies.graph import Cluster, Rank, Wiring
from topologies.spec import UNKNOWN_GPU, ClusterSpec, Gpu, Host, HostNode


def build_cluster(spec: ClusterSpec, *, strict: bool = True) -> Cluster:
    """Lay out a cluster as a graph.

    With `strict`, figures that planning needs (GPU figures, NIC speeds where hosts are joined) must be there;
    without, an unknown GPU stays unknown and NICs without a speed are left out of the fabric.
    """
    names = spec.host_names()
    kinds = sorted(set(names), key=names.index)
    paths = {name: HostPaths(spec.hosts[name]) for name in kinds}
    if strict:
        _check_figures(spec, kinds)
    fabric = plan_fabric(spec, [paths[name] for name in names])
    builder = _Builder(spec, fabric)
    for host, name in enumerate(names):
        builder.add_host(host, paths[name])
    builder.add_spine()
    wiring = builder.wiring([paths[name] for name in kinds], [kinds.index(name) for name in names])
    ranks, gpus, places = _ranks(spec, names, paths)
    return Cluster(spec.name, spec, ranks, gpus, wiring, places)


def _check_figures(spec: ClusterSpec, kinds: list[str]) -> None:
    for name in kinds:
        for node in spec.hosts[name].nodes:
            if node.kind == "gpu" and node.model is None:
                raise BadInput(
                    f"{spec.name}: host {name!r}: the GPU model of {node.name} is not known; name it with --system"
                )


def _ranks(
    spec: ClusterSpec, names: list[str], paths: dict[str, HostPaths]
) -> tuple[tuple[Rank, ...], tuple[Gpu, ...], np.ndarray[tuple[int, int], np.dtype[np.int64]]]:
    ranks: list[Rank] = []
    gpus: list[Gpu] = []
    places: list[tuple[int, int]] = []
    for host, name in enumerate(names):
        path = paths[name]
        for gpu, node_index in enumerate(path.gpus):
            node = spec.hosts[name].nodes[node_index]
            domain = host // spec.domain_hosts
            ranks.append(Rank(len(ranks), host, gpu, domain, path.rail_of_gpu[gpu], f"h{host}/{node.name}"))
            gpus.append(spec.gpus[node.model] if node.model is not None else UNKNOWN_GPU)
            places.append((host, gpu))
    return tuple(ranks), tuple(gpus), np.array(places, dtype=np.int64)


@dataclass
class _Builder:
    """Collects nodes and links in their final order: host blocks, then leaf to spine."""

    spec: ClusterSpec
    fabric: Fabrication
    names: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    link_kinds: list[str] = field(default_factory=list)
    gbps: list[float] = field(default_factory=list)
    latency_us: list[float] = field(default_factory=list)
    host_link: list[int] = field(default_factory=list)
    shared_switch: dict[int, int] = field(default_factory=dict)
    spine_up: list[int] = field(default_factory=list)
    spine_down: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for leaf in self.fabric.leaves:
            self._node(leaf.name, "leaf")

    def _node(self, name: str, kind: str) -> int:
        self.names.append(name)
        self.kinds.append(kind)
        return len(self.names) - 1

    def _both_ways(self, a: int, b: int, kind: str, gbps: float, latency_us: float) -> int:
        """Add the link a to b and then the link b to a; return the index of the first."""
        first = len(self.source)
        self.source += (a, b)
        self.target += (b, a)
        self.link_kinds += (kind, kind)
        self.gbps += (gbps, gbps)
        self.latency_us += (latency_us, latency_us)
        return first

    def _host_node(self, host: int, node: HostNode) -> int:
        if node.kind != "nvswitch" or self.spec.domain_hosts == 1:
            return self._node(f"h{host}/{node.name}", node.kind)
        domain = host // self.spec.domain_hosts
        if domain not in self.shared_switch:
            self.shared_switch[domain] = self._node(f"d{domain}/{node.name}", node.kind)
        return self.shared_switch[domain]

    def add_host(self, host: int, paths: HostPaths) -> None:
        """Add a host's nodes, its cables and the links of its NICs to their leaves."""
        description: Host = paths.host
        nodes = {node.name: self._host_node(host, node) for node in description.nodes}
        self.host_link.append(len(self.source))
        for link in description.links:
            self._both_ways(nodes[link.a], nodes[link.b], link.kind, link.gbps, link.latency_us)
        latency = self.spec.fabric.nic_latency_us
        for nic, leaf in self.fabric.attached[host]:
            node = description.nodes[paths.nics[nic]]
            assert node.gbps is not None  # plan_fabric attaches only NICs with a speed
            self._both_ways(nodes[node.name], leaf, "nic", node.gbps, latency)

    def add_spine(self) -> None:
        """Add the spine as one ideal switch (ECMP), and a link from and to every leaf that has uplinks."""
        if not any(leaf.uplink_gbps for leaf in self.fabric.leaves):
            self.spine_up = self.spine_down = [-1] * len(self.fabric.leaves)
            return
        spine = self._node("spine", "spine")
        for leaf_node, leaf in enumerate(self.fabric.leaves):
            first = self._both_ways(leaf_node, spine, "fabric", leaf.uplink_gbps, self.spec.fabric.spine_latency_us)
            self.spine_up.append(first)
            self.spine_down.append(first + 1)

    def wiring(self, paths: list[HostPaths], host_paths: list[int]) -> Wiring:
        """Return what was collected as arrays."""
        return Wiring(
            node_names=tuple(self.names),
            node_kinds=tuple(self.kinds),
            source=np.array(self.source, dtype=np.int64),
            target=np.array(self.target, dtype=np.int64),
            kinds=tuple(self.link_kinds),
            gbps=np.array(self.gbps, dtype=np.float64),
            latency_us=np.array(self.latency_us, dtype=np.float64),
            paths=tuple(paths),
            host_paths=np.array(host_paths, dtype=np.int64),
            host_link=np.array(self.host_link, dtype=np.int64),
            leaf_of_rail=self.fabric.leaf_of_rail,
            spine_up=np.array(self.spine_up, dtype=np.int64),
            spine_down=np.array(self.spine_down, dtype=np.int64),
        )
