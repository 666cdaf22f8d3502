"""A lab that stands: made and removed by a context manager, or left to stand until it is taken down.

    with open_lab(cluster) as lab:
        before = lab.link_bytes(cluster.num_links)
        ...  # start a process a rank, each of which calls lab.places[rank].enter()
        carried = lab.link_bytes(cluster.num_links) - before

A process meets the others by a store at `lab.places[0].address`, made there: `lab.places[0].inside(...)`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pyroute2 import IPRoute, NetlinkError

from executor.lab import inside, registry
from executor.lab.build import ADDRESS_DEVICE, build
from executor.lab.counters import link_bytes
from executor.lab.network import Network, Port, plan_network, rank_place
from executor.lab.rates import default_scale
from executor.lab.registry import Record
from executor.lab.shaping import set_rate
from topologies.errors import BadInput
from topologies.graph import Cluster

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where one rank lives; it can be sent to the process that will be that rank.

    Attributes:
        rank: its number.
        namespace: name of its network namespace.
        address: IPv4 address at which all other ranks reach it.
    """

    rank: int
    namespace: str
    address: str

    def enter(self) -> None:
        """Move this process into the namespace, and tell gloo which address to use; before threads are started."""
        inside.enter(self.namespace)
        os.environ["GLOO_SOCKET_IFNAME"] = ADDRESS_DEVICE

    def inside(self, work: Callable[[], T]) -> T:
        """Run a function there in a thread and return its result, such as a socket; the caller stays outside."""
        return inside.inside(self.namespace, work)


class Lab:
    """A lab that stands.

    Attributes:
        record: what it consists of, as recorded on this machine.
    """

    def __init__(self, record: Record) -> None:
        self.record = record

    @property
    def name(self) -> str:
        """Its name on this machine."""
        return self.record.name

    @property
    def network(self) -> Network:
        """What it consists of."""
        return self.record.network

    @property
    def places(self) -> tuple[Place, ...]:
        """[R] where the ranks live."""
        return tuple(
            Place(rank, self.record.namespace(rank_place(rank)), address)
            for rank, address in enumerate(self.network.addresses)
        )

    def counted(self) -> dict[int, float]:
        """Return the bytes that each link of the graph carried so far, by its number, as far as the lab has it."""
        return link_bytes(self.record)

    def link_bytes(self, num_links: int) -> NDArray[np.float64]:
        """Return the same as an array [L], with NaN for links that the lab has not."""
        carried = np.full(num_links, np.nan)
        for link, count in self.counted().items():
            carried[link] = count
        return carried

    def throttle(self, link: str, factor: float) -> int:
        """Slow one link of the graph, by name or number, to a factor of its bandwidth; 1 undoes it.

        The routes and the graph do not know. Returns the number of the link; raises BadInput on an unknown one.
        """
        if not 0.001 <= factor <= 1:
            raise BadInput(f"a link can be slowed to 0.001 .. 1 of its bandwidth, not {factor:g}")
        number = self.network.link(link)
        throttled = {**self.record.throttled, number: factor}
        self.record = self.record.model_copy(
            update={"throttled": {number: factor for number, factor in throttled.items() if factor < 1}}
        )
        registry.save(self.record)
        _shape_again(self.record, number)
        return number

    def down(self) -> None:
        """Remove the lab; raise BadInput where something of another's is under one of its names."""
        inside.require_namespaces()
        foreign = registry.erase(self.record)
        if foreign:
            raise BadInput(f"{', '.join(foreign)}: not made by the lab {self.name}; left alone")


def _shape_again(record: Record, link: int) -> None:
    """Set anew the rate of every port that carries a link."""
    for port in record.network.ports():
        if link in port.links:

            def change(netlink: IPRoute, port: Port = port) -> None:
                index = netlink.link_lookup(ifname=port.name)[0]
                set_rate(netlink, index, record.network.bytes_per_s(port, record.throttled), port.turns)

            inside.with_netlink(record.namespace(port.place), change)


def raise_lab(cluster: Cluster, *, scale: float | None = None, policy: str = "pxn", until_down: bool = True) -> Lab:
    """Make a lab of a cluster.

    Args:
        cluster: any, subsets too.
        scale: lab bandwidth over graph bandwidth; None for what this machine can fill (`rates.default_scale`).
        policy: `routes(cluster, policy)` says what the links of the lab carry: with `pxn` neighbours relay, as NCCL's
            do; with `direct` every rank uses its own NIC, and the spine where rails differ.
        until_down: whether it outlives this process; if not, and this process dies, `epplan lab down` removes it.

    Raises BadInput without root, and for graphs that a lab cannot build.

    """
    inside.require_namespaces()
    network = plan_network(cluster, default_scale(cluster) if scale is None else scale, policy)
    record = registry.new_record(network, until_down=until_down)
    registry.save(record)
    try:
        build(record)
    except NetlinkError as error:
        registry.erase(record)
        raise BadInput(f"the lab cannot be made: the kernel refuses a part of it: {error}") from error
    except BaseException:  # Ctrl-C too
        registry.erase(record)
        raise
    return Lab(record)


@contextmanager
def open_lab(cluster: Cluster, *, scale: float | None = None, policy: str = "pxn") -> Iterator[Lab]:
    """Make a lab for the length of a `with` block; the arguments are those of `raise_lab`."""
    lab = raise_lab(cluster, scale=scale, policy=policy, until_down=False)
    try:
        yield lab
    finally:
        lab.down()


def attach(name: str) -> Lab:
    """Return a lab that stands, by name; raise BadInput where there is none."""
    inside.require_namespaces()
    record = registry.load(name)
    missing = [place for place in record.network.places if not inside.exists(record.namespace(place))]
    if missing:
        raise BadInput(f"{name}: its namespace {record.namespace(missing[0])} is gone; see epplan lab status")
    return Lab(record)
