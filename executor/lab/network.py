r"""The network of a lab as data: namespaces, cables with a shaped port at each end, bridges, addresses and next hops.

    rank 0 --up----- switch0 -----up-- rank 1        one namespace a rank, with `up` to its crossbar (or `to1`, .. to
      |                                  |           the peers of a mesh) and `nic` to its leaf
     nic             spine              nic
      |             /     \              |           one namespace more, the fabric, with every bridge: nothing is made
     leaf0 --------         -------- leaf1           in the namespace of the machine itself

A port is one end of a cable: what leaves it is one direction of the graph's links that the cable stands for.
Pure: from a cluster to a description, which `build.py` makes real.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from executor.lab.rates import GBPS, MIN_BYTES_PER_S, queue_packets
from executor.lab.ways import Shares, Ways, find_ways, link_name, nic_links
from topologies.errors import BadInput
from topologies.graph import Cluster
from topologies.routes import routes
from topologies.spec import Frozen

MAX_RANKS = 128
FABRIC = "fabric"


class Port(Frozen):
    """One end of a cable, and what leaves it.

    Attributes:
        place: the namespace it is in: `r3`, or `fabric`.
        name: of the interface.
        mac: its address where packets are addressed to it; None on a bridge.
        bridge: the bridge it belongs to; None at a rank.
        queue_packets: how many packets may wait here, in each queue.
        turns: addresses of the ranks that have a queue each, where several send through a rank's NIC.
        links: links of the graph whose bytes leave here, with the share of them that each carries.
    """

    place: str
    name: str
    mac: str | None
    bridge: str | None
    queue_packets: int
    turns: tuple[str, ...] = ()
    links: Shares


class Cable(Frozen):
    """Two ports that are joined. `b` is in the fabric, unless the cable joins two ranks."""

    a: Port
    b: Port


class Hop(Frozen):
    """Where a rank sends what is for another: the interface, and the address of the next interface."""

    target: str
    device: str
    mac: str


class LabLink(Frozen):
    """A link of the graph that the lab has: its name, and GB/s."""

    name: str
    gbps: float


class Network(Frozen):
    """Everything that a lab consists of.

    Attributes:
        cluster: name.
        policy: of the routes that the lab follows: `routes(cluster, policy)` says what its links carry.
        scale: lab bandwidth over graph bandwidth.
        addresses: [R] of the ranks.
        cables: all of them.
        forward: per bridge, the port behind which each address lies; what is not listed goes to `uplink`.
        uplink: per bridge that has one, its port towards the spine or the leaf.
        hops: [R][R - 1] next hops of every rank.
        links: the graph's links that the lab has, by number.
    """

    cluster: str
    policy: str
    scale: float
    addresses: tuple[str, ...]
    cables: tuple[Cable, ...]
    forward: dict[str, dict[str, str]]
    uplink: dict[str, str]
    hops: tuple[tuple[Hop, ...], ...]
    links: dict[int, LabLink]

    @property
    def num_ranks(self) -> int:
        """R, the number of ranks."""
        return len(self.addresses)

    @property
    def places(self) -> tuple[str, ...]:
        """The namespaces, by their short names."""
        return (FABRIC, *map(rank_place, range(self.num_ranks)))

    def ports(self) -> Iterable[Port]:
        """Return both ports of every cable."""
        return (port for cable in self.cables for port in (cable.a, cable.b))

    def bytes_per_s(self, port: Port, throttled: Mapping[int, float] | None = None) -> float:
        """Return the rate of a port: that of its narrowest link, of which some may be slowed by a factor."""
        slowed = throttled or {}
        gbps = [self.links[link].gbps * slowed.get(link, 1.0) / share for link, share in port.links.items()]
        return min(gbps) * self.scale * GBPS

    def link(self, name_or_number: str) -> int:
        """Return the number of a link that a user names; raise BadInput with those that there are."""
        for number, link in self.links.items():
            if name_or_number in (link.name, str(number)):
                return number
        names = [link.name for link in self.links.values()]
        raise BadInput(f"no link {name_or_number!r} in the lab; it has {', '.join(names[:4])} .. ({len(names)} in all)")


def rank_place(rank: int) -> str:
    """Return the short name of a rank's namespace."""
    return f"r{rank}"


def plan_network(cluster: Cluster, scale: float, policy: str = "pxn") -> Network:
    """Lay out a lab of a cluster, whose links carry what `routes(cluster, policy)` says.

    Raises BadInput where the graph cannot be built (`find_ways`), is too large, or would be too slow.
    """
    if cluster.num_ranks > MAX_RANKS:
        raise BadInput(
            f"{cluster.name}: {cluster.num_ranks} ranks, over the limit of {MAX_RANKS} for a lab on one machine"
        )
    ways = find_ways(cluster, routes(cluster, policy))
    builder = _Builder(cluster, ways)
    builder.scale_up()
    builder.nics()
    builder.spine()
    network = Network(
        cluster=cluster.name,
        policy=policy,
        scale=scale,
        addresses=tuple(map(_address, range(cluster.num_ranks))),
        cables=tuple(builder.cables),
        forward=builder.forward,
        uplink=builder.uplink,
        hops=tuple(builder.hops(rank) for rank in range(cluster.num_ranks)),
        links={
            link: LabLink(name=link_name(cluster, link), gbps=float(cluster.link_gbps[link]))
            for link in sorted({link for cable in builder.cables for p in (cable.a, cable.b) for link in p.links})
        },
    )
    _check_rates(network)
    return network


def _check_rates(network: Network) -> None:
    slowest = min(map(network.bytes_per_s, network.ports()), default=MIN_BYTES_PER_S)
    if slowest < MIN_BYTES_PER_S:
        raise BadInput(
            f"{network.cluster}: at scale {network.scale:g} the slowest wire would carry {slowest:.0f} bytes/s, under "
            f"{MIN_BYTES_PER_S:.0f}; take a scale {MIN_BYTES_PER_S / slowest:.2g} times as large"
        )


def _address(rank: int) -> str:
    return f"10.0.{rank // 250}.{rank % 250 + 1}"


def _mac(rank: int, device: str) -> str:
    """Return a locally administered address that tells rank and device: 0 for up, 1 for nic, 2 + peer for a mesh."""
    tier = {"up": 0, "nic": 1}.get(device)
    tier = 2 + int(device.removeprefix("to")) if tier is None else tier
    return f"02:00:{tier >> 8:02x}:{tier & 255:02x}:{rank >> 8:02x}:{rank & 255:02x}"


class _Builder:
    """Lays cables tier by tier."""

    def __init__(self, cluster: Cluster, ways: Ways) -> None:
        self.cluster = cluster
        self.ways = ways
        self.cables: list[Cable] = []
        self.forward: dict[str, dict[str, str]] = {}
        self.uplink: dict[str, str] = {}
        self._bridge_names: dict[str, str] = {}

    def _bridge(self, prefix: str, node: str) -> str:
        """Return the bridge that stands for a switch of the graph."""
        if node not in self._bridge_names:
            name = f"{prefix}{sum(known.startswith(prefix) for known in self._bridge_names.values())}"
            self._bridge_names[node] = name
            self.forward[name] = {}
        return self._bridge_names[node]

    def _port(self, place: str, name: str, links: Shares, **settings: Any) -> Port:
        queue = queue_packets(int(self.ways.pairs[list(links)].max()))
        settings = {"mac": None, "bridge": None, **settings}
        return Port(place=place, name=name, links=links, queue_packets=queue, **settings)

    def _senders(self, rank: int, device: str) -> tuple[str, ...]:
        """Return the addresses of those who send through a rank's interface, where that is its NIC."""
        senders = {src for (src, _), sender in self.ways.sender.items() if sender == rank and device == "nic"}
        return tuple(map(_address, sorted(senders)))

    def _to_bridge(self, rank: int, device: str, bridge: str, out: Shares, into: Shares) -> str:
        """Lay a cable from a rank to a bridge; return its port there."""
        mac, port = _mac(rank, device), f"{device}{rank}"
        self.cables.append(
            Cable(
                a=self._port(rank_place(rank), device, out, mac=mac, turns=self._senders(rank, device)),
                b=self._port(FABRIC, port, into, bridge=bridge),
            )
        )
        self.forward[bridge][mac] = port
        return port

    def _between_bridges(self, lower: str, upper: str, rise: Shares, fall: Shares) -> None:
        """Lay a cable between two bridges; behind it lies, from above, all that lies behind the lower one."""
        self.cables.append(
            Cable(
                a=self._port(FABRIC, f"{lower}-up", rise, bridge=lower),
                b=self._port(FABRIC, f"{lower}-down", fall, bridge=upper),
            )
        )
        self.forward[upper].update(dict.fromkeys(self.forward[lower], f"{lower}-down"))
        self.uplink[lower] = f"{lower}-up"

    def scale_up(self) -> None:
        """Lay the cables from ranks to their crossbars, and those of meshes."""
        target, names = self.cluster.wiring.target, self.cluster.wiring.node_names
        for rank, link in self.ways.up.items():
            bridge = self._bridge("switch", names[int(target[link])])
            self._to_bridge(rank, "up", bridge, {link: 1.0}, {self.ways.down[rank]: 1.0})
        for (src, dst), link in self.ways.direct.items():
            if src < dst:
                back = self.ways.direct[dst, src]
                self.cables.append(Cable(a=self._mesh_port(src, dst, link), b=self._mesh_port(dst, src, back)))

    def _mesh_port(self, rank: int, peer: int, link: int) -> Port:
        device = f"to{peer}"
        return self._port(rank_place(rank), device, {link: 1.0}, mac=_mac(rank, device))

    def nics(self) -> None:
        """Lay the cables from ranks to their leaves; ranks that share NICs meet in a bridge first."""
        sharing: dict[tuple[int, ...], list[int]] = {}
        for rank, shares in sorted(self.ways.out.items()):
            sharing.setdefault(nic_links(self.cluster, shares), []).append(rank)
        for ranks in sharing.values():
            leaf = self._bridge("leaf", self.ways.leaf[ranks[0]])
            out, into = self._common(self.ways.out, ranks), self._common(self.ways.into, ranks)
            if len(ranks) == 1:
                self._to_bridge(ranks[0], "nic", leaf, out, into)
                continue
            shared = self._bridge("port", f"NICs of rank {ranks[0]}")
            for rank in ranks:
                own_out = _without(self.ways.out[rank], out) or out
                own_into = _without(self.ways.into[rank], into) or into
                self._to_bridge(rank, "nic", shared, own_out, own_into)
            self._between_bridges(shared, leaf, out, into)

    def _common(self, shares_of_rank: dict[int, Shares], ranks: list[int]) -> Shares:
        """Return the links that the bytes of all these ranks cross."""
        first, *others = (shares_of_rank[rank] for rank in ranks)
        return {link: share for link, share in first.items() if all(link in other for other in others)}

    def spine(self) -> None:
        """Lay the cables from leaves to the spine."""
        leaves = {self._bridge_names[leaf]: leaf for leaf in self.ways.leaf.values()}
        for bridge, leaf in sorted(leaves.items()):
            if leaf in self.ways.rise:
                rise, fall = {self.ways.rise[leaf]: 1.0}, {self.ways.fall[leaf]: 1.0}
                self._between_bridges(bridge, self._bridge("spine", "spine"), rise, fall)

    def hops(self, rank: int) -> tuple[Hop, ...]:
        """Return the next hop from a rank to every other."""
        others = (other for other in range(self.cluster.num_ranks) if other != rank)
        return tuple(self._hop(rank, other) for other in others)

    def _hop(self, rank: int, target: int) -> Hop:
        """Inside the domain straight; else from the NIC that sends, perhaps a relay's, to the NIC that receives."""
        sender = self.ways.sender.get((rank, target), target)
        if sender != rank:  # a peer of the domain: the target itself, or the relay
            device, peer_device = self._scale_up_devices(rank, sender)
            return Hop(target=_address(target), device=device, mac=_mac(sender, peer_device))
        return Hop(target=_address(target), device="nic", mac=_mac(self.ways.receiver[rank, target], "nic"))

    def _scale_up_devices(self, rank: int, peer: int) -> tuple[str, str]:
        return (f"to{peer}", f"to{rank}") if (rank, peer) in self.ways.direct else ("up", "up")


def _without(shares: Shares, common: Shares) -> Shares:
    return {link: share for link, share in shares.items() if link not in common}
