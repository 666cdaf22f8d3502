"""Dedup exchange: one row for each (token, destination rank); the receiver weights and sums, one row comes back.

Shapes: T tokens, K top_k, H hidden, R ranks, S slots of all ranks, G slots of this rank, X = T * K pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from executor.exchange.dispatched import Dispatched, HopRows
from executor.exchange.distinct_hop import Arrival, AtExperts, DistinctHop, HopSizes, Pairs
from executor.exchange.row_sums import counts
from executor.experts import SlotRows
from executor.host import to_device
from executor.layout import LayerLayout
from executor.transport import Transport

if TYPE_CHECKING:
    from planner.timing import Exchange as ExchangeName


@dataclass(frozen=True, eq=False)
class _WayBack:
    arrival: Arrival
    at_experts: AtExperts


class DedupExchange:
    """See `Exchange`."""

    name: ExchangeName = "dedup"

    def __init__(self, layout: LayerLayout, transport: Transport) -> None:
        """Store where the experts are, and the ranks."""
        self.layout, self.transport = layout, transport
        self.last_hops: dict[str, HopRows] | None = None

    def dispatch(self, x_TH: Tensor, weights_TK: Tensor, ids_TK: Tensor) -> Dispatched:
        """Send each token once to each rank that holds one of its experts."""
        pairs = pairs_of_tokens(self.layout, weights_TK, ids_TK)
        hop = DistinctHop.of(
            pairs, self.layout.tables(x_TH.device).rank_S[pairs.slot_X], len(x_TH), self.layout.num_ranks
        )
        sizes, rows_G = self._sizes(hop.rows_R, counts(pairs.slot_X, self.layout.num_slots + 1)[:-1])
        arrival = hop.send(self.transport, "dispatch", x_TH, sizes)
        at_experts = AtExperts.of(arrival)
        self.last_hops = {"dispatch": sizes.rows}
        return Dispatched(
            at_experts.x_GH, SlotRows.of(rows_G, x_TH.device), self.last_hops, _WayBack(arrival, at_experts)
        )

    def combine(self, y_NH: Tensor, dispatched: Dispatched) -> Tensor:
        """Sum on the rank of the experts, send the sums back, and add them up by token."""
        back: _WayBack = dispatched.way_back
        return back.arrival.bring_back(self.transport, "combine", back.at_experts.partial_sums(y_NH))

    def _sizes(self, rows_R: Tensor, count_S: Tensor) -> tuple[HopSizes, list[int]]:
        """Tell every rank how many rows, and pairs by slot, it will get; return the sizes and the rows by slot here."""
        layout, R = self.layout, self.layout.num_ranks
        mine = 1 + layout.slots_R[layout.rank]
        told = torch.cat([rows_R[:R], count_S])
        order = to_device(self._telling_order, told.device)
        heard = self.transport.all_to_all("dispatch sizes", told[order], [1 + g for g in layout.slots_R], [mine] * R)
        flat = torch.cat([told, heard]).cpu().numpy()
        told_rows, told_count_S, heard_RX = flat[:R], flat[R : len(told)], flat[len(told) :].reshape(R, mine)
        pairs_sent = np.bincount(layout.placement.rank_S, weights=told_count_S, minlength=R).astype(np.int64)
        sizes = HopSizes(
            rows_sent=told_rows.tolist(),
            rows_received=heard_RX[:, 0].tolist(),
            pairs_sent=pairs_sent.tolist(),
            pairs_received=heard_RX[:, 1:].sum(axis=1).tolist(),
        )
        return sizes, heard_RX[:, 1:].sum(axis=0).tolist()

    @cached_property
    def _telling_order(self) -> list[int]:
        """Order that brings [rows by rank, pairs by slot] into a block for each rank: its rows, then its slots."""
        R = self.layout.num_ranks
        first_R, slots_R = self.layout.first_slot_R, self.layout.slots_R
        blocks = [[rank, *range(R + first_R[rank], R + first_R[rank] + slots_R[rank])] for rank in range(R)]
        return [entry for block in blocks for entry in block]


def pairs_of_tokens(layout: LayerLayout, weights_TK: Tensor, ids_TK: Tensor) -> Pairs:
    """Return the pairs of this rank's tokens, in order of (token, k)."""
    T, K = ids_TK.shape
    row_X = torch.arange(T, device=ids_TK.device).repeat_interleave(K)
    return Pairs(row_X, layout.slot_of_pairs(ids_TK).view(-1), weights_TK.reshape(-1))
