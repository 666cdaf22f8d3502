"""What an exchange puts on every link of the graph: bytes, as the executor sends them.

Shapes: R ranks, L directed links, H hops of a phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

from planner.exact_rows import HopTraffic
from planner.placement import FloatArray, IntArray
from topologies import Cluster, routes

LABEL_BYTES = 12  # of a pair that travels with its row: two int32 (row, slot) and a fp32 weight
PHASES = ("dispatch", "combine")
MESSAGE_BYTES = (190.0, 170.0)
"""What gloo adds to a message, with frames: on its way (preamble), and on the way back (that the receiver is ready).

Measured in the lab with single messages of 8 B to 100 kB: 147 to 228 bytes there, 171 to 174 bytes back.
"""
SIZE_BYTES = 8  # of a number in the exchange of sizes that comes before rows


@dataclass(frozen=True, eq=False)
class Links:
    """The links of a cluster, and which of them every pair of ranks uses.

    Attributes:
        cluster: the graph.
        policy: of its routes.

    """

    cluster: Cluster
    policy: str = "pxn"

    @cached_property
    def route_PL(self) -> csr_array:
        """[R * R, L]: the part of a transfer's bytes on each link."""
        return routes(self.cluster, self.policy)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Name of every link."""
        return tuple(f"{link.kind} {link.source} -> {link.target}" for link in self.cluster.links)

    @cached_property
    def kind_L(self) -> np.ndarray[tuple[int, ...], np.dtype[np.str_]]:
        """Kind of every link."""
        return np.array(self.cluster.link_kinds)

    @cached_property
    def touches_RL(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Whether bytes from or to a rank may cross a link."""
        R = self.cluster.num_ranks
        source_P, destination_P = np.divmod(np.arange(R * R), R)
        used_PL = self.route_PL.astype(bool).astype(np.int64)
        rows = [used_PL[(source_P == rank) | (destination_P == rank)].sum(axis=0) for rank in range(R)]
        return np.stack([np.asarray(row).ravel() for row in rows]) > 0

    def bytes_L(self, bytes_RR: FloatArray) -> FloatArray:
        """Return the bytes [L] on every link, for bytes between ranks; own rank does not count."""
        crossing_RR = bytes_RR * ~np.eye(len(bytes_RR), dtype=bool)
        loads: FloatArray = self.route_PL.T @ crossing_RR.ravel()
        return loads


def phase_bytes(traffic: Sequence[HopTraffic], row_bytes: float, phase: str) -> list[FloatArray]:
    """Return the bytes [R, R] of each all-to-all of a phase, in order; combine runs the hops backwards."""
    if phase == "dispatch":
        return [np.asarray(hop.rows_RR * row_bytes + hop.labels_RR * LABEL_BYTES, dtype=np.float64) for hop in traffic]
    return [np.asarray(hop.rows_RR.T * row_bytes, dtype=np.float64) for hop in reversed(traffic)]


def phase_messages(traffic: Sequence[HopTraffic], phase: str, num_slots: int) -> tuple[IntArray, FloatArray]:
    """Return the messages [R, R] of a phase, and the bytes [R, R] of sizes among them.

    A hop sends rows and, if it has them, labels and weights, each as one message where there are any; before a
    dispatch every rank tells every other how much will come (about a number for each of its slots).
    """
    R = len(traffic[0].rows_RR)
    messages_RR, sizes_RR = np.zeros((R, R), dtype=np.int64), np.zeros((R, R))
    for hop in traffic:
        rows_RR = hop.rows_RR if phase == "dispatch" else hop.rows_RR.T
        messages_RR += rows_RR > 0
        if phase == "dispatch":
            messages_RR += 2 * (hop.labels_RR > 0)
    if phase == "dispatch":
        messages_RR += 1
        sizes_RR += SIZE_BYTES * (1 + num_slots / R)
    return messages_RR, sizes_RR
