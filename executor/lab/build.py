"""Makes a planned network real, by netlink."""

from __future__ import annotations

from functools import partial
from typing import Any

from pyroute2 import IPRoute

from executor.lab import inside, registry
from executor.lab.network import FABRIC, Cable, Hop, Network, Port, rank_place
from executor.lab.rates import FRAME_BYTES, WINDOW_BYTES
from executor.lab.registry import Record
from executor.lab.shaping import shape

ADDRESS_DEVICE = "rank"  # holds a rank's address, which lies behind all its interfaces alike
PATIENCE_MS = 10_000  # before TCP takes a packet for lost: none is, but slow wires have queues of seconds
RTAX_RTO_MIN = 13  # linux/rtnetlink.h: the metric that holds it, and must be locked to count
NTF_MASTER, NUD_NOARP = 0x04, 0x40  # linux/neighbour.h: an entry of the bridge, static, that lies behind a port

RANK_SYSCTLS = {
    "ipv4/ip_forward": "1",  # a rank relays for others where routes say so
    "ipv4/conf/all/rp_filter": "0",  # and answers come back another way
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/tcp_congestion_control": "reno",
    "ipv4/tcp_slow_start_after_idle": "0",
    "ipv4/tcp_no_metrics_save": "1",
    "ipv4/tcp_early_retrans": "0",
    "ipv4/tcp_rmem": f"4096 {WINDOW_BYTES} {WINDOW_BYTES}",
    "ipv4/tcp_wmem": f"4096 {WINDOW_BYTES} {16 * WINDOW_BYTES}",
}


def build(record: Record) -> None:
    """Make all namespaces, cables, bridges, routes and rates of a recorded lab."""
    network = record.network
    for place in network.places:
        inside.create(record.namespace(place))
        registry.mark(record, place)
        inside.inside(record.namespace(place), _no_ipv6)
    inside.with_netlink(record.namespace(FABRIC), partial(_bridges, network=network))
    _cables(record)
    for place in network.places:
        inside.with_netlink(record.namespace(place), partial(_finish, network=network, place=place))


def _no_ipv6() -> None:
    """Without it, nothing is sent that no program asked for."""
    inside.set_sysctl("ipv6/conf/all/disable_ipv6", "1")
    inside.set_sysctl("ipv6/conf/default/disable_ipv6", "1")


def _bridges(netlink: IPRoute, network: Network) -> None:
    for name in network.forward:
        netlink.link("add", ifname=name, kind="bridge", mtu=FRAME_BYTES, br_stp_state=0, br_mcast_snooping=0)
        netlink.link("set", index=netlink.link_lookup(ifname=name)[0], state="up")


def _cables(record: Record) -> None:
    """Lay all cables, each made in the namespace of one end with the other end already in its own."""
    by_place: dict[str, list[Cable]] = {}
    for cable in record.network.cables:
        by_place.setdefault(cable.b.place, []).append(cable)
    for place, cables in by_place.items():

        def lay(netlink: IPRoute, cables: list[Cable] = cables) -> None:
            for cable in cables:
                far_end = _link_settings(cable.a) | {"net_ns_fd": record.namespace(cable.a.place)}
                netlink.link("add", kind="veth", peer=far_end, **_link_settings(cable.b))

        inside.with_netlink(record.namespace(place), lay)


def _link_settings(port: Port) -> dict[str, Any]:
    settings: dict[str, Any] = {"ifname": port.name, "mtu": FRAME_BYTES, "gso_max_size": FRAME_BYTES}
    return settings if port.mac is None else settings | {"address": port.mac}


def _finish(netlink: IPRoute, network: Network, place: str) -> None:
    """Shape and start the ports of one namespace, and tell it where everything lies."""
    index = {link.get("ifname"): int(link["index"]) for link in netlink.get_links()}
    for port in network.ports():
        if port.place == place:
            shape(netlink, index[port.name], network.bytes_per_s(port), port.queue_packets, port.turns)
            master = {} if port.bridge is None else {"master": index[port.bridge]}
            netlink.link("set", index=index[port.name], state="up", **master)
    if place == FABRIC:
        _forwarding(netlink, network, index)
    else:
        rank = [rank_place(r) for r in range(network.num_ranks)].index(place)
        _address(netlink, network.addresses[rank], network.hops[rank], index)
        for key, value in RANK_SYSCTLS.items():
            inside.set_sysctl(key, value)


def _forwarding(netlink: IPRoute, network: Network, index: dict[str, int]) -> None:
    """Tell every bridge behind which port each address lies; what it does not know goes up."""
    for bridge, forward in network.forward.items():
        for mac, port in forward.items():
            netlink.fdb("append", ifindex=index[port], lladdr=mac, flags=NTF_MASTER, state=NUD_NOARP)
        for port in set(forward.values()):
            netlink.brport("set", index=index[port], unicast_flood=0, learning=0)
        if bridge in network.uplink:
            netlink.brport("set", index=index[network.uplink[bridge]], learning=0)


def _address(netlink: IPRoute, address: str, hops: tuple[Hop, ...], index: dict[str, int]) -> None:
    """Give a rank its address, a route and the next interface for every other rank: nothing is asked by broadcast.

    A next hop is given by its hardware address alone, so that a relay needs no address of its own on any interface.
    """
    netlink.link("add", ifname=ADDRESS_DEVICE, kind="bridge")  # a bridge of nothing: not every kernel has dummies
    device = netlink.link_lookup(ifname=ADDRESS_DEVICE)[0]
    netlink.link("set", index=device, state="up")
    netlink.addr("add", index=device, address=address, prefixlen=32)
    for hop in hops:
        out = index[hop.device]
        netlink.neigh("add", dst=hop.target, lladdr=hop.mac, ifindex=out, state="permanent")
        netlink.route(
            "add",
            dst=hop.target,
            dst_len=32,
            oif=out,
            scope="link",
            prefsrc=address,
            metrics={"lock": 1 << RTAX_RTO_MIN, "rto_min": PATIENCE_MS},
        )
