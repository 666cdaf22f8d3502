"""Gather, permute and sum rows, with the cheapest gradients that torch offers.

Shapes: N rows, H hidden, X entries of a list of rows, B bags (sums).

A weighted sum of rows is an embedding bag: on a CPU it takes a third to a half of the time of index_add or bmm, forward
and backward (measured, docs/log.md), because the rows are never copied out first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


def sum_rows(y_NH: Tensor, row_X: Tensor, first_B: Tensor, weight_X: Tensor | None = None) -> Tensor:
    """Return [B, H]: for each bag the sum of its rows, weighted where weights are given.

    Args:
        y_NH: rows.
        row_X: the rows of all bags, bag after bag.
        first_B: where in `row_X` each bag begins.
        weight_X: a weight for each entry, or None.

    """
    if not len(first_B) or not len(row_X):
        # no kernel has an answer for nothing; the product keeps both inputs in the graph
        nothing = y_NH.sum() * 0 + (0 if weight_X is None else weight_X.sum().to(y_NH.dtype) * 0)
        return y_NH.new_zeros(len(first_B), y_NH.shape[1]) + nothing
    weights = None if weight_X is None else weight_X.to(y_NH.dtype)
    return embedding_bag(row_X, y_NH, first_B, mode="sum", per_sample_weights=weights)


class _Permuted(torch.autograd.Function):
    """Rows in another order; the gradient is gathered by the inverse instead of scattered."""

    @staticmethod
    def forward(ctx: Any, x_NH: Tensor, order_N: Tensor, inverse_N: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_N)
        return x_NH.index_select(0, order_N)

    @staticmethod
    def backward(ctx: Any, grad_NH: Tensor) -> tuple[Tensor, None, None]:
        (inverse_N,) = ctx.saved_tensors
        return grad_NH.index_select(0, inverse_N), None, None


def permuted(x_NH: Tensor, order_N: Tensor, inverse_N: Tensor) -> Tensor:
    """Return `x_NH[order_N]` for a permutation and its inverse."""
    out: Tensor = _Permuted.apply(x_NH, order_N, inverse_N)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return out


def inverse_of(order_N: Tensor) -> Tensor:
    """Return the inverse of a permutation."""
    return torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N), device=order_N.device))


def starts(count_B: Tensor) -> Tensor:
    """Return where each of consecutive groups begins."""
    return count_B.cumsum(0) - count_B


def counts(key_X: Tensor, size: int) -> Tensor:
    """Return [size] how often each key occurs; unlike bincount it needs no host read."""
    return torch.zeros(size, dtype=torch.int64, device=key_X.device).scatter_add_(0, key_X, torch.ones_like(key_X))


def repeated(value_B: Tensor, count_B: Tensor, total: int) -> Tensor:
    """Return [total]: each value as often as its count says; `total` is known, so there is no host read."""
    return torch.repeat_interleave(value_B, count_B, output_size=total)
