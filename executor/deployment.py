"""Deployment: what a MoE layer of any kind has once its experts are spread over ranks, and its path through them.

Shapes: T tokens of this rank, K top_k, H hidden, S slots of this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from executor.exchange import Exchange
from executor.experts import SlotRows
from executor.held import Held
from executor.measure import PhaseClock, mark
from topologies.errors import EpplanError


class BadRouting(EpplanError):
    """A router gave ids that are no experts, or weights that are no numbers; names rank, layer and token."""

    exit_code = 1


class Recorder(Protocol):
    """Who wants to know the routing."""

    def record(self, ids_TK: Tensor) -> None:
        """Take the experts of T tokens, as routed, before any is dropped."""


class Deployed(Protocol):
    """What has an exchange and a clock."""

    exchange: Exchange
    clock: PhaseClock | None


def through_experts(
    layer: Deployed,
    compute: Callable[[Tensor, SlotRows], Tensor],
    x_TH: Tensor,
    weights_TK: Tensor,
    ids_TK: Tensor,
) -> Tensor:
    """Return [T, H]: tokens sent to their experts, computed there, brought back, weighted and summed; -1 masks."""
    x_TH = mark(layer.clock, x_TH, "routed")
    _check_routing(layer.exchange, weights_TK, ids_TK)
    dispatched = layer.exchange.dispatch(x_TH, weights_TK, ids_TK)
    x_NH = mark(layer.clock, dispatched.x_NH, "dispatched")
    y_NH = mark(layer.clock, compute(x_NH, dispatched.rows), "computed")
    return mark(layer.clock, layer.exchange.combine(y_NH, dispatched), "combined")


def _check_routing(exchange: Exchange, weights_TK: Tensor, ids_TK: Tensor) -> None:
    """Raise BadRouting, and tell the other ranks. On a GPU only under a guard: to look is to wait for the device."""
    layout, transport = exchange.layout, exchange.transport
    if weights_TK.is_cuda and transport.guard is None:
        return
    bad_TK = ~weights_TK.isfinite() | (ids_TK < -1) | (ids_TK >= layout.num_experts)
    if not bad_TK.any():
        return
    token, k = (int(one) for one in torch.nonzero(bad_TK)[0])
    why = (
        f"rank {layout.rank}, layer {layout.layer}: its router sends token {token} to expert {ids_TK[token, k].item()}"
        f" of 0..{layout.num_experts - 1} with weight {weights_TK[token, k].item():g}"
    )
    transport.give_up(why)
    raise BadRouting(why)


@dataclass(eq=False)
class Deployment:
    """What is hung on a module that others wrote, as `ep_deployment`.

    Attributes:
        exchange: brings tokens to their experts and back.
        recorder: told of every routing, or None.
        clock: times the phases after routing, or None.

    """

    exchange: Exchange
    recorder: Recorder | None = None
    clock: PhaseClock | None = None

    def run(
        self, held: Held, x_TH: Tensor, weights_TK: Tensor, ids_TK: Tensor, scale_S: Tensor | None = None
    ) -> Tensor:
        """Return [T, H], in the type of x: what the experts make of the tokens; -1 masks an entry.

        With `scale_S` the gradients of the experts' parameters are multiplied, slot by slot.
        """
        if self.recorder is not None:
            self.recorder.record(ids_TK)
        compute = partial(held.compute, scale_S=scale_S)
        return through_experts(self, compute, x_TH, weights_TK, ids_TK).to(x_TH.dtype)
