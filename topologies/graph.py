"""The cluster graph: GPUs, switches and NICs, and the directed links between them.

Shapes: R ranks, L directed links, D scale-up domains: groups of hosts that share NVLink or xGMI, mostly single hosts.
The graph is held as arrays; `links` and the networkx `graph` are made when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from topologies.affinity import HostPaths
from topologies.errors import BadInput
from topologies.spec import ClusterSpec, Gpu

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["KIND_NAMES", "Cluster", "Gpu", "Link", "Rank"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

KIND_NAMES = {
    "nvlink": "NVLink",
    "xgmi": "xGMI",
    "c2c": "C2C",
    "pcie": "PCIe",
    "qpi": "CPU to CPU",
    "local": "on board",
    "nic": "NIC to leaf",
    "fabric": "leaf to spine",
}
"""Kinds of links as a person reads them, in the order of tables and legends."""


@dataclass(frozen=True, slots=True)
class Rank:
    """One process with one GPU.

    Attributes:
        rank: its number in the group.
        host: its machine; gpu: the GPU's index there.
        domain: its scale-up domain.
        rail: the index of the NICs it uses among those of its host; -1 without any.
        node: name of its GPU in the graph.
        speed: its computing speed, as a part of what its GPU's figures say.
    """

    rank: int
    host: int
    gpu: int
    domain: int
    rail: int
    node: str
    speed: float = 1.0


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of a cable.

    Attributes:
        index: its column in the routes matrix.
        source, target: names of graph nodes.
        kind: nvlink, xgmi, c2c, pcie, qpi, local, nic (NIC to leaf), fabric (leaf to spine).
        gbps: GB/s.
        latency_us: microseconds; 0 when the source of the cluster does not say.
    """

    index: int
    source: str
    target: str
    kind: str
    gbps: float
    latency_us: float


@dataclass(frozen=True, eq=False)
class Wiring:
    """The graph as arrays, and where each host lies in it.

    Attributes:
        node_names, node_kinds: [N] names and kinds; leaf and spine beside the kinds of `HostNode`.
        source, target: [L] node indices of every directed link.
        kinds: [L] link kinds.
        gbps, latency_us: [L].
        paths: the paths of each kind of host, and host_paths [H] which of them a host follows.
        host_link: [H] index of the first link of each host's block: its cables, then those of each NIC to its leaf.
        leaf_of_rail: per host, the leaf of each of its rails; -1 without a fabric.
        spine_up, spine_down: [leaves] link index from and to the spine; -1 where a leaf has none.
    """

    node_names: tuple[str, ...]
    node_kinds: tuple[str, ...]
    source: IntArray
    target: IntArray
    kinds: tuple[str, ...]
    gbps: FloatArray
    latency_us: FloatArray
    paths: tuple[HostPaths, ...]
    host_paths: IntArray
    host_link: IntArray
    leaf_of_rail: tuple[tuple[int, ...], ...]
    spine_up: IntArray
    spine_down: IntArray


@dataclass(frozen=True, slots=True)
class Groups:
    """The EP groups that share the links (`topologies.groups`).

    Attributes:
        count: of them, this one included.
        stride: how far apart the ranks of a group are in the whole cluster.
        others: (host, GPU) of every rank of each other group, in the order of ranks.
    """

    count: int = 1
    stride: int = 1
    others: tuple[tuple[tuple[int, int], ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Cluster:
    """The ranks of an EP group and the links between them. Two clusters are equal when specs, ranks and groups are.

    Attributes:
        name: as the user calls it.
        spec: the description it was built from.
        ranks: [R].
        gpus: [R] figures of every rank's GPU.
        wiring: the graph as arrays.
        places: [R, 2] host and GPU of every rank in the wiring; they differ from those in `ranks` in a subset.
        groups: the other EP groups on these links, which do the same at the same time.
    """

    name: str
    spec: ClusterSpec
    ranks: tuple[Rank, ...]
    gpus: tuple[Gpu, ...]
    wiring: Wiring
    places: IntArray
    groups: Groups = Groups()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cluster):
            return False
        return (self.spec, self.ranks, self.groups) == (other.spec, other.ranks, other.groups)

    def __hash__(self) -> int:
        return hash((self.name, self.num_ranks))

    def __repr__(self) -> str:
        return f"Cluster({self.name!r}, ranks={self.num_ranks}, hosts={self.num_hosts}, domains={self.num_domains})"

    @property
    def num_ranks(self) -> int:
        """R, the number of ranks."""
        return len(self.ranks)

    @cached_property
    def num_hosts(self) -> int:
        """The number of hosts that have a rank."""
        return int(self.host_of_rank.max()) + 1

    @cached_property
    def num_domains(self) -> int:
        """D, the number of scale-up domains that have a rank."""
        return int(self.domain_of_rank.max()) + 1

    @property
    def num_links(self) -> int:
        """L, the number of directed links."""
        return len(self.wiring.kinds)

    @cached_property
    def domain_of_rank(self) -> IntArray:
        """[R] domain of every rank."""
        return np.array([rank.domain for rank in self.ranks], dtype=np.int64)

    @cached_property
    def host_of_rank(self) -> IntArray:
        """[R] host of every rank."""
        return np.array([rank.host for rank in self.ranks], dtype=np.int64)

    @cached_property
    def rail_of_rank(self) -> IntArray:
        """[R] rail of every rank; -1 without a NIC."""
        return np.array([rank.rail for rank in self.ranks], dtype=np.int64)

    @property
    def link_gbps(self) -> FloatArray:
        """[L] GB/s of every directed link."""
        return self.wiring.gbps

    @property
    def link_kinds(self) -> tuple[str, ...]:
        """[L] kind of every directed link."""
        return self.wiring.kinds

    @cached_property
    def links(self) -> tuple[Link, ...]:
        """[L] directed links, in the order of the columns of the routes matrix."""
        wiring = self.wiring
        names = wiring.node_names
        ends = zip(wiring.source.tolist(), wiring.target.tolist(), strict=True)
        figures = zip(wiring.kinds, wiring.gbps.tolist(), wiring.latency_us.tolist(), strict=True)
        return tuple(
            Link(i, names[a], names[b], kind, gbps, latency)
            for i, ((a, b), (kind, gbps, latency)) in enumerate(zip(ends, figures, strict=True))
        )

    @cached_property
    def graph(self) -> nx.DiGraph[Any]:
        """The graph: nodes with `kind`; edges with `kind`, `gbps`, `latency_us` and `index`, their column in routes."""
        import networkx as nx  # noqa: PLC0415 - 70 ms, and planning needs no graph

        graph: nx.DiGraph[Any] = nx.DiGraph(name=self.name)
        for name, kind in zip(self.wiring.node_names, self.wiring.node_kinds, strict=True):
            graph.add_node(name, kind=kind)
        for link in self.links:
            graph.add_edge(
                link.source, link.target, kind=link.kind, gbps=link.gbps, latency_us=link.latency_us, index=link.index
            )
        return graph

    def with_speeds(self, speeds: Iterable[float]) -> Cluster:
        """Return the cluster with a computing speed for each rank, as a part of what its GPU's figures say."""
        ranks = tuple(replace(rank, speed=speed) for rank, speed in zip(self.ranks, speeds, strict=True))
        return replace(self, ranks=ranks)

    def subset(self, ranks: Iterable[int]) -> Cluster:
        """Return the EP group on some of the ranks, alone, renumbered in the order given; the links stay the same."""
        chosen = [int(rank) for rank in ranks]
        bad = [rank for rank in chosen if not 0 <= rank < self.num_ranks]
        if bad or not chosen or len(set(chosen)) < len(chosen):
            what = f"rank {bad[0]} is not in 0..{self.num_ranks - 1}" if bad else "ranks repeat" if chosen else "empty"
            raise BadInput(f"{self.name}: subset of ranks: {what}")
        old = [self.ranks[rank] for rank in chosen]
        hosts = {host: i for i, host in enumerate(sorted({rank.host for rank in old}))}
        domains = {domain: i for i, domain in enumerate(sorted({rank.domain for rank in old}))}
        return replace(
            self,
            ranks=tuple(
                replace(rank, rank=i, host=hosts[rank.host], domain=domains[rank.domain]) for i, rank in enumerate(old)
            ),
            gpus=tuple(self.gpus[rank] for rank in chosen),
            places=self.places[chosen],
            groups=Groups(),
        )
