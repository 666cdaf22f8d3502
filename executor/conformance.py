"""Conformance: what the executor moved is what the planner counts, row for row.

`check_deployed` runs once, after a plan is deployed: all ranks agree on the layout, and a probe of numbered tokens
arrives at the experts that it names and comes back. `Conformance` watches real steps: the rows measured on every
(source, destination) pair must equal `planner.exact_rows` for the step's routing, as integers.

Shapes: R ranks, T tokens, K top_k, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from executor.exchange import Dispatched, Exchange, HopRows
from executor.moe_layers import MoELayer
from executor.transport import Transport
from planner import Plan
from planner.exact_rows import exact_rows
from planner.placement import IntArray
from topologies import EpplanError


class NotConforming(EpplanError):
    """What runs is not the plan; the message names the rank."""

    exit_code = 1


@dataclass(frozen=True)
class LayerVerdict:
    """What was found for one layer.

    Attributes:
        layer: its index in the model.
        rows: rows that crossed between ranks in a dispatch, own rank excluded, all hops and ranks together.
        problems: differences, each naming a rank; none where the layer conforms.

    """

    layer: int
    rows: int
    problems: tuple[str, ...]


def check_deployed(layers: Mapping[str, MoELayer]) -> None:
    """Check on all ranks together that every layer has one layout, and that rows find their experts.

    Raises NotConforming, on all ranks alike, with the rank and the layer named.
    """
    transport = next(iter(layers.values())).exchange.transport
    digests = transport.gather("check of layouts", [layer.exchange.layout.digest() for layer in layers.values()])
    for name, digest_R in zip(layers, zip(*digests, strict=True), strict=True):
        _raise_first(name, _odd_layouts(digest_R))
    wrong = transport.gather("check of the probe", [_probe(layer) for layer in layers.values()])
    for name, wrong_R in zip(layers, zip(*wrong, strict=True), strict=True):
        _raise_first(name, [f"rank {rank} {what}" for rank, what in enumerate(wrong_R) if what])


def _raise_first(name: str, problems: Sequence[str]) -> None:
    if problems:
        raise NotConforming(f"{name}: {problems[0]}")


def odd_ones(values: Sequence[Any]) -> list[int]:
    """Return the ranks whose value is not the one that most ranks have; the lowest rank decides a draw."""
    usual = max(values, key=lambda value: (values.count(value), -values.index(value)))
    return [rank for rank, value in enumerate(values) if value != usual]


def _odd_layouts(digest_R: Sequence[str]) -> list[str]:
    return [f"rank {rank} has another layout than most ranks" for rank in odd_ones(digest_R)]


def _probe(layer: MoELayer) -> str:
    """Send tokens that carry the number of their only expert to all experts; return what goes wrong at this rank."""
    exchange, held = layer.exchange, layer.held
    E, mine = exchange.layout.num_experts, exchange.layout.my_experts
    elsewhere = "cpu" if exchange.transport.runs_rounds else "cuda"  # a list of no experts stands nowhere
    device = next((param.device for param in held.parameters()), torch.device(elsewhere))
    ids_TK = torch.arange(2 * E, device=device).remainder(E)[:, None]
    sent_TH = ids_TK.float()
    with torch.no_grad():
        dispatched = exchange.dispatch(sent_TH, torch.ones_like(sent_TH), ids_TK)
        back_TH = exchange.combine(dispatched.x_NH, dispatched)
    if held.num_slots != len(mine):
        return f"holds {held.num_slots} experts for {len(mine)} slots"
    arrived = [int(expert) for expert in dispatched.x_NH[:, 0].tolist()]
    if arrived != [expert for expert, rows in zip(mine, dispatched.rows.counts, strict=True) for _ in range(rows)]:
        return "received rows of other experts than its slots hold"
    return "" if torch.equal(back_TH, sent_TH) else "got back other rows than it had sent"


class _Watched:
    """An exchange that keeps the ids of its latest dispatch."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange, self.name = exchange, exchange.name
        self.layout, self.transport = exchange.layout, exchange.transport
        self.ids_TK: Tensor | None = None

    @property
    def last_hops(self) -> dict[str, HopRows] | None:
        return self.exchange.last_hops

    def dispatch(self, x_TH: Tensor, weights_TK: Tensor, ids_TK: Tensor) -> Dispatched:
        self.ids_TK = ids_TK
        return self.exchange.dispatch(x_TH, weights_TK, ids_TK)

    def combine(self, y_NH: Tensor, dispatched: Dispatched) -> Tensor:
        return self.exchange.combine(y_NH, dispatched)


class Conformance(AbstractContextManager["Conformance"]):
    """Watches the latest step of some MoE layers.

        with Conformance(find_moe_layers(model), plan) as watched:
            model(tokens)
        verdicts = watched.verdicts()       # on all ranks: two small collectives for all layers together

    Watching keeps a reference to the routed ids; nothing is counted before `verdicts` is asked for. The planned rows
    come from `plan`; without one, from the layouts that are in force.
    """

    def __init__(self, layers: Mapping[str, MoELayer], plan: Plan | None = None) -> None:
        """Store the layers."""
        self.layers, self.plan = layers, plan
        self._watched: list[_Watched] = []

    def __enter__(self) -> Conformance:
        """Start watching."""
        self._watched = [_Watched(layer.exchange) for layer in self.layers.values()]
        for layer, watched in zip(self.layers.values(), self._watched, strict=True):
            layer.exchange = watched
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching."""
        for layer, watched in zip(self.layers.values(), self._watched, strict=True):
            if layer.exchange is watched:  # else a migration has put another one into force
                layer.exchange = watched.exchange

    def verdicts(self) -> list[LayerVerdict]:
        """Compare measured and planned rows of the watched step, on all ranks together.

        Raises NotConforming where a layer has not run while it was watched.
        """
        idle = [name for name, watched in zip(self.layers, self._watched, strict=True) if watched.ids_TK is None]
        if idle or not self._watched:
            raise NotConforming(f"{idle[0] if idle else 'no layer'} has not run while it was watched")
        transport = self._watched[0].transport
        measured = [(one.layout.digest(), one.last_hops) for one in self._watched]
        of_rank = transport.gather("measured rows", measured)
        planned = self._planned(transport)
        return [
            _verdict(watched.layout.layer, [theirs[i] for theirs in of_rank], planned[i])
            for i, watched in enumerate(self._watched)
        ]

    def _planned(self, transport: Transport) -> list[dict[str, IntArray]]:
        """Return the rows [R, R] of each hop that the planner counts: each rank counts those its tokens cause."""
        own = [self._planned_here(watched) for watched in self._watched]
        flat = np.concatenate([rows_RR.ravel() for hops in own for rows_RR in hops.values()])
        device = self._watched[0].ids_TK.device if self._watched[0].ids_TK is not None else "cpu"
        total = transport.sum_over_ranks("planned rows", torch.from_numpy(flat).to(device)).cpu().numpy()
        parts = iter(np.split(total, total.size // transport.size**2))
        return [{hop: next(parts).reshape(transport.size, -1) for hop in hops} for hops in own]

    def _planned_here(self, watched: _Watched) -> dict[str, IntArray]:
        layout = watched.layout
        assert watched.ids_TK is not None  # `verdicts` has checked
        ids = [np.empty((0, watched.ids_TK.shape[1]), dtype=np.int64)] * layout.num_ranks
        ids[layout.rank] = watched.ids_TK.cpu().numpy()
        if self.plan is None:
            return exact_rows(layout.placement, ids, watched.name, layout.domain_R, layout.rail_R)
        index = [entry.layer for entry in self.plan.layers].index(layout.layer)
        where = self.plan.domain_of_rank, self.plan.rail_of_rank
        return exact_rows(self.plan.placement(index), ids, watched.name, *where)


def _verdict(
    layer: int, measured_R: Sequence[tuple[str, dict[str, HopRows]]], planned: dict[str, IntArray]
) -> LayerVerdict:
    """Lay the rows that every rank has measured beside the planned ones."""
    problems, crossing = _odd_layouts([digest for digest, _ in measured_R]), 0
    for hop, planned_RR in planned.items():
        sent_RR = np.array([hops[hop].sent_R for _, hops in measured_R])
        received_RR = np.array([hops[hop].received_R for _, hops in measured_R]).T
        crossing += int(sent_RR.sum() - np.trace(sent_RR))
        for verb, rows_RR in (("sent", sent_RR), ("received", received_RR)):
            for src, dst in np.argwhere(rows_RR != planned_RR).tolist():
                who, other = (src, f"to rank {dst}") if verb == "sent" else (dst, f"from rank {src}")
                problems.append(
                    f"rank {who} {verb} {rows_RR[src, dst]} rows {other} ({hop}), the plan says {planned_RR[src, dst]}"
                )
    return LayerVerdict(layer, crossing, tuple(problems))
