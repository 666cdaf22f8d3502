"""Bytes that the links of a lab carried, by the kernel's counters, and how they compare with what programs sent.

A program's payload is cut into segments of `SEGMENT_BYTES`, each of which gets `HEADER_BYTES`; and the other side
answers every other segment with a frame of headers alone. So a link that carries P payload bytes one way, and Q the
other way on the same wires, carries

    P * (1 + 66 / 8948) + Q * 66 / (2 * 8948)  =  1.0074 P + 0.0037 Q

Messages shorter than a segment cost more: a header each, and their answer.
L links of the graph.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pyroute2 import IPRoute

from executor.lab import inside
from executor.lab.network import Cable
from executor.lab.rates import HEADER_BYTES, SEGMENT_BYTES
from executor.lab.registry import Record

FloatArray = NDArray[np.float64]


def read_ports(record: Record) -> dict[tuple[str, str], int]:
    """Return the bytes that left every port so far, by (place, interface), frames with their headers.

    Each cable is read at its end `b`, which also counts what came from `a`: so the fabric tells nearly all.
    """
    by_place: dict[str, list[Cable]] = {}
    for cable in record.network.cables:
        by_place.setdefault(cable.b.place, []).append(cable)
    carried: dict[tuple[str, str], int] = {}
    for place, cables in by_place.items():
        statistics = inside.with_netlink(record.namespace(place), _statistics)
        for cable in cables:
            sent, received = statistics[cable.b.name]
            carried[cable.b.place, cable.b.name] = sent
            carried[cable.a.place, cable.a.name] = received
    return carried


def _statistics(netlink: IPRoute) -> dict[str, tuple[int, int]]:
    """Return (sent, received) bytes of every interface."""
    statistics = {}
    for link in netlink.get_links():
        counted = link.get("stats64")
        statistics[str(link.get("ifname"))] = (int(counted["tx_bytes"]), int(counted["rx_bytes"]))
    return statistics


def link_bytes(record: Record) -> dict[int, float]:
    """Return the bytes that every link of the graph carried so far, as far as the lab has it."""
    carried = read_ports(record)
    total: dict[int, float] = dict.fromkeys(record.network.links, 0.0)
    for port in record.network.ports():
        for link, share in port.links.items():
            total[link] += carried[port.place, port.name] * share
    return total


def wire_bytes(payload_L: FloatArray, reverse_L: FloatArray) -> FloatArray:
    """Return the bytes [L] that links carry for payloads, by the model above.

    Args:
        payload_L: bytes that programs send over each link, summed over pairs.
        reverse_L: bytes that the same pairs send the other way, back to those who sent over the link.
    """
    headers = HEADER_BYTES / SEGMENT_BYTES
    return payload_L * (1 + headers) + reverse_L * headers / 2
