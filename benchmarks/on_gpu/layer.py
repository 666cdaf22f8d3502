"""The whole EP layer on one rank, forward and backward: what it takes beyond its experts, and how often the host waits.

Shapes: T tokens, H hidden.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.on_gpu.clock import Clock
from benchmarks.on_gpu.rows import router_config
from benchmarks.on_gpu.shapes import Shape
from executor.exchange import make_exchange
from executor.experts import PackedExperts
from executor.layout import contiguous_layout
from executor.measure import PHASES, PhaseClock
from executor.moe import MoE
from executor.router import Router
from executor.transport import Transport

EXCHANGES = ("pairwise", "dedup")


def make_layer(shape: Shape, exchange: str, dtype: torch.dtype, device: torch.device) -> MoE:
    """Return a layer of the shape's router with the experts of one rank as all the experts there are.

    With E / R experts and the shape's top_k the rank has the rows of R tokens for each of its own, as in the group.
    """
    local = Shape(
        **(vars(shape) | {"experts": max(shape.slots, shape.top_k), "ranks": 1, "groups": 1, "top_groups": 1})
    )
    with torch.device(device):
        router = Router(router_config(local), shape.hidden, dtype=dtype)
        experts = PackedExperts(local.experts, shape.hidden, shape.intermediate, dtype=dtype)
    moe = MoE(router, experts)
    moe.exchange = make_exchange(exchange, contiguous_layout(local.experts, 1, 0), Transport())
    nn.init.normal_(moe.router.weight, std=0.02)
    return moe


def measure_layers(
    clock: Clock, shapes: Iterable[Shape], dtype: torch.dtype, tokens: int, operations: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each shape and exchange on `tokens` tokens.

    `operations` are the rows of `benchmarks.on_gpu.rows` for the same tokens: what is left of a forward when experts,
    permute and weighted sum are taken off is the layer's own.
    """
    for shape in shapes:
        moved = {one["operation"]: one["time_us"] for one in operations if one["model"] == shape.name}
        for exchange in EXCHANGES:
            moe = make_layer(shape, exchange, dtype, clock.device)
            row = _case(clock, moe, shape, exchange, tokens)
            if {"permute", "weighted sum"} <= moved.keys():
                needed_us = row["compute_us"] + moved["permute"] + moved["weighted sum"]
                row["beyond_experts_and_permutes"] = (row["forward_us"] - needed_us) / row["forward_us"]
            yield row
            del moe


def _case(clock: Clock, moe: MoE, shape: Shape, exchange: str, tokens: int) -> dict[str, Any]:
    dtype = moe.router.weight.dtype
    x_TH = torch.randn(tokens, shape.hidden, device=clock.device).to(dtype).requires_grad_()
    grad_TH = torch.randn_like(x_TH)
    held: list[Tensor] = []

    def forward() -> object:
        with torch.no_grad():
            return moe(x_TH)

    def prepare() -> None:
        x_TH.grad = None
        moe.zero_grad(set_to_none=True)
        held[:] = [moe(x_TH)]

    def backward() -> None:
        held[0].backward(grad_TH)

    row: dict[str, Any] = {"model": shape.name, "exchange": exchange, "tokens": tokens, "experts": moe.num_experts}
    row |= {"forward_us": clock.us(forward), "backward_us": clock.us(backward, prepare)}
    row |= {f"{phase}_us": us for phase, us in _phases(moe, forward, clock).items()}
    prepare()
    row |= {"forward_syncs": _host_syncs(forward, clock.device), "backward_syncs": _host_syncs(backward, clock.device)}
    return row


def _phases(moe: MoE, forward: Callable[[], object], clock: Clock) -> dict[str, float]:
    """Return the median of every phase of forward."""
    moe.clock = PhaseClock(clock.device)
    for _ in range(clock.warmup + clock.repeats):
        forward()
    spreads = moe.clock.spreads(clock.warmup)[False]
    moe.clock = None
    return {phase: spreads[phase].median_us for phase in PHASES if phase in spreads}


def _host_syncs(run: Callable[[], object], device: torch.device) -> int | None:
    """Return how often the host waits for the device; None where torch does not tell (on a CPU)."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(one.message) for one in caught)
