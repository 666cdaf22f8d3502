"""What a lab will consist of, without making one: a packet walked through it crosses the links that routes say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.lab.network import FABRIC, Network, Port, plan_network, rank_place
from executor.lab.rates import burst_bytes, default_scale, scale_for_nic
from executor.lab.registry import Record
from tests.executor.lab.clusters import NIC_GBPS, PCIE_GBPS, SHAPES, small
from topologies import BadInput, load_cluster
from topologies.build import build_cluster
from topologies.graph import Cluster
from topologies.routes import POLICIES, routes
from topologies.spec import ClusterSpec, Fabric, Gpu, Host, HostGroup, HostLink, HostNode

SCALE = 1e-4


class Walk:
    """Forwards a packet as the kernel will: ranks by destination, bridges by hardware address."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.port = {(port.place, port.name): port for port in network.ports()}
        self.peer = {}
        for cable in network.cables:
            self.peer[cable.a.place, cable.a.name] = cable.b
            self.peer[cable.b.place, cable.b.name] = cable.a

    def ports(self, src: int, dst: int) -> list[Port]:
        crossed: list[Port] = []
        place, target = rank_place(src), self.network.addresses[dst]
        while place != rank_place(dst):
            [hop] = [hop for hop in self.network.hops[int(place[1:])] if hop.target == target]
            arrived = self._over(crossed, self.port[place, hop.device])
            while arrived.place == FABRIC:
                assert arrived.bridge is not None
                forward = self.network.forward[arrived.bridge]
                out = forward.get(hop.mac) or self.network.uplink[arrived.bridge]
                assert out != arrived.name, "a bridge sends nothing back"
                arrived = self._over(crossed, self.port[FABRIC, out])
            assert arrived.mac == hop.mac
            place = arrived.place
            assert len(crossed) < 20, "round in circles"
        return crossed

    def _over(self, crossed: list[Port], port: Port) -> Port:
        crossed.append(port)
        return self.peer[port.place, port.name]


def check_against_routes(cluster: Cluster, policy: str) -> None:
    network = plan_network(cluster, SCALE, policy)
    walk = Walk(network)
    route_PL = routes(cluster, policy).toarray()
    for src in range(cluster.num_ranks):
        for dst in range(cluster.num_ranks):
            crossed = np.zeros(cluster.num_links)
            for port in walk.ports(src, dst):
                for link, share in port.links.items():
                    crossed[link] += share
            np.testing.assert_allclose(crossed, route_PL[src * cluster.num_ranks + dst])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_packets_take_the_routes(shape: str, policy: str) -> None:
    check_against_routes(SHAPES[shape], policy)


@settings(max_examples=150, deadline=None)
@given(
    hosts=st.integers(1, 4),
    gpus=st.sampled_from([1, 2, 4]),
    nics=st.sampled_from([1, 2, 4]),
    mesh=st.booleans(),
    kind=st.sampled_from(["rail", "fat-tree", "single-switch"]),
    radix=st.sampled_from([16, 32, 64]),
    policy=st.sampled_from(POLICIES),
    data=st.data(),
)
def test_packets_take_the_routes_of_any_cluster(data: st.DataObject, policy: str, **shape: Any) -> None:
    whole = small(shape.pop("hosts"), shape.pop("gpus"), **shape)
    ranks = data.draw(st.lists(st.integers(0, whole.num_ranks - 1), unique=True, min_size=1))
    check_against_routes(whole.subset(ranks), policy)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_wire_lets_more_through_than_its_links(shape: str, policy: str) -> None:
    """Each wire has the rate of its narrowest link; and links of several wires never bind before the NICs do."""
    cluster = SHAPES[shape]
    network = plan_network(cluster, SCALE, policy)
    rate = {(port.place, port.name): network.bytes_per_s(port) for port in network.ports()}
    for port in network.ports():
        allowed = min(cluster.link_gbps[link] / share for link, share in port.links.items()) * SCALE * 1e9
        assert rate[port.place, port.name] == pytest.approx(allowed)


def test_layout_of_two_hosts() -> None:
    """
    h0: rank 0, rank 1 -- switch0        rails 0 and 1: leaf0, leaf1; each joins one NIC of each host
    h1: rank 2, rank 3 -- switch1        leaf0, leaf1 -- spine0
    """
    network = plan_network(small(2, 2, oversubscription=2.0), SCALE, "direct")
    assert {bridge: len(behind) for bridge, behind in network.forward.items()} == {
        "switch0": 2,
        "switch1": 2,
        "leaf0": 2,
        "leaf1": 2,
        "spine0": 4,
    }
    rates = {port.name: round(network.bytes_per_s(port) / (NIC_GBPS * SCALE * 1e9), 3) for port in network.ports()}
    assert rates["nic"] == rates["nic0"] == 1
    assert rates["up"] == rates["up3"] == 9
    assert rates["leaf0-up"] == rates["leaf1-down"] == 1  # two NICs below, 2:1 above
    names = {port.name: [network.links[link].name for link in port.links] for port in network.ports()}
    assert names["leaf0-up"] == ["leaf0.0->spine"]
    assert set(names["nic2"]) == {"leaf0.0->h1/nic0", "h1/nic0->h1/pci0", "h1/pci0->h1/gpu0"}


def test_ranks_that_share_a_nic_meet_before_the_leaf() -> None:
    network = plan_network(small(2, 4, nics=2), SCALE)
    shared = [port for port in network.ports() if port.name == "port0-up"]
    assert [round(network.bytes_per_s(port) / (SCALE * 1e9)) for port in shared] == [NIC_GBPS]
    own = [port for port in network.ports() if port.name == "nic"]
    assert {round(network.bytes_per_s(port) / (SCALE * 1e9)) for port in own} == {PCIE_GBPS}


def test_several_nics_are_one_wire_of_their_speed() -> None:
    network = plan_network(small(2, 2, nics=4), SCALE)
    [port] = [port for port in network.ports() if port.place == "r0" and port.name == "nic"]
    assert network.bytes_per_s(port) == pytest.approx(2 * NIC_GBPS * SCALE * 1e9)
    assert sorted(port.links.values()) == [0.5, 0.5, 0.5, 0.5, 1.0]


def test_default_rates_fit_the_machine() -> None:
    """Twice the ranks on as many cores: half the rate; and NICs stop at 200 Mbit/s."""
    two, four = (default_scale(small(hosts, 4), cores=2) for hosts in (2, 4))
    assert two == pytest.approx(2 * four)
    assert default_scale(small(2, 1), cores=64) * NIC_GBPS * 1e9 * 8 == pytest.approx(200e6)
    assert scale_for_nic(small(2, 4), 100.0) * NIC_GBPS * 1e9 * 8 == pytest.approx(100e6)
    with pytest.raises(BadInput, match="no NIC is cabled"):
        scale_for_nic(small(1, 4), 100.0)
    assert burst_bytes(1000.0) == 2 * 9014
    assert burst_bytes(1e9) == 500_000


def test_queues_hold_the_window_of_every_pair() -> None:
    """All 3 of a rank's far peers on 2 hosts x 3 send to it at once; 512 is the least that a packet takes."""
    network = plan_network(small(2, 3), SCALE, "direct")
    [port] = [port for port in network.ports() if port.name == "nic0"]
    assert port.queue_packets == 3 * 256 * 1024 // 512


def test_ranks_that_relay_give_each_sender_its_turn() -> None:
    """2 hosts x 2: with PXN, rank 0's NIC carries what ranks 0 and 1 send to rail 0; directly, only its own."""
    for policy, turns in (("pxn", ("10.0.0.1", "10.0.0.2")), ("direct", ("10.0.0.1",))):
        ports = {(port.place, port.name): port for port in plan_network(small(2, 2), SCALE, policy).ports()}
        assert ports["r0", "nic"].turns == turns
        assert ports["r0", "up"].turns == ports[FABRIC, "nic0"].turns == ()


def _joined_over_pcie(*, narrow: bool) -> Cluster:
    """Two GPUs and two NICs on a PCIe switch; or, if narrow, behind one narrow cable to the switch with the NICs."""
    nodes = [HostNode(name=f"gpu{i}", kind="gpu", model="g") for i in range(2)]
    nodes += [HostNode(name=f"nic{i}", kind="nic", gbps=NIC_GBPS) for i in range(2)]
    nodes += [HostNode(name=f"pci{i}", kind="pci") for i in range(2)]
    links = [HostLink(a=f"gpu{i}", b="pci0", kind="pcie", gbps=64) for i in range(2)]
    links += [HostLink(a=f"nic{i}", b="pci1", kind="pcie", gbps=64) for i in range(2)]
    links += [HostLink(a="pci0", b="pci1", kind="pcie", gbps=64 if narrow else 128)]
    if narrow:
        links += [HostLink(a="gpu0", b="gpu1", kind="nvlink", gbps=100)]
    host = Host(nodes=tuple(nodes), links=tuple(links))
    return build_cluster(
        ClusterSpec(
            name="odd",
            gpus={"g": Gpu("g", 1, 1.0, {})},
            hosts={"h": host},
            layout=(HostGroup(host="h", count=2),),
            fabric=Fabric(),
        )
    )


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(BadInput, match="cannot build the way from rank 0 to rank 1 of one domain"):
        plan_network(_joined_over_pcie(narrow=False), SCALE)
    with pytest.raises(BadInput, match="h0/pci0->h0/pci1: 64 GB/s shared on the way to NICs of 100 GB/s"):
        plan_network(_joined_over_pcie(narrow=True), SCALE, "direct")
    with pytest.raises(BadInput, match="144 ranks, over the limit of 128"):
        plan_network(load_cluster("gb200-nvl72:2"), SCALE)
    with pytest.raises(BadInput, match="the slowest wire would carry 50 bytes/s, under 10000"):
        plan_network(small(2, 2), 1e-9)
    with pytest.raises(BadInput, match="no path from rank 0"):
        plan_network(small(2, 2, kind="rail-only"), SCALE, "direct")


def test_links_by_name_and_number() -> None:
    network = plan_network(small(2, 2), SCALE)
    number = network.link("h0/nic0->leaf0.0")
    assert network.links[number].name == "h0/nic0->leaf0.0"
    assert network.link(str(number)) == number
    with pytest.raises(BadInput, match="no link 'nic9' in the lab"):
        network.link("nic9")


def test_a_slowed_link_slows_its_wire() -> None:
    network = plan_network(small(2, 2), SCALE)
    [port] = [port for port in network.ports() if port.place == "r0" and port.name == "nic"]
    whole = network.bytes_per_s(port)
    assert network.bytes_per_s(port, {network.link("h0/nic0->leaf0.0"): 0.25}) == pytest.approx(whole / 4)
    pcie = network.link("h0/gpu0->h0/pci0")
    assert network.bytes_per_s(port, {pcie: 0.25}) == pytest.approx(whole * PCIE_GBPS / NIC_GBPS / 4)
    assert network.bytes_per_s(port, {pcie: 0.9}) == whole  # still wider than the NIC


def test_records_survive_their_file() -> None:
    record = Record(name="epplan-x", network=plan_network(small(2, 4, nics=2), SCALE), owner=None, throttled={3: 0.5})
    assert Record.model_validate_json(record.model_dump_json()) == record
