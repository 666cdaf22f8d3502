"""Exchanges: differentiable all-to-alls that bring tokens to their experts and outputs back.

| module | what it holds |
|---|---|
| `pairwise` | one row for each (token, expert) pair |
| `dedup` | one row for each (token, destination rank) |
| `two_level`, `two_level_sizes` | one row for each (token, domain), forwarded inside the domain; how sizes are agreed |
| `distinct_hop` | one hop of the last two: rows once to each target, their pairs with them |
| `row_sums`, `row_kernels` | rows spread over bags, summed by bag, permuted; the sums as Triton kernels |
| `dispatched` | what all of them offer and return |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.exchange.dedup import DedupExchange
from executor.exchange.dispatched import Dispatched, Exchange, HopRows
from executor.exchange.pairwise import PairwiseExchange
from executor.exchange.two_level import TwoLevelExchange
from executor.layout import LayerLayout, contiguous_layout
from executor.transport import Transport
from topologies.errors import unknown_name

if TYPE_CHECKING:
    from planner import Plan

__all__ = ["Dispatched", "Exchange", "HopRows", "exchange_name", "local_exchange", "make_exchange"]

_EXCHANGES = {exchange.name: exchange for exchange in (PairwiseExchange, DedupExchange, TwoLevelExchange)}


def make_exchange(name: str, layout: LayerLayout, transport: Transport) -> Exchange:
    """Return the exchange of that name; raises BadInput where there is none."""
    if name not in _EXCHANGES:
        raise unknown_name("exchange", name, _EXCHANGES)
    return _EXCHANGES[name](layout, transport)


def exchange_name(asked: str | None, plan: Plan | None) -> str:
    """Return the exchange that is asked for, by default the plan's own, without a plan `pairwise`.

    Raises BadInput where there is none of that name, or the plan's is one that no executor runs.
    """
    from planner.timing import plain  # noqa: PLC0415 - needs pydantic, which a bare GPU machine has not

    name = asked or ("pairwise" if plan is None else plain(plan.exchange))
    if name not in _EXCHANGES:
        raise unknown_name("exchange", name, _EXCHANGES)
    return name


def local_exchange(num_experts: int) -> Exchange:
    """Return the exchange of a layer whose experts are all here: the same path, with nothing to send."""
    return PairwiseExchange(contiguous_layout(num_experts, 1, 0), Transport())
