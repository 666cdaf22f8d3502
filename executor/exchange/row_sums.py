"""Spread rows over bags, sum the rows of bags, permute rows: each the gradient of another.

Copies of a token's row go to several places; what comes back from there is summed by token. Both ways the rows of one
token are a *bag*: `spread_rows` copies one row to all rows of its bag, `sum_rows` adds the rows of each bag up, and the
gradient of the one is the other. So no gradient is scattered with atomics: sums have one order, hence the same bits at
every run.

A sum is an embedding bag of torch: on a CPU it takes a third to a half of the time of index_add or bmm, forward and
backward (measured, docs/log.md), because the rows are never copied out first. On CUDA it is a kernel of ours.

Shapes: N rows, H hidden, B bags, X entries of a list of keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag


@dataclass(frozen=True, eq=False)
class Bags:
    """A division of rows into bags; each of the N rows stands in exactly one.

        rows      0  1  2  3  4           bag_N    1  0  1  2  0
        bags      {1 4}  {0 2}  {3}       row_N    1  4  0  2  3       first_B  0  2  4

    Attributes:
        bag_N: the bag of each row.
        row_N: the rows of all bags, bag after bag.
        first_B: where in `row_N` each bag begins; a bag may be empty.

    """

    bag_N: Tensor
    row_N: Tensor
    first_B: Tensor

    @classmethod
    def of(cls, bag_N: Tensor, num_bags: int) -> Bags:
        """Return the bags of rows that name theirs; in each, rows stand in order."""
        return cls(bag_N, torch.sort(bag_N, stable=True).indices, starts(counts(bag_N, num_bags)))


def spread_rows(x_BH: Tensor, bags: Bags) -> Tensor:
    """Return [N, H]: for each row that of its bag."""
    out: Tensor = _Spread.apply(x_BH, bags)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return out


def sum_rows(y_NH: Tensor, bags: Bags, weight_N: Tensor | None = None) -> Tensor:
    """Return [B, H]: for each bag the sum of its rows; `weight_N` are their weights in order of `bags.row_N`, or 1."""
    if has_kernels(y_NH):
        out: Tensor = _Summed.apply(y_NH, weight_N, bags)  # type: ignore[no-untyped-call]  # as above
        return out
    if not len(bags.first_B) or not len(bags.row_N):
        # no kernel of torch has an answer for nothing; the product keeps both inputs in the graph
        nothing = y_NH.sum() * 0 + (0 if weight_N is None else weight_N.sum().to(y_NH.dtype) * 0)
        return y_NH.new_zeros(len(bags.first_B), y_NH.shape[1]) + nothing
    weights = None if weight_N is None else weight_N.to(y_NH.dtype)
    return embedding_bag(bags.row_N, y_NH, bags.first_B, mode="sum", per_sample_weights=weights)


def has_kernels(y_NH: Tensor) -> bool:
    """Return whether kernels of ours sum these rows: on CUDA where Triton is there, but for fp64, which they lack."""
    return y_NH.is_cuda and y_NH.dtype in (torch.bfloat16, torch.float16, torch.float32) and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BH: Tensor, bags: Bags) -> Tensor:
        ctx.save_for_backward(bags.bag_N, bags.row_N, bags.first_B)
        return x_BH.index_select(0, bags.bag_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NH: Tensor) -> tuple[Tensor, None]:
        return sum_rows(grad_NH, Bags(*ctx.saved_tensors)), None


class _Summed(torch.autograd.Function):
    """`sum_rows` by the kernels of `executor.exchange.row_kernels`."""

    @staticmethod
    def forward(ctx: Any, y_NH: Tensor, weight_N: Tensor | None, bags: Bags) -> Tensor:
        from executor.exchange import row_kernels  # noqa: PLC0415 - needs Triton, which builds for CPUs lack

        ctx.save_for_backward(bags.bag_N, bags.row_N, *(() if weight_N is None else (y_NH, weight_N)))
        return row_kernels.sum_rows(y_NH, bags.row_N, bags.first_B, weight_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BH: Tensor) -> tuple[Tensor, Tensor | None, None]:
        from executor.exchange import row_kernels  # noqa: PLC0415 - as above

        bag_N, row_N, *weighted = ctx.saved_tensors
        if not weighted:
            return grad_BH.index_select(0, bag_N), None, None
        y_NH, weight_N = weighted
        return *row_kernels.sum_rows_backward(grad_BH, y_NH, row_N, bag_N, weight_N), None


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
