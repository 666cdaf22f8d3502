"""What a step asks of each rank: rows and active experts to compute, bytes to send and to receive.

Shapes: R ranks, T tokens of one rank, K top_k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.exact_rows import exact_rows, slots_of_rank
from planner.placement import FloatArray, IntArray, Placement
from planner.timing import Exchange


@dataclass(frozen=True, eq=False)
class Loads:
    """One layer and step, exact.

    Attributes:
        rows_R: token-expert pairs at each rank's experts.
        active_R: experts of each rank that get any.
        sent_R, received_R: rows to and from other ranks in a dispatch, all hops together.

    """

    rows_R: IntArray
    active_R: IntArray
    sent_R: IntArray
    received_R: IntArray

    def wire_bytes_R(self, row_bytes: float) -> FloatArray:
        """Return the bytes that each rank moves in a dispatch: the mean of what it sends and receives."""
        wire_bytes_R: FloatArray = row_bytes * (self.sent_R + self.received_R) / 2
        return wire_bytes_R


def loads_of(
    placement: Placement, ids_RTK: Sequence[IntArray], exchange: Exchange, domain_R: IntArray, rail_R: IntArray
) -> Loads:
    """Count what a placement makes of a step's routing; arguments as of `planner.exact_rows.exact_rows`."""
    slots = [slots_of_rank(placement, ids_TK, rank, domain_R) for rank, ids_TK in enumerate(ids_RTK)]
    rows_S = sum(np.bincount(slot_TK[slot_TK >= 0], minlength=len(placement.rank_S)) for slot_TK in slots)
    hops = exact_rows(placement, ids_RTK, exchange, domain_R, rail_R).values()
    crossing_RR = sum(rows_RR * ~np.eye(len(rows_RR), dtype=bool) for rows_RR in hops)
    R = placement.num_ranks
    return Loads(
        rows_R=np.bincount(placement.rank_S, weights=rows_S, minlength=R).astype(np.int64),
        active_R=np.bincount(placement.rank_S, weights=np.asarray(rows_S) > 0, minlength=R).astype(np.int64),
        sent_R=np.asarray(crossing_RR).sum(axis=1),
        received_R=np.asarray(crossing_RR).sum(axis=0),
    )
