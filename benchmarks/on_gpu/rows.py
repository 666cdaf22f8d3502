"""What happens to rows beside the experts: routing, permute, weighted sum, packing of distinct rows.

Bytes are the fewest that must move: every row that is read once, every row that is written once.

Shapes: T tokens, K top_k, N rows (T * K), H hidden, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from benchmarks.on_gpu.ceilings import Ceilings
from benchmarks.on_gpu.clock import Clock
from benchmarks.on_gpu.shapes import Shape, routed_ids
from executor.exchange.dedup import pairs_of_tokens
from executor.exchange.distinct_hop import DistinctHop
from executor.exchange.row_sums import Bags, has_kernels, inverse_of, spread_rows, sum_rows
from executor.layout import contiguous_layout
from executor.router import Router, RouterConfig


def router_config(shape: Shape) -> RouterConfig:
    """Return the router of a shape."""
    return RouterConfig(
        shape.experts,
        shape.top_k,
        score="sigmoid" if shape.sigmoid else "softmax",
        num_groups=shape.groups,
        top_groups=shape.top_groups,
        group_score="top2" if shape.sigmoid else "max",
        correction_bias=shape.sigmoid,
    )


def measure_rows(
    clock: Clock, shapes: Iterable[Shape], dtype: torch.dtype, ceilings: Ceilings, tokens: int
) -> Iterator[dict[str, Any]]:
    """Yield a row for each shape and operation on `tokens` tokens, evenly routed to all experts."""
    for shape in shapes:
        for name, run, before, moved_bytes in _operations(shape, dtype, tokens, clock.device):
            us = clock.us(run, before)
            row: dict[str, Any] = {"model": shape.name, "operation": name, "tokens": tokens, "time_us": us}
            if moved_bytes:
                gbps = moved_bytes / us / 1e3
                row |= {"gbps": gbps, "of_copy_bandwidth": gbps / ceilings.copy_gbps}
            yield row


Operation = tuple[str, Callable[[], object], Callable[[], object] | None, int]


def _operations(shape: Shape, dtype: torch.dtype, tokens: int, device: torch.device) -> Iterator[Operation]:
    T, K, H = tokens, shape.top_k, shape.hidden
    row_bytes = H * dtype.itemsize
    ids_TK = torch.from_numpy(routed_ids(shape, T)).to(device)
    order_N = torch.sort(ids_TK.view(-1), stable=True).indices
    token_N = torch.div(order_N, K, rounding_mode="floor")
    bags = Bags(token_N, inverse_of(order_N), torch.arange(0, T * K, K, device=device))
    x_TH = torch.randn(T, H, device=device).to(dtype).requires_grad_()
    y_NH = torch.randn(T * K, H, device=device).to(dtype).requires_grad_()
    weights_N = torch.rand(T * K, device=device).to(dtype).requires_grad_()
    yield from _routing(shape, dtype, x_TH.detach())
    yield "permute", lambda: spread_rows(x_TH.detach(), bags), None, (T + T * K) * row_bytes
    yield "permute backward", *_backward(lambda: spread_rows(x_TH, bags), [x_TH]), (T + T * K) * row_bytes
    yield from _sums("weighted sum", lambda: sum_rows(y_NH, bags, weights_N), y_NH, weights_N, T)
    if has_kernels(y_NH):  # what stands in where Triton is missing
        yield from _sums(
            "weighted sum by torch",
            lambda: embedding_bag(bags.row_N, y_NH, bags.first_B, mode="sum", per_sample_weights=weights_N),
            y_NH, weights_N, T,
        )  # fmt: skip
        yield (
            "permute backward by torch",
            *_backward(lambda: x_TH.index_select(0, token_N), [x_TH]),
            (T + T * K) * row_bytes,
        )
    yield from _packing(shape, x_TH.detach(), ids_TK, row_bytes)


def _sums(name: str, run: Callable[[], Tensor], y_NH: Tensor, weights_N: Tensor, tokens: int) -> Iterator[Operation]:
    """Yield a weighted sum and its backward."""

    def without_graph() -> Tensor:
        with torch.no_grad():
            return run()

    row_bytes = y_NH.shape[1] * y_NH.itemsize
    yield name, without_graph, None, (tokens + len(y_NH)) * row_bytes
    # reads the gradients [T, H] and the rows [N, H] (for the weights), writes [N, H]
    yield f"{name} backward", *_backward(run, [y_NH, weights_N]), (tokens + 2 * len(y_NH)) * row_bytes


def _routing(shape: Shape, dtype: torch.dtype, x_TH: Tensor) -> Iterator[Operation]:
    router = Router(router_config(shape), shape.hidden, device=x_TH.device, dtype=dtype)

    def routed() -> object:
        with torch.no_grad():
            return router(x_TH)

    yield "routing", routed, None, 0


def _packing(shape: Shape, x_TH: Tensor, ids_TK: Tensor, row_bytes: int) -> Iterator[Operation]:
    """Yield the work of finding each token's distinct ranks, and of gathering a row for each."""
    layout = contiguous_layout(shape.experts, shape.ranks, 0)
    weights_TK = torch.ones(ids_TK.shape, device=x_TH.device)

    def packed() -> DistinctHop:
        pairs = pairs_of_tokens(layout, weights_TK, ids_TK)
        rank_X = layout.tables(x_TH.device).rank_S[pairs.slot_X]
        return DistinctHop.of(pairs, rank_X, len(x_TH), layout.num_ranks)

    hop = packed()
    row_M = torch.unique(hop.target_X * len(x_TH) + hop.pairs.row_X[hop.order_X]) % len(x_TH)
    yield "dedup packing", packed, None, 0
    yield "dedup gather", lambda: x_TH.index_select(0, row_M), None, (len(x_TH) + len(row_M)) * row_bytes


def _backward(run: Callable[[], Tensor], inputs: list[Tensor]) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the backward of a function, and what builds its graph anew before each time."""
    held: list[Tensor] = []
    grad = torch.randn_like(run().detach())

    def prepare() -> None:
        held[:] = [run()]

    return lambda: torch.autograd.grad(held[0], inputs, grad), prepare
