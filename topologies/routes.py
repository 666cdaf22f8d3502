"""Which links a transfer crosses, as NCCL would send it: the sparse pairs-by-links matrix.

R ranks, L directed links. A route is made of up to four *segments* (out of the source host, up to the spine, down from
it, into the destination host; or a way inside a domain). Segments are worked out for each GPU and rail, never for each
pair; the pairs pick theirs by index arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from topologies.affinity import HostPaths
from topologies.errors import BadInput, unknown_name
from topologies.graph import Cluster

Policy = Literal["pxn", "direct"]
POLICIES: tuple[Policy, ...] = ("pxn", "direct")

IntArray = NDArray[np.int64]
PickArray = NDArray[np.int32]
BoolArray = NDArray[np.bool_]
Piece = list[tuple[int, float]]  # (link within the host's block, fraction of the bytes)


def routes(cluster: Cluster, policy: str = "pxn", ranks: Iterable[int] | None = None) -> csr_array:
    """Return the routes matrix [R * R, L].

    Row `src * R + dst` holds the fraction of the transfer's bytes on each directed link; rows of a rank to itself are
    empty.

    Inside a domain: NVLink or xGMI, through other GPUs where two are not joined, and PCIe where there is neither.
    Between domains, with `pxn`: over NVLink to the GPU of the source host on the destination's rail, and from its NICs,
    so that a rail fabric carries nothing over the spine; with `direct`: from the source's own nearest NICs, across the
    spine where the rails differ. Under `pxn` a GPU without a near NIC sends and receives through a neighbour on NVLink
    (NCCL does so only to send); under `direct` through the CPUs. Several NICs of a GPU stripe the bytes.
    Only GPUs of the group relay, as NCCL knows no others. With `ranks`, the matrix is that of the subset.
    """
    if policy not in POLICIES:
        raise unknown_name("routing policy", policy, POLICIES)
    if ranks is not None:
        cluster = cluster.subset(ranks)
    return _Router(cluster, pxn=policy == "pxn").matrix()


class _HostSegments:
    """The segments of one kind of host of which the group has the GPUs `members`; links count from the host's block."""

    def __init__(self, paths: HostPaths, members: tuple[int, ...], *, pxn: bool) -> None:
        self.paths = paths
        self.members = members
        self.pxn = pxn
        self.rails = len(paths.rails)
        cabled = [nic for rail in paths.rails for nic in rail.nics]
        first = 2 * len(paths.host.links)
        self._nic_out = {nic: first + 2 * i for i, nic in enumerate(cabled)}

    def inside(self, gpu: int, peer: int) -> Piece | None:
        """Return the way from one GPU of the host to another, or None."""
        path = self.paths.gpu_path(gpu, peer)
        return None if path is None else [(cable, 1.0) for cable in path]

    def leaving_rail(self, gpu: int, wanted: int) -> int:
        """Return the rail on which a GPU leaves the host for a destination on rail `wanted`; -1 when it has no way."""
        if self.pxn and wanted < self.rails and self._relay(gpu, wanted) is not None:
            return wanted
        return self.arriving_rail(gpu)

    def arriving_rail(self, gpu: int) -> int:
        """Return the rail on which a GPU receives; -1 when it has none."""
        own = self.paths.rail_of_gpu[gpu]
        if own == -1 or self._relay(gpu, own) is not None or self._own_way(gpu, own):
            return own
        return -1

    def out(self, gpu: int, rail: int) -> Piece:
        """Return the way from a GPU to the leaf of a rail of its host."""
        relay = self._relay(gpu, rail)
        sender = gpu if relay is None else relay
        path = () if sender == gpu else self.paths.scale_up_path(gpu, sender) or ()
        return [(cable, 1.0) for cable in path] + self._own_way(sender, rail)

    def into(self, gpu: int) -> Piece:
        """Return the way from the leaf of a GPU's rail to the GPU: the way out, backwards."""
        return [(cable ^ 1, fraction) for cable, fraction in self.out(gpu, self.arriving_rail(gpu))]

    def _relay(self, gpu: int, rail: int) -> int | None:
        """Return the GPU that sends for `gpu` on a rail: itself if it owns the rail, a neighbour that does, or None."""
        owners = [owner for owner in self.paths.rails[rail].owners if owner in self.members]
        if gpu in owners:
            return gpu
        joined = [owner for owner in owners if self.paths.scale_up_path(gpu, owner) is not None]
        return joined[gpu % len(joined)] if self.pxn and joined else None

    def _own_way(self, gpu: int, rail: int) -> Piece:
        """Return the PCIe way from a GPU to the leaf over the NICs of a rail, each with its part of the bytes."""
        paths, nics = self.paths, self.paths.rails[rail].nics
        speed = {nic: paths.host.nodes[paths.nics[nic]].gbps or 1.0 for nic in nics}
        crossed: dict[int, float] = {}
        for nic in nics:
            path = paths.pci_path(gpu, paths.nics[nic])
            if path is None:
                return []
            for cable in (*path, self._nic_out[nic]):
                crossed[cable] = crossed.get(cable, 0.0) + speed[nic] / sum(speed.values())
        return list(crossed.items())


class _Segments:
    """Collects segments as rows of a sparse matrix over the links; row 0 is empty."""

    def __init__(self, num_links: int) -> None:
        self.num_links = num_links
        self._lengths: list[int] = [0]
        self._links: list[int] = []
        self._fractions: list[float] = []

    @property
    def count(self) -> int:
        """Segments so far, the empty one included."""
        return len(self._lengths)

    def add(self, base: int, piece: Piece) -> int:
        """Add one segment whose links count from `base`; return its row."""
        self._lengths.append(len(piece))
        self._links.extend(base + link for link, _ in piece)
        self._fractions.extend(fraction for _, fraction in piece)
        return len(self._lengths) - 1

    def matrix(self) -> csr_array:
        """Return all segments [segments, L]."""
        starts = np.concatenate([[0], np.cumsum(self._lengths)]).astype(np.int32)
        columns = np.array(self._links, dtype=np.int32)
        return csr_array((np.array(self._fractions), columns, starts), shape=(len(self._lengths), self.num_links))


class _Router:
    """Works out the segments of a group and picks up to four of them for every pair."""

    def __init__(self, cluster: Cluster, *, pxn: bool) -> None:
        self.cluster = cluster
        self.wiring = cluster.wiring
        self.pxn = pxn
        self.host = cluster.places[:, 0]
        self.gpu = cluster.places[:, 1]
        self.segments = _Segments(cluster.num_links)

    def matrix(self) -> csr_array:
        """Return the routes matrix [R * R, L]."""
        shape = (self.cluster.num_ranks, self.cluster.num_ranks, 4)
        picked = np.zeros(shape, dtype=np.int32)  # segment 0 is the empty one
        joined = np.eye(self.cluster.num_ranks, dtype=bool)
        self.hosts = self._host_segments()
        self._pick_inside_hosts(picked, joined)
        self._pick_inside_domains(picked, joined)
        self._pick_across(picked, joined)
        self._refuse_unjoined(joined)
        rows = picked.shape[0] ** 2
        starts = np.arange(0, 4 * rows + 1, 4, dtype=np.int32)
        pick = csr_array((np.ones(4 * rows), picked.reshape(-1), starts), shape=(rows, self.segments.count))
        result = csr_array(pick @ self.segments.matrix())
        result.sort_indices()
        return result

    def _host_segments(self) -> dict[int, _HostSegments]:
        members: dict[int, list[int]] = {}
        for host, gpu in self.cluster.places.tolist():
            members.setdefault(host, []).append(gpu)
        made: dict[tuple[int, tuple[int, ...]], _HostSegments] = {}
        result = {}
        for host, gpus in members.items():
            key = (int(self.wiring.host_paths[host]), tuple(sorted(gpus)))
            if key not in made:
                made[key] = _HostSegments(self.wiring.paths[key[0]], key[1], pxn=self.pxn)
            result[host] = made[key]
        return result

    def _pick_inside_hosts(self, picked: PickArray, joined: BoolArray) -> None:
        for host, segments in self.hosts.items():
            ranks = np.flatnonzero(self.host == host).tolist()
            base = int(self.wiring.host_link[host])
            for src in ranks:
                for dst in ranks:
                    if src == dst:
                        continue
                    piece = segments.inside(int(self.gpu[src]), int(self.gpu[dst]))
                    if piece is not None:
                        picked[src, dst, 0] = self.segments.add(base, piece)
                        joined[src, dst] = True

    def _pick_inside_domains(self, picked: PickArray, joined: BoolArray) -> None:
        """Between hosts of one domain: up to the crossbar that they share, and down."""
        if self.cluster.spec.domain_hosts == 1:
            return
        up, down = np.zeros((2, self.cluster.num_ranks), dtype=np.int32)
        for rank, (host, gpu) in enumerate(self.cluster.places.tolist()):
            cable = self.hosts[host].paths.switch_cable(gpu)
            if cable is not None:
                base = int(self.wiring.host_link[host])
                up[rank] = self.segments.add(base, [(cable, 1.0)])
                down[rank] = self.segments.add(base, [(cable ^ 1, 1.0)])
        domain = self.cluster.domain_of_rank
        together = ~joined & (domain[:, None] == domain) & (up[:, None] > 0) & (down > 0)
        together &= self.host[:, None] != self.host
        picked[..., 0][together] = np.broadcast_to(up[:, None], together.shape)[together]
        picked[..., 1][together] = np.broadcast_to(down, together.shape)[together]
        joined |= together

    def _pick_across(self, picked: PickArray, joined: BoolArray) -> None:
        """Between domains: out of the host, up to the spine and down where the leaves differ, into the host."""
        into, leaf_in, rail_in = self._ways_in()
        out, leaf_out = self._ways_out(int(rail_in.max(initial=-1)) + 1)
        up, down = self._spine_segments()
        wanted = np.maximum(rail_in, 0)
        leaving, arriving = leaf_out[:, wanted], np.broadcast_to(leaf_in, joined.shape)
        bends = leaving != arriving
        across = ~joined & (leaving >= 0) & (arriving >= 0) & (~bends | ((up[leaving] > 0) & (down[arriving] > 0)))
        bends &= across
        picked[..., 0][across] = out[:, wanted][across]
        picked[..., 1][bends] = up[leaving[bends]]
        picked[..., 2][bends] = down[arriving[bends]]
        picked[..., 3][across] = np.broadcast_to(into, joined.shape)[across]
        joined |= across

    def _ways_in(self) -> tuple[PickArray, IntArray, IntArray]:
        """Return, per rank, the segment from its leaf, that leaf, and its rail; -1 where it has none."""
        into = np.zeros(self.cluster.num_ranks, dtype=np.int32)
        leaf, rail = np.full((2, self.cluster.num_ranks), -1, dtype=np.int64)
        for rank, (host, gpu) in enumerate(self.cluster.places.tolist()):
            segments = self.hosts[host]
            rail[rank] = segments.arriving_rail(gpu)
            if rail[rank] >= 0 and self.wiring.leaf_of_rail[host][rail[rank]] >= 0:
                leaf[rank] = self.wiring.leaf_of_rail[host][rail[rank]]
                into[rank] = self.segments.add(int(self.wiring.host_link[host]), segments.into(gpu))
        return into, leaf, rail

    def _ways_out(self, rails: int) -> tuple[PickArray, IntArray]:
        """Return, per rank and rail of the destination, the segment to the leaf, and that leaf; -1 without one."""
        out = np.zeros((self.cluster.num_ranks, max(rails, 1)), dtype=np.int32)
        leaf = np.full(out.shape, -1, dtype=np.int64)
        for rank, (host, gpu) in enumerate(self.cluster.places.tolist()):
            segments = self.hosts[host]
            for wanted in range(rails):
                rail = segments.leaving_rail(gpu, wanted)
                if rail >= 0 and self.wiring.leaf_of_rail[host][rail] >= 0:
                    leaf[rank, wanted] = self.wiring.leaf_of_rail[host][rail]
                    out[rank, wanted] = self.segments.add(int(self.wiring.host_link[host]), segments.out(gpu, rail))
        return out, leaf

    def _spine_segments(self) -> tuple[PickArray, PickArray]:
        """Return, per leaf, the segments to the spine and from it; 0 where it has none. One entry more, for leaf -1."""
        up, down = np.zeros((2, len(self.wiring.spine_up) + 1), dtype=np.int32)
        for leaf, (rising, falling) in enumerate(zip(self.wiring.spine_up, self.wiring.spine_down, strict=True)):
            if rising >= 0:
                up[leaf] = self.segments.add(int(rising), [(0, 1.0)])
                down[leaf] = self.segments.add(int(falling), [(0, 1.0)])
        return up, down

    def _refuse_unjoined(self, joined: BoolArray) -> None:
        if not joined.all():
            src, dst = np.argwhere(~joined)[0].tolist()
            raise BadInput(
                f"{self.cluster.name}: no path from rank {src} ({self.cluster.ranks[src].node}) to rank {dst} "
                f"({self.cluster.ranks[dst].node}); {int((~joined).sum())} pairs are cut off: "
                "see `epplan topology lint`, or join them by a fabric with a spine"
            )
