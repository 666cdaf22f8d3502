"""Which links of the graph each rank's traffic takes, read off the routes matrix: the wires that a lab must lay.

A lab has three kinds of wires. Inside a domain, a rank has a wire to its crossbar (NVSwitch), or one to every peer
that it is cabled to directly (xGMI mesh). Between domains, it has one to the leaf of its rail, which stands for all the
links from its GPU over PCIe and its NICs to the leaf. Leaves have one to the spine.
Links are numbers of columns of the routes matrix; a share is the part of the wire's bytes that a link carries: 1, but
for a GPU with several NICs, which stripe.
Where routes send a rank's bytes through a neighbour (PXN), the lab relays them in the kernel of that neighbour.
R ranks, L directed links.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from topologies.errors import BadInput
from topologies.graph import Cluster
from topologies.spec import SCALE_UP

Shares = dict[int, float]  # link -> share of the wire's bytes


@dataclass
class Ways:
    """The wires of a cluster, by the graph's links.

    Attributes:
        up, down: per rank, the link to the crossbar of its domain, and the one from it.
        direct: per ordered pair of ranks, the cable between them.
        out, into: per rank whose NICs are used, the links to its leaf, and those from it.
        leaf: per such rank, the name of that leaf.
        rise, fall: per leaf, the link to the spine, and the one from it.
        sender, receiver: per ordered pair of ranks in two domains, the ranks whose NICs carry the bytes.
        pairs: [L] ordered pairs of ranks whose bytes cross each link.
    """

    up: dict[int, int] = field(default_factory=dict)
    down: dict[int, int] = field(default_factory=dict)
    direct: dict[tuple[int, int], int] = field(default_factory=dict)
    out: dict[int, Shares] = field(default_factory=dict)
    into: dict[int, Shares] = field(default_factory=dict)
    leaf: dict[int, str] = field(default_factory=dict)
    rise: dict[str, int] = field(default_factory=dict)
    fall: dict[str, int] = field(default_factory=dict)
    sender: dict[tuple[int, int], int] = field(default_factory=dict)
    receiver: dict[tuple[int, int], int] = field(default_factory=dict)
    pairs: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def find_ways(cluster: Cluster, route_PL: csr_array) -> Ways:
    """Return the wires that carry what a routes matrix [R * R, L] says.

    Raises BadInput where a lab cannot build the graph: ranks of one host joined over PCIe or through other GPUs, or a
    link inside hosts that wires share and that could be the narrowest of them.
    """
    return _Reader(cluster, route_PL).read()


class _Reader:
    """Sorts the links of every row of a routes matrix into the wires they belong to."""

    def __init__(self, cluster: Cluster, route_PL: csr_array) -> None:
        self.cluster = cluster
        self.route_PL = route_PL
        self.wiring = cluster.wiring
        self.rank_of_node = {rank.node: rank.rank for rank in cluster.ranks}
        self.ways = Ways(pairs=np.bincount(route_PL.indices, minlength=cluster.num_links))

    def read(self) -> Ways:
        domain = self.cluster.domain_of_rank
        for pair in range(self.cluster.num_ranks**2):
            src, dst = divmod(pair, self.cluster.num_ranks)
            if src == dst:
                continue
            row = slice(self.route_PL.indptr[pair], self.route_PL.indptr[pair + 1])
            shares = dict(zip(self.route_PL.indices[row].tolist(), self.route_PL.data[row].tolist(), strict=True))
            if domain[src] == domain[dst]:
                self._inside(src, dst, list(shares))
            else:
                self._across(src, dst, shares)
        self._complete()
        self._refuse_shared_narrow_links()
        return self.ways

    def _complete(self) -> None:
        """Add the other way of cables that rows use one way only, as of a rank that others send for."""
        ways = self.ways
        for there, back in ((ways.out, ways.into), (ways.into, ways.out)):
            for rank in there.keys() - back.keys():
                back[rank] = {self._reverse(link): share for link, share in there[rank].items()}
        for rise, fall in ((ways.rise, ways.fall), (ways.fall, ways.rise)):
            for leaf in rise.keys() - fall.keys():
                fall[leaf] = self._reverse(rise[leaf])

    def _reverse(self, link: int) -> int:
        source, target = self.wiring.source, self.wiring.target
        return int(np.flatnonzero((source == target[link]) & (target == source[link]))[0])

    def _source(self, link: int) -> tuple[str, str]:
        node = int(self.wiring.source[link])
        return self.wiring.node_names[node], self.wiring.node_kinds[node]

    def _target(self, link: int) -> tuple[str, str]:
        node = int(self.wiring.target[link])
        return self.wiring.node_names[node], self.wiring.node_kinds[node]

    def _inside(self, src: int, dst: int, links: list[int]) -> None:
        """One direct cable, or one link up to a crossbar and one down."""
        if len(links) == 1:
            self.ways.direct[src, dst] = links[0]
            return
        up = [link for link in links if self._target(link)[1] == "nvswitch"]
        down = [link for link in links if self._source(link)[1] == "nvswitch"]
        if len(links) != 2 or len(up) != 1 or len(down) != 1:
            through = ", ".join(dict.fromkeys(self._target(link)[0] for link in links))
            raise BadInput(
                f"{self.cluster.name}: a lab cannot build the way from rank {src} to rank {dst} of one domain "
                f"({len(links)} links, by {through}); it builds NVSwitch crossbars and GPUs cabled to each other"
            )
        self.ways.up[src], self.ways.down[dst] = up[0], down[0]

    def _across(self, src: int, dst: int, shares: Shares) -> None:
        """From the NICs of the source, or of its relay, to the leaf; over the spine; and in at the other end."""
        ways, kinds = self.ways, self.wiring.kinds
        host = np.searchsorted(self.wiring.host_link, list(shares), side="right") - 1
        from_host, to_host = self.cluster.places[[src, dst], 0].tolist()
        leaving: Shares = {}
        arriving: Shares = {}
        for (link, share), place in zip(shares.items(), host.tolist(), strict=True):
            if kinds[link] == "fabric":
                self._spine(link)
            elif kinds[link] not in SCALE_UP:
                (leaving if place == from_host else arriving)[link] = share
                assert place in (from_host, to_host)
        sender = next(self.rank_of_node[name] for name, kind in map(self._source, leaving) if kind == "gpu")
        receiver = next(self.rank_of_node[name] for name, kind in map(self._target, arriving) if kind == "gpu")
        ways.sender[src, dst], ways.receiver[src, dst] = sender, receiver
        ways.out[sender], ways.into[receiver] = leaving, arriving
        ways.leaf[sender] = next(name for name, kind in map(self._target, leaving) if kind == "leaf")
        ways.leaf[receiver] = next(name for name, kind in map(self._source, arriving) if kind == "leaf")

    def _spine(self, link: int) -> None:
        (name, kind), (target, _) = self._source(link), self._target(link)
        if kind == "leaf":
            self.ways.rise[name] = link
        else:
            self.ways.fall[target] = link

    def _refuse_shared_narrow_links(self) -> None:
        """Refuse a link inside a host that several wires share and that is narrower than they are together."""
        for shares_of_rank in (self.ways.out, self.ways.into):
            ports: dict[tuple[int, ...], list[Shares]] = {}
            for shares in shares_of_rank.values():
                ports.setdefault(nic_links(self.cluster, shares), []).append(shares)
            wanted: dict[int, float] = {}
            wires: dict[int, int] = {}
            for nics, members in ports.items():
                gbps = wire_gbps(self.cluster, {link: members[0][link] for link in nics})
                for link in {link for shares in members for link in shares}:
                    users = [shares[link] for shares in members if link in shares]
                    wanted[link] = wanted.get(link, 0.0) + gbps * max(users)
                    wires[link] = wires.get(link, 0) + (1 if len(users) == len(members) else len(users))
            for link, gbps in wanted.items():
                available = float(self.cluster.link_gbps[link])
                if wires[link] > 1 and gbps > available * (1 + 1e-9):
                    raise BadInput(
                        f"{self.cluster.name}: a lab cannot build {link_name(self.cluster, link)}: {available:g} GB/s "
                        f"shared on the way to NICs of {gbps:g} GB/s; every NIC of a lab has a wire of its own"
                    )


def nic_links(cluster: Cluster, shares: Shares) -> tuple[int, ...]:
    """Return those links of a way that join NICs and leaf: what ranks that share NICs have in common."""
    return tuple(sorted(link for link in shares if cluster.link_kinds[link] == "nic"))


def wire_gbps(cluster: Cluster, shares: Shares) -> float:
    """Return the GB/s of a wire: those of its narrowest link, each counted by its share."""
    return min(float(cluster.link_gbps[link]) / share for link, share in shares.items())


def link_name(cluster: Cluster, link: int) -> str:
    """Return a link as a person writes it: `h0/nic0->leaf0.0`."""
    names = cluster.wiring.node_names
    return f"{names[int(cluster.wiring.source[link])]}->{names[int(cluster.wiring.target[link])]}"
