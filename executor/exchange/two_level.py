"""Two-level exchange: one row for each (token, destination domain) over scale-out, forwarded inside the domain.

A token goes to the rank of the same rail in every domain that holds one of its experts, and from there once to each
rank that does. On the way back partial sums are added up by the forwarder, so that one row a domain returns.

Shapes: T tokens, K top_k, H hidden, R ranks, D domains, S slots of all ranks, X = T * K pairs;
U ranks of this domain, V slots of this domain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from executor.exchange.dedup import pairs_of_tokens
from executor.exchange.dispatched import Dispatched, HopRows
from executor.exchange.distinct_hop import Arrival, AtExperts, DistinctHop
from executor.exchange.row_sums import counts
from executor.exchange.two_level_sizes import TwoLevelSizes
from executor.experts import SlotRows
from executor.layout import LayerLayout
from executor.transport import Transport

if TYPE_CHECKING:
    from planner.timing import Exchange as ExchangeName


@dataclass(frozen=True, eq=False)
class _WayBack:
    outer: Arrival
    inner: Arrival
    at_experts: AtExperts


class TwoLevelExchange:
    """See `Exchange`."""

    name: ExchangeName = "two-level"

    def __init__(self, layout: LayerLayout, transport: Transport) -> None:
        """Store where the experts are, and the ranks."""
        self.layout, self.transport = layout, transport
        self.sizes = TwoLevelSizes(layout, transport)
        self.last_hops: dict[str, HopRows] | None = None

    def dispatch(self, x_TH: Tensor, weights_TK: Tensor, ids_TK: Tensor) -> Dispatched:
        """Send each token once to each domain, and there once to each rank, that holds one of its experts."""
        layout, tables = self.layout, self.layout.tables(x_TH.device)
        pairs = pairs_of_tokens(layout, weights_TK, ids_TK)
        out = DistinctHop.of(pairs, tables.forwarder_S[pairs.slot_X], len(x_TH), layout.num_ranks)
        rank_TK = tables.rank_S[pairs.slot_X].view(ids_TK.shape)
        visits_R = visits(rank_TK, layout.num_ranks)
        sizes = self.sizes.agree(out.rows_R[:-1], visits_R, counts(pairs.slot_X, layout.num_slots + 1)[:-1])
        outer = out.send(self.transport, "dispatch between domains", x_TH, sizes.outer)
        up = DistinctHop.of(outer.pairs, tables.rank_S[outer.pairs.slot_X], len(outer.x_NH), layout.num_ranks)
        inner = up.send(self.transport, "dispatch inside the domain", outer.x_NH, sizes.inner)
        at_experts = AtExperts.of(inner)
        self.last_hops = {"scale-out": sizes.outer.rows, "scale-up": sizes.inner.rows}
        rows = SlotRows.of(sizes.rows_by_slot, x_TH.device)
        return Dispatched(at_experts.x_GH, rows, self.last_hops, _WayBack(outer, inner, at_experts))

    def combine(self, y_NH: Tensor, dispatched: Dispatched) -> Tensor:
        """Sum on the rank of the experts, on the forwarder, and by token."""
        back: _WayBack = dispatched.way_back
        partial = back.at_experts.partial_sums(y_NH)
        partial = back.inner.bring_back(self.transport, "combine inside the domain", partial)
        return back.outer.bring_back(self.transport, "combine between domains", partial)


def visits(rank_TK: Tensor, num_ranks: int) -> Tensor:
    """Return [R] how many tokens visit each rank; `num_ranks` marks a masked pair."""
    visit_TR = torch.zeros(len(rank_TK), num_ranks + 1, dtype=torch.int64, device=rank_TK.device)
    return visit_TR.scatter_(1, rank_TK, 1).sum(dim=0)[:-1]
