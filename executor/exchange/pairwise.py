"""Pairwise exchange: one row for each (token, expert) pair, one all-to-all each way; weights stay with the sender.

Shapes: T tokens, K top_k, H hidden, R ranks, S slots of all ranks, G slots of this rank, N rows at this rank,
X = T * K pairs, P pairs that are not masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from executor.exchange.dispatched import Dispatched, HopRows
from executor.exchange.row_sums import Bags, counts, inverse_of, permuted, repeated, spread_rows, starts, sum_rows
from executor.experts import SlotRows
from executor.layout import LayerLayout
from executor.transport import Transport, exchanged

if TYPE_CHECKING:
    from planner.timing import Exchange as ExchangeName


@dataclass(frozen=True, eq=False)
class _WayBack:
    """How outputs find their tokens.

    Attributes:
        order_N, inverse_N: from the order of arrival to that of slots; None where they are the same.
        bags: the rows of each token, as they leave the sender and as they come back.
        weight_P: routing weights of the rows, in order of (token, k).

    """

    order_N: Tensor | None
    inverse_N: Tensor | None
    bags: Bags
    weight_P: Tensor


class PairwiseExchange:
    """See `Exchange`."""

    name: ExchangeName = "pairwise"

    def __init__(self, layout: LayerLayout, transport: Transport) -> None:
        """Store where the experts are, and the ranks."""
        self.layout, self.transport = layout, transport
        self.last_hops: dict[str, HopRows] | None = None

    def dispatch(self, x_TH: Tensor, weights_TK: Tensor, ids_TK: Tensor) -> Dispatched:
        """Send a copy of each token to each of its experts, sorted by slot."""
        layout = self.layout
        slot_X = layout.slot_of_pairs(ids_TK).view(-1)
        order_X = torch.sort(slot_X, stable=True).indices
        count_S = counts(slot_X, layout.num_slots + 1)[:-1]
        arriving_RG = self._arriving(count_S)
        sends, received_RG = self._host_sizes(count_S, arriving_RG)
        receives: list[int] = received_RG.sum(axis=1).tolist()
        bags, weight_P = _token_bags(slot_X.view_as(ids_TK), order_X, sum(sends), weights_TK, layout)
        rows = spread_rows(x_TH, bags)
        (arrived_NH,) = exchanged(self.transport, "dispatch", (rows,), (sends,), (receives,))
        order_N, inverse_N = _slot_order(arriving_RG, sum(receives))
        x_NH = arrived_NH if order_N is None or inverse_N is None else permuted(arrived_NH, order_N, inverse_N)
        self.last_hops = {"dispatch": HopRows(tuple(sends), tuple(receives))}
        rows_of_slot = SlotRows.of(received_RG.sum(axis=0).tolist(), x_TH.device)
        return Dispatched(x_NH, rows_of_slot, self.last_hops, _WayBack(order_N, inverse_N, bags, weight_P))

    def combine(self, y_NH: Tensor, dispatched: Dispatched) -> Tensor:
        """Send outputs back and sum them by token."""
        back: _WayBack = dispatched.way_back
        hop = dispatched.hops["dispatch"]
        if back.order_N is not None and back.inverse_N is not None:
            y_NH = permuted(y_NH, back.inverse_N, back.order_N)
        (y_PH,) = exchanged(self.transport, "combine", (y_NH,), (hop.received_R,), (hop.sent_R,))
        return sum_rows(y_PH, back.bags, back.weight_P)

    def _arriving(self, count_S: Tensor) -> Tensor:
        """Return [R, G]: the rows that every rank sends to each slot of this one."""
        mine = self.layout.slots_R[self.layout.rank]
        receives = [mine] * self.layout.num_ranks
        flat = self.transport.all_to_all("dispatch sizes", count_S, self.layout.slots_R, receives)
        return flat.view(self.layout.num_ranks, mine)

    def _host_sizes(self, count_S: Tensor, arriving_RG: Tensor) -> tuple[list[int], np.ndarray]:
        """Return rows to every rank, and rows [R, G] from every rank to each slot here: the layer's only host read."""
        flat = torch.cat([count_S, arriving_RG.reshape(-1)]).cpu().numpy()
        sent_S, received_RG = np.split(flat, [len(count_S)])
        sends = np.bincount(self.layout.placement.rank_S, weights=sent_S, minlength=self.layout.num_ranks)
        return sends.astype(np.int64).tolist(), received_RG.reshape(tuple(arriving_RG.shape))


def _slot_order(arriving_RG: Tensor, total: int) -> tuple[Tensor | None, Tensor | None]:
    """Return the order that brings rows from (source, slot) to (slot, source), and its inverse; None where equal."""
    if min(arriving_RG.shape) <= 1:
        return None, None
    length = arriving_RG.t().reshape(-1)
    shift = starts(arriving_RG.reshape(-1)).view_as(arriving_RG).t().reshape(-1) - starts(length)
    order_N = torch.arange(total, device=arriving_RG.device) + repeated(shift, length, total)
    return order_N, inverse_of(order_N)


def _token_bags(
    slot_TK: Tensor, order_X: Tensor, sent: int, weights_TK: Tensor, layout: LayerLayout
) -> tuple[Bags, Tensor]:
    """Return the rows of each token, in order of k, among those sent (the first of `order_X`), and their weights."""
    T, K = slot_TK.shape
    pair_P = order_X[:sent]
    place_X, token_P = inverse_of(order_X), torch.div(pair_P, K, rounding_mode="floor")
    if sent == T * K:
        return Bags(token_P, place_X, torch.arange(0, T * K, K, device=slot_TK.device)), weights_TK.reshape(-1)
    kept_P = torch.sort(pair_P).values
    first_T = starts((slot_TK < layout.num_slots).sum(dim=1))
    return Bags(token_P, place_X[kept_P], first_T), weights_TK.reshape(-1)[kept_P]
