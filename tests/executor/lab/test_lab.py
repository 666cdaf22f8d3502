"""Labs that stand: what they carry, that they are gone afterwards, and that nothing else was touched."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from click.testing import CliRunner
from pyroute2 import IPRoute

import executor.lab.lab as lab_module
from app.commands.lab import lab as lab_command
from executor.lab import Lab, Place, attach, inside, open_lab, raise_lab, registry, wire_bytes
from executor.lab.shaping import WIRE
from tests.executor.lab.clusters import SHAPES, small
from tests.executor.lab.conftest import Open
from topologies import BadInput
from topologies.routes import routes

pytestmark = pytest.mark.lab

PAYLOAD = 400_000
TIMEOUT_S = 20.0


@contextmanager
def joined(src: Place, dst: Place, port: int = 5000) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield the two ends of a connection, each in the namespace of its rank."""
    with (
        dst.inside(lambda: socket.create_server((dst.address, port))) as server,
        src.inside(lambda: socket.create_connection((dst.address, port), TIMEOUT_S, (src.address, 0))) as caller,
    ):
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(TIMEOUT_S)
            yield caller, accepted


def send(src: Place, dst: Place, count: int) -> None:
    with joined(src, dst) as (caller, accepted):
        sender = threading.Thread(target=caller.sendall, args=(bytes(count),))
        sender.start()
        left = count
        while left:
            left -= len(accepted.recv(min(left, 65536)))
        sender.join()


@pytest.mark.parametrize("policy", ["pxn", "direct"])
@pytest.mark.parametrize(
    "shape", ["2 hosts x 4", "8 hosts x 2, spine 2:1", "meshes", "two GPUs a NIC", "two NICs a GPU", "a part of it"]
)
def test_the_kernel_counts_what_routes_say(shape: str, policy: str, lab_of: Open) -> None:
    """From rank 0, and to it: each of some pairs sends in turn, and every link counts its share within 3 %."""
    cluster = SHAPES[shape]
    lab = lab_of(cluster, policy=policy, scale=2e-3)
    pairs = [(0, 1), (0, cluster.num_ranks - 1), (cluster.num_ranks - 1, 0), (1, cluster.num_ranks // 2)]
    payload_RR = np.zeros((cluster.num_ranks, cluster.num_ranks))
    for src, dst in pairs:
        send(lab.places[src], lab.places[dst], PAYLOAD)
        payload_RR[src, dst] += PAYLOAD
    route_PL = routes(cluster, policy)
    expected_L = wire_bytes(payload_RR.reshape(-1) @ route_PL, payload_RR.T.reshape(-1) @ route_PL)
    counted_L = lab.link_bytes(cluster.num_links)
    loaded = payload_RR.reshape(-1) @ route_PL > 0
    assert loaded.sum() >= 6
    np.testing.assert_allclose(counted_L[loaded], expected_L[loaded], rtol=0.03)
    quiet = ~np.isnan(counted_L) & (expected_L == 0)
    assert counted_L[quiet].max(initial=0) == 0


def test_every_rank_reaches_every_other(lab_of: Open) -> None:
    lab = lab_of(SHAPES["domains of two hosts"])
    for src in lab.places:
        for dst in lab.places:
            with joined(src, dst) as (caller, accepted):
                assert caller.getpeername()[0] == dst.address
                assert accepted.getpeername()[0] == src.address


def test_two_labs_do_not_meet(lab_of: Open) -> None:
    """Both have the same addresses; each answers for itself, and one goes without the other."""
    first, second = lab_of(small(2, 2)), raise_lab(small(2, 2))
    try:
        with joined(first.places[0], first.places[3]), joined(second.places[0], second.places[3]):
            pass
        assert {first.name, second.name} <= set(registry.names())
    finally:
        second.down()
    assert second.name not in registry.names()
    send(first.places[0], first.places[3], 1000)


def _namespaces_of(lab: Lab) -> set[str]:
    return {name for name in os.listdir(inside.FOLDER) if name.startswith(lab.name)}  # noqa: PTH208 - names are wanted


def test_nothing_is_left_and_the_machine_is_not_touched(namespaces: None) -> None:  # noqa: ARG001 - skips
    before = socket.if_nameindex()
    with open_lab(small(2, 2)) as lab:
        assert len(_namespaces_of(lab)) == 5
        assert socket.if_nameindex() == before
    assert not _namespaces_of(lab)
    assert lab.name not in registry.names()
    with pytest.raises(BadInput, match=f"no lab '{lab.name}'"):
        attach(lab.name)


def test_nothing_is_left_when_making_it_fails(namespaces: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001 - skips
    """Ctrl-C after some namespaces are there."""
    made = []

    def interrupted(record: registry.Record) -> None:
        made.append(record)
        for place in record.network.places[:3]:
            inside.create(record.namespace(place))
        registry.mark(record, record.network.places[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(lab_module, "build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        raise_lab(small(2, 2))
    assert not _namespaces_of(Lab(made[0]))
    assert made[0].name not in registry.names()


HOLDER = """
import sys, time
from executor.lab import open_lab
from tests.executor.lab.clusters import small
with open_lab(small(2, 2)) as lab:
    print(lab.name, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_holder_that_ends(end: signal.Signals, namespaces: None) -> None:  # noqa: ARG001 - skips
    """Ctrl-C takes the lab down; after a kill it is stale, and `epplan lab down` removes it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as holder:
        assert holder.stdout is not None
        name = holder.stdout.readline().strip()
        held = registry.load(name)
        assert held.standing() == "held"
        holder.send_signal(end)
    if end == signal.SIGKILL:
        assert held.standing() == "stale"
        assert len(_namespaces_of(Lab(held))) == 5
        assert CliRunner().invoke(lab_command, ["down", name]).stdout == f"{name}\n"
    assert not _namespaces_of(Lab(held))
    assert name not in registry.names()


def test_what_others_made_is_left_alone(namespaces: None) -> None:  # noqa: ARG001 - skips
    """A namespace under one of the lab's names that carries no mark of it, but an interface of somebody's."""
    lab = raise_lab(small(1, 2))
    foreign = lab.record.namespace("r1")
    inside.remove(foreign)
    inside.create(foreign)
    try:
        inside.with_netlink(foreign, lambda netlink: netlink.link("add", ifname="theirs", kind="bridge"))
        with pytest.raises(BadInput, match=f"{foreign}: not made by the lab {lab.name}; left alone"):
            lab.down()
        assert inside.exists(foreign)
    finally:
        inside.remove(foreign)
    assert not _namespaces_of(lab)


def _rate(place: Place, device: str) -> int:
    def read(netlink: IPRoute) -> int:
        index = netlink.link_lookup(ifname=device)[0]
        [wire] = [one for one in netlink.get_classes(index=index) if one["handle"] == WIRE]
        return int(wire.get_attr("TCA_OPTIONS").get_attr("TCA_HTB_PARMS")["rate"])

    return inside.with_netlink(place.namespace, read)


def test_throttle(lab_of: Open) -> None:
    """h0/nic0 to its leaf at a quarter, and back: only rank 0's NIC, only outwards."""
    lab = lab_of(small(2, 2), scale=1e-4)
    whole = [[_rate(place, device) for device in ("up", "nic")] for place in lab.places]
    assert whole == [[45_000_000, 5_000_000]] * 4
    lab.throttle("h0/nic0->leaf0.0", 0.25)
    assert [_rate(place, "nic") for place in lab.places] == [1_250_000, *[5_000_000] * 3]
    again = attach(lab.name)
    assert list(again.record.throttled.values()) == [0.25]
    again.throttle("h0/nic0->leaf0.0", 1.0)
    assert [[_rate(place, device) for device in ("up", "nic")] for place in lab.places] == whole
    assert attach(lab.name).record.throttled == {}
    with pytest.raises(BadInput, match="of its bandwidth, not 2"):
        lab.throttle("h0/nic0->leaf0.0", 2.0)


def test_the_command(namespaces: None) -> None:  # noqa: ARG001 - skips
    runner = CliRunner()
    made = json.loads(runner.invoke(lab_command, ["up", "hgx-h100:1", "--scale", "0.0001", "--json"]).stdout)
    try:
        assert made["ranks"] == 8
        assert made["fastest_mbit"] == pytest.approx(450e9 * 1e-4 * 8e-6)
        slowed = runner.invoke(lab_command, ["throttle", "h0/gpu1->h0/nvswitch", "0.5", "--lab", made["name"]])
        assert slowed.stdout == f"{made['name']}: h0/gpu1->h0/nvswitch at 0.5 of its bandwidth\n"
        send(attach(made["name"]).places[0], attach(made["name"]).places[1], PAYLOAD)
        listed = json.loads(runner.invoke(lab_command, ["status", "--json"]).stdout)
        [ours] = [one for one in listed if one["name"] == made["name"]]
        assert ours["standing"] == "standing"
        assert ours["throttled"] == {"h0/gpu1->h0/nvswitch": 0.5}
        carried = {link["link"]: link["bytes"] for link in ours["links"]}
        assert carried["h0/gpu0->h0/nvswitch"] > PAYLOAD
        assert carried["h0/gpu2->h0/nvswitch"] == 0
        assert made["name"] in runner.invoke(lab_command, ["status", "--links"]).stdout
    finally:
        assert runner.invoke(lab_command, ["down", made["name"]]).stdout == f"{made['name']}\n"
    assert isinstance(runner.invoke(lab_command, ["down", made["name"]]).exception, BadInput)


def test_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BadInput, match="needs root"):
        raise_lab(small(2, 2))
