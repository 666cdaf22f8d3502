"""The rate of a port, by the kernel's token buckets (htb): one queue, or one a rank that sends through it, in turn.

    port -- 1:1 rate of the wire -+- 1:10 packets of the first rank
                                  +- 1:11 packets of the second, and so on

Turns matter where a rank's NIC carries what its neighbours relay (PXN). In one queue, the rank could not even say that
it is ready to receive before all that is relayed has left; in a real NIC every transfer has a queue of its own.
Within one connection order must stay: where short packets may overtake long ones, the kernel takes the long ones, with
their older answers or time stamps, for an attack, and drops them (RFC 5961, RFC 7323).
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address

from pyroute2 import IPRoute

from executor.lab.rates import FRAME_BYTES, burst_bytes

ROOT, WIRE, FIRST_TURN = 0x10000, 0x10001, 0x10010  # handles 1:, 1:1, 1:10
SOURCE_OFFSET = 12  # of the source address in an IPv4 header
ETH_P_IP = 0x0800


def shape(netlink: IPRoute, index: int, bytes_per_s: float, queue_packets: int, turns: Sequence[str]) -> None:
    """Give a port its rate and its queues, one for each address in `turns`; with less than two, one for all."""
    netlink.tc("add", "htb", index=index, handle=ROOT, default=FIRST_TURN - ROOT)
    set_rate(netlink, index, bytes_per_s, turns, verb="add-class")
    for leaf, address in enumerate(turns or ("",), start=FIRST_TURN):
        netlink.tc("add", "pfifo", index=index, parent=leaf, limit=queue_packets)
        if leaf > FIRST_TURN:
            key = f"{int(IPv4Address(address)):#x}/0xffffffff+{SOURCE_OFFSET}"
            netlink.tc(
                "add-filter", "u32", index=index, parent=ROOT, prio=1, protocol=ETH_P_IP, target=leaf, keys=[key]
            )


def set_rate(
    netlink: IPRoute, index: int, bytes_per_s: float, turns: Sequence[str], verb: str = "change-class"
) -> None:
    """Set the rate of a port, which its queues share frame by frame.

    Next to nothing is a queue's own, so that all is lent by the wire, which thereby has one burst for all of them.
    """
    rate, burst, queues = int(bytes_per_s), burst_bytes(bytes_per_s), max(1, len(turns))
    own_rate, own_burst = max(1, rate // 100 // queues), FRAME_BYTES // queues
    classes = [(FIRST_TURN + queue, WIRE, own_rate, own_burst) for queue in range(queues)]
    for handle, parent, guaranteed, own in [(WIRE, ROOT, rate, burst), *classes]:
        netlink.tc(
            verb,
            "htb",
            index=index,
            handle=handle,
            parent=parent,
            rate=guaranteed,
            ceil=rate,
            burst=own,
            cburst=burst,
            quantum=FRAME_BYTES,
        )
