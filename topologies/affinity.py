"""Paths inside one host, and which NICs each GPU uses, decided as NCCL decides it.

A *cable* below is a directed local link: `2 * i` is `host.links[i]` from a to b, `2 * i + 1` from b to a.
Path types, nearest first: PIX (one PCIe switch at most), PXB (several), P2C (C2C to the CPU, PCIe from there), PHB
(through a CPU or host bridge), NODE (through two host bridges of a CPU, where they are known), SYS (through several
CPUs).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property

from topologies.spec import SCALE_UP, Host

PATH_TYPES = ("PIX", "PXB", "P2C", "PHB", "NODE", "SYS", "NONE")
NEAR = ("PIX", "PXB", "P2C")  # a GPU that reaches a NIC so needs no neighbour's help
MAX_EQUAL_PATHS = 64

Path = tuple[int, ...]


@dataclass(frozen=True)
class Rail:
    """The NICs that one GPU, or several that share, send on. Shared by index with the other hosts of a rail fabric.

    Attributes:
        nics: positions in `HostPaths.nics`, which stripe the traffic; those that are lost are left out.
        owners: positions in `HostPaths.gpus` of the GPUs that reach these NICs themselves.
        cabled: all NICs that take up a port of the rail's leaf, lost ones too.
    """

    nics: tuple[int, ...]
    owners: tuple[int, ...]
    cabled: tuple[int, ...]


class HostPaths:
    """The shortest paths between the parts of a host, and the rails of its GPUs.

    Attributes:
        host: the host.
        gpus, nics: node indices of its GPUs and NICs, in order; elsewhere GPUs and NICs are positions in these lists.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.gpus = host.of_kind("gpu")
        self.nics = host.of_kind("nic")
        self._scale_up_paths: dict[tuple[int, int], Path | None] = {}

    @cached_property
    def _cables(self) -> list[tuple[int, int, int]]:
        """Directed cables as (source node, target node, cable)."""
        index = self.host.index()
        ends = [(index[link.a], index[link.b]) for link in self.host.links]
        return [cable for i, (a, b) in enumerate(ends) for cable in ((a, b, 2 * i), (b, a, 2 * i + 1))]

    @cached_property
    def _scale_up_neighbours(self) -> list[list[tuple[int, int]]]:
        return self._neighbours(scale_up=True)

    def _neighbours(self, *, scale_up: bool) -> list[list[tuple[int, int]]]:
        out: list[list[tuple[int, int]]] = [[] for _ in self.host.nodes]
        for source, target, cable in self._cables:
            if (self.host.links[cable // 2].kind in SCALE_UP) == scale_up:
                out[source].append((target, cable))
        return out

    @cached_property
    def _pci_trees(self) -> list[dict[int, Path]]:
        """For every GPU, the path to every node it reaches over PCIe, C2C and CPUs: fewest CPUs, then fewest hops."""
        neighbours = self._neighbours(scale_up=False)
        return [self._pci_tree(gpu, neighbours) for gpu in self.gpus]

    def _pci_tree(self, start: int, neighbours: list[list[tuple[int, int]]]) -> dict[int, Path]:
        best: dict[int, tuple[int, int]] = {start: (0, 0)}
        paths: dict[int, Path] = {start: ()}
        queue = deque([start])
        while queue:  # relax until nothing improves: hosts are small
            node = queue.popleft()
            if node != start and self.host.nodes[node].kind in ("gpu", "nic"):
                continue  # traffic passes through switches and CPUs, never through another device
            cpus, hops = best[node]
            for target, cable in neighbours[node]:
                cost = (cpus + (self.host.nodes[target].kind == "cpu"), hops + 1)
                if target not in best or cost < best[target]:
                    best[target], paths[target] = cost, (*paths[node], cable)
                    queue.append(target)
        return paths

    def pci_path(self, gpu: int, node: int) -> Path | None:
        """Return the cables from a GPU to a node over PCIe and CPUs, or None."""
        return self._pci_trees[gpu].get(node)

    def scale_up_path(self, gpu: int, peer: int) -> Path | None:
        """Return the cables from a GPU to another over NVLink or xGMI, through other GPUs where need be, or None.

        Fewest hops first, then the widest; equal paths are dealt out over the pairs.
        """
        if gpu == peer:
            return ()
        if (gpu, peer) not in self._scale_up_paths:
            self._scale_up_paths[gpu, peer] = self._choose_scale_up_path(gpu, peer)
        return self._scale_up_paths[gpu, peer]

    def _choose_scale_up_path(self, gpu: int, peer: int) -> Path | None:
        paths = self._equal_paths(self.gpus[gpu], self.gpus[peer])
        if not paths:
            return None
        width = {path: min(self.host.links[cable // 2].gbps for cable in path) for path in paths}
        widest = [path for path in paths if width[path] == max(width.values())]
        return widest[(gpu + peer) % len(widest)]

    def _equal_paths(self, start: int, goal: int) -> list[Path]:
        neighbours = self._scale_up_neighbours
        hops = {goal: 0}
        queue = deque([goal])
        while queue:
            node = queue.popleft()
            for target, _ in neighbours[node]:
                if target not in hops:
                    hops[target] = hops[node] + 1
                    queue.append(target)
        if start not in hops:
            return []
        partial: list[tuple[int, Path]] = [(start, ())]
        for left in range(hops[start] - 1, -1, -1):
            partial = [
                (target, (*path, cable))
                for node, path in partial
                for target, cable in neighbours[node]
                if hops[target] == left
            ][:MAX_EQUAL_PATHS]
        return [path for _, path in partial]

    def gpu_path(self, gpu: int, peer: int) -> Path | None:
        """Return the cables from a GPU to another of the host: scale-up links where they join the two, else PCIe."""
        return self.scale_up_path(gpu, peer) or self.pci_path(gpu, self.gpus[peer])

    def switch_cable(self, gpu: int) -> int | None:
        """Return the cable from a GPU to the crossbar of its scale-up domain, or None."""
        for source, target, cable in self._cables:
            if source == self.gpus[gpu] and self.host.nodes[target].kind == "nvswitch":
                return cable
        return None

    @cached_property
    def affinity(self) -> list[list[str]]:
        """Path types [gpus, nics]: how near each NIC is to each GPU."""
        return [[self._path_type(gpu, nic) for nic in self.nics] for gpu in range(len(self.gpus))]

    def _path_type(self, gpu: int, nic: int) -> str:
        path = self.pci_path(gpu, nic)
        if path is None:
            return "NONE"
        kinds = [self.host.nodes[self._cables[cable][1]].kind for cable in path[:-1]]
        cpus = kinds.count("cpu")
        if cpus > 1:
            return "SYS"
        if cpus == 1 and self.host.links[path[0] // 2].kind == "c2c":
            return "P2C"
        if cpus == 1 and "root" in kinds:
            return "NODE"
        if cpus == 1 or "root" in kinds:
            return "PHB"
        return "PIX" if kinds.count("pci") <= 1 else "PXB"

    def nearest(self, gpu: int) -> tuple[str, list[int]]:
        """Return the best path type from a GPU to any NIC, and the NICs at that distance."""
        types = self.affinity[gpu]
        best = min(types, key=PATH_TYPES.index, default="NONE")
        return best, [] if best == "NONE" else [nic for nic, kind in enumerate(types) if kind == best]

    @cached_property
    def _dealt(self) -> list[tuple[int, ...]]:
        """The NICs each GPU sends on itself; empty where it needs a neighbour.

        GPUs that see the same NICs nearest share them out: several each, one each, or several GPUs to a NIC.
        The nearest GPUs choose first, so that a NIC at one GPU's door is not taken by a GPU further away.
        """
        nearest = [self.nearest(gpu) for gpu in range(len(self.gpus))]
        dealt: list[tuple[int, ...]] = [()] * len(self.gpus)
        for wanted in PATH_TYPES[:-1]:
            taken = {nic for nics in dealt for nic in nics}
            classes: dict[tuple[int, ...], list[int]] = {}
            for gpu, (kind, nics) in enumerate(nearest):
                if kind == wanted and (kind in NEAR or not self._helper_exists(gpu, nearest)):
                    classes.setdefault(tuple(nics), []).append(gpu)
            for nics_seen, gpus in classes.items():
                free = [nic for nic in nics_seen if nic not in taken]
                for gpu, share in zip(gpus, _deal(free, len(gpus)), strict=True):
                    dealt[gpu] = share or _least_used(dealt, nics_seen)
        return dealt

    def _helper_exists(self, gpu: int, nearest: list[tuple[str, list[int]]]) -> bool:
        return any(
            kind in NEAR and peer != gpu and self.scale_up_path(gpu, peer) is not None
            for peer, (kind, _) in enumerate(nearest)
        )

    @cached_property
    def rails(self) -> tuple[Rail, ...]:
        """The rails of the host, in the order of their first NIC; a rail whose NICs are all lost has no owner."""
        owners: dict[tuple[int, ...], list[int]] = {}
        for gpu, nics in enumerate(self._dealt):
            if nics:
                owners.setdefault(nics, []).append(gpu)
        cabled = sorted(owners)
        live = [tuple(nic for nic in nics if not self.host.nodes[self.nics[nic]].lost) for nics in cabled]
        owned = [owners[nics] if left else [] for nics, left in zip(cabled, live, strict=True)]
        orphans = [gpu for nics, left in zip(cabled, live, strict=True) if not left for gpu in owners[nics]]
        for gpu in orphans:
            self._find_another(gpu, live, owned)
        return tuple(Rail(left, tuple(gpus), nics) for left, gpus, nics in zip(live, owned, cabled, strict=True))

    def _find_another(self, gpu: int, live: list[tuple[int, ...]], owned: list[list[int]]) -> None:
        """Let a GPU whose NICs are lost share the nearest rail, the least crowded first, if no neighbour can help."""
        helpers = [peer for gpus in owned for peer in gpus]
        if any(self.scale_up_path(gpu, peer) is not None for peer in helpers):
            return
        nothing = PATH_TYPES.index("NONE")
        kinds = [min((PATH_TYPES.index(self.affinity[gpu][nic]) for nic in nics), default=nothing) for nics in live]
        reached = [rail for rail in range(len(live)) if kinds[rail] != nothing]
        if reached:
            owned[min(reached, key=lambda rail: (kinds[rail], len(owned[rail]) / len(live[rail]), rail))].append(gpu)

    @cached_property
    def rail_of_gpu(self) -> tuple[int, ...]:
        """The rail each GPU receives on: its own, or that of the neighbour that helps it; -1 on a host without NICs.

        GPUs that need help are dealt to the rails with the fewest GPUs per GB/s.
        """
        own = {gpu: rail for rail, entry in enumerate(self.rails) for gpu in entry.owners}
        users = [len(entry.owners) for entry in self.rails]
        result = []
        for gpu in range(len(self.gpus)):
            reachable = [
                rail
                for rail, entry in enumerate(self.rails)
                if any(self.scale_up_path(gpu, peer) is not None for peer in entry.owners if peer != gpu)
            ]
            if gpu not in own and reachable:
                own[gpu] = min(reachable, key=lambda rail: ((users[rail] + 1) / len(self.rails[rail].nics), rail))
                users[own[gpu]] += 1
            result.append(own.get(gpu, -1))
        return tuple(result)


def _deal(nics: list[int], players: int) -> list[tuple[int, ...]]:
    """Share out NICs over GPUs evenly and in order; a NIC goes to several GPUs where there are too few.

    >>> _deal([4, 5, 6, 7], 2), _deal([4], 2), _deal([], 1)
    ([(4, 5), (6, 7)], [(4,), (4,)], [()])
    """
    bounds = [(i * len(nics) // players, (i + 1) * len(nics) // players) for i in range(players)]
    return [tuple(nics[first : max(first + 1, last)]) for first, last in bounds]


def _least_used(dealt: list[tuple[int, ...]], seen: tuple[int, ...]) -> tuple[int, ...]:
    """Return the share, of those that other GPUs got from the NICs seen, that the fewest GPUs use."""
    given = {share for share in dealt if share}
    shares = sorted({share for share in given if set(share) <= set(seen)} or given)
    return min(shares, key=dealt.count)
