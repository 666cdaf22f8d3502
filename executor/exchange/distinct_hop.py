"""One hop of an exchange that sends a token once to each target, however many of its experts are there.

Shapes: T rows to send from (tokens, or rows that arrived by an earlier hop), H hidden, R ranks, X pairs, P pairs that
are not masked, M rows sent, N rows received, Q pairs received.

With the rows travel their pairs: which row, which slot, and the routing weight, whose gradient travels back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from executor.exchange.dispatched import HopRows
from executor.exchange.row_sums import Bags, counts, inverse_of, repeated, spread_rows, starts, sum_rows
from executor.host import to_device
from executor.transport import Transport, exchanged


@dataclass(frozen=True)
class HopSizes:
    """Rows and pairs to and from every rank, known on the host."""

    rows_sent: Sequence[int]
    rows_received: Sequence[int]
    pairs_sent: Sequence[int]
    pairs_received: Sequence[int]

    @property
    def rows(self) -> HopRows:
        """The rows alone."""
        return HopRows(tuple(self.rows_sent), tuple(self.rows_received))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs that want to travel: the row each belongs to, its slot, and its weight."""

    row_X: Tensor
    slot_X: Tensor
    weight_X: Tensor


@dataclass(frozen=True, eq=False)
class Arrival:
    """What a hop brought: rows [N, H] in order of (source, row), and their pairs in order of rows.

    Attributes:
        x_NH, pairs: the rows and pairs.
        sizes: of the hop.
        sent: the rows that left the senders, by the row that each was; for the way back.

    """

    x_NH: Tensor
    pairs: Pairs
    sizes: HopSizes
    sent: Bags

    def bring_back(self, transport: Transport, call: str, y_NH: Tensor) -> Tensor:
        """Return [T, H] at the senders: the partial sums of all targets, added up by the row that was sent."""
        sizes = self.sizes
        (y_MH,) = exchanged(transport, call, (y_NH,), (sizes.rows_received,), (sizes.rows_sent,))
        return sum_rows(y_MH, self.sent)


@dataclass(frozen=True, eq=False)
class DistinctHop:
    """Pairs in order of (target, row), ready to send; worked out on the device, without their sizes on the host.

    Attributes:
        pairs, num_rows: what travels: pairs of rows 0..T-1.
        order_X: the order; pairs that are masked stand last.
        target_X, sent_row_X: in that order, the target of each pair and which of all sent rows is its row.
        rows_R: rows to each target; the last entry counts those of masked pairs.

    """

    pairs: Pairs
    num_rows: int
    order_X: Tensor
    target_X: Tensor
    sent_row_X: Tensor
    rows_R: Tensor

    @classmethod
    def of(cls, pairs: Pairs, target_X: Tensor, num_rows: int, num_ranks: int) -> DistinctHop:
        """Sort the pairs; target `num_ranks` marks a masked one."""
        key_X, order_X = torch.sort(target_X * max(num_rows, 1) + pairs.row_X, stable=True)
        target_X = target_X[order_X]
        new_X = torch.ones_like(key_X)
        new_X[1:] = key_X[1:] != key_X[:-1]
        rows_R = torch.zeros(num_ranks + 1, dtype=torch.int64, device=key_X.device).scatter_add_(0, target_X, new_X)
        return cls(pairs, num_rows, order_X, target_X, new_X.cumsum(0) - 1, rows_R)

    def send(self, transport: Transport, call: str, x_TH: Tensor, sizes: HopSizes) -> Arrival:
        """Send the rows, and with them their pairs."""
        P, M = sum(sizes.pairs_sent), sum(sizes.rows_sent)
        order_P, sent_row_P = self.order_X[:P], self.sent_row_X[:P]
        sent = Bags.of(order_P.new_zeros(M).scatter_(0, sent_row_P, self.pairs.row_X[order_P]), self.num_rows)
        place_P = sent_row_P - starts(self.rows_R)[self.target_X[:P]]
        label_P2 = torch.stack([place_P, self.pairs.slot_X[order_P]], dim=1).to(torch.int32)
        x_NH, label_Q2, weight_Q = exchanged(
            transport,
            call,
            (spread_rows(x_TH, sent), label_P2, self.pairs.weight_X.index_select(0, order_P)),
            (sizes.rows_sent, sizes.pairs_sent, sizes.pairs_sent),
            (sizes.rows_received, sizes.pairs_received, sizes.pairs_received),
        )
        place_Q, slot_Q = label_Q2.long().unbind(1)
        rows_R, pairs_R = to_device([sizes.rows_received, sizes.pairs_received], place_Q.device)
        row_Q = place_Q + repeated(starts(rows_R), pairs_R, len(place_Q))
        return Arrival(x_NH, Pairs(row_Q, slot_Q, weight_Q), sizes, sent)


@dataclass(frozen=True, eq=False)
class AtExperts:
    """Rows that reached their last rank, copied out to the slots of their pairs.

    Attributes:
        x_GH: the copies, in order of slots.
        copies: the copies of each row that arrived.
        weight_Q: routing weights of the copies, in order of those rows.

    """

    x_GH: Tensor
    copies: Bags
    weight_Q: Tensor

    @classmethod
    def of(cls, arrival: Arrival) -> AtExperts:
        """Copy each row to every slot that one of its pairs names, in order of slots."""
        pairs = arrival.pairs
        order_Q = torch.sort(pairs.slot_X, stable=True).indices
        first_N = starts(counts(pairs.row_X, len(arrival.x_NH)))
        copies = Bags(pairs.row_X[order_Q], inverse_of(order_Q), first_N)
        return cls(spread_rows(arrival.x_NH, copies), copies, pairs.weight_X)

    def partial_sums(self, y_GH: Tensor) -> Tensor:
        """Return [N, H]: the weighted sum of each row's outputs on this rank."""
        return sum_rows(y_GH, self.copies, self.weight_Q)
