"""The scale-out fabric: which leaf switch every rail of every host is cabled to, and what the leaves carry upwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from topologies.affinity import HostPaths
from topologies.errors import BadInput
from topologies.spec import ClusterSpec

WITH_SPINE = ("rail", "fat-tree")
BY_RAIL = ("rail", "rail-only")


@dataclass(frozen=True)
class Leaf:
    """One leaf switch.

    Attributes:
        name: graph node.
        uplink_gbps: capacity to the spine and back, GB/s per direction; 0 without a spine.
    """

    name: str
    uplink_gbps: float


@dataclass(frozen=True)
class Fabrication:
    """The cabling plan.

    Attributes:
        leaves: in order; a leaf's position is its number.
        attached: per host, the (NIC, leaf) cables.
        leaf_of_rail: per host, the leaf of every rail; -1 where the rail has no cable.
    """

    leaves: tuple[Leaf, ...]
    attached: tuple[tuple[tuple[int, int], ...], ...]
    leaf_of_rail: tuple[tuple[int, ...], ...]


def plan_fabric(spec: ClusterSpec, hosts: Sequence[HostPaths]) -> Fabrication:
    """Cable the NICs that GPUs use to leaf switches; storage and management NICs stay out.

    A single host needs no fabric. On a rail fabric a leaf takes one rail of as many hosts as it has ports facing down;
    further hosts fill further leaves of the rail. On a fat tree a leaf takes all the rails of a host.
    """
    if len(hosts) == 1:
        return Fabrication((), ((),), (tuple(-1 for _ in hosts[0].rails),))
    _check_speeds(spec, hosts)
    leaves = _LeafFiller(spec)
    leaf_of_rail = tuple(leaves.place([len(rail.cabled) for rail in paths.rails]) for paths in hosts)
    attached = tuple(
        tuple((nic, leaf) for rail, leaf in zip(paths.rails, row, strict=True) for nic in rail.nics)
        for paths, row in zip(hosts, leaf_of_rail, strict=True)
    )
    below = [0.0] * len(leaves.names)
    for paths, row in zip(hosts, leaf_of_rail, strict=True):
        for rail, leaf in zip(paths.rails, row, strict=True):
            below[leaf] += sum(paths.host.nodes[paths.nics[nic]].gbps or 0.0 for nic in rail.cabled)
    has_spine = spec.fabric.kind in WITH_SPINE
    uplinks = [gbps / spec.fabric.oversubscription if has_spine else 0.0 for gbps in below]
    return Fabrication(tuple(map(Leaf, leaves.names, uplinks)), attached, leaf_of_rail)


def _check_speeds(spec: ClusterSpec, hosts: Sequence[HostPaths]) -> None:
    for paths in {id(paths): paths for paths in hosts}.values():
        for nic in (nic for rail in paths.rails for nic in rail.nics):
            node = paths.host.nodes[paths.nics[nic]]
            if node.gbps is None:
                raise BadInput(
                    f"{spec.name}: the speed of {node.name} is not known, and {len(hosts)} hosts are to be joined by "
                    "their NICs; give it with --nic-gbps"
                )


class _LeafFiller:
    """Fills leaf switches port by port, host after host."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.spec = spec
        self.names: list[str] = []
        self._ports_left: list[int] = []
        self._current: dict[int, int] = {}
        self._ports = spec.fabric.radix // 2 if spec.fabric.kind in WITH_SPINE else spec.fabric.radix

    def place(self, ports: list[int]) -> tuple[int, ...]:
        """Return the leaf of every rail of the next host; `ports` is the number of NICs of each rail."""
        if self.spec.fabric.kind in BY_RAIL:
            return tuple(self._take(rail, count) for rail, count in enumerate(ports))
        if sum(ports) <= self._ports:  # the host in one piece
            leaf = self._take(0, sum(ports))
            return (leaf,) * len(ports)
        return tuple(self._take(0, count) for count in ports)

    def _take(self, column: int, ports: int) -> int:
        if ports > self._ports:
            raise BadInput(
                f"{self.spec.name}: a rail of {ports} NICs needs more ports than a leaf has facing hosts: "
                f"{ports} > {self._ports} (fabric {self.spec.fabric.kind}, radix {self.spec.fabric.radix})"
            )
        leaf = self._current.get(column)
        if leaf is None or self._ports_left[leaf] < ports:
            leaf = self._open(column, first=leaf is None)
        self._ports_left[leaf] -= ports
        return leaf

    def _open(self, column: int, *, first: bool) -> int:
        fabric = self.spec.fabric
        if not first and fabric.kind not in WITH_SPINE:
            raise BadInput(
                f"{self.spec.name}: fabric {fabric.kind} has no spine, and {self.spec.num_hosts} hosts need more than "
                f"the {fabric.radix} ports of one switch; raise the radix or take a fabric with a spine"
            )
        number = sum(1 for name in self.names if name.startswith(f"leaf{column}."))
        self.names.append(f"leaf{column}.{number}")
        self._ports_left.append(self._ports)
        self._current[column] = len(self.names) - 1
        return self._current[column]
