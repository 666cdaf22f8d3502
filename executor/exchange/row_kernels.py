"""Triton kernels for sums of rows, forward and backward: every row is read once, sums are kept in fp32.

torch's own `embedding_bag` reads one element a thread, sorts all indices again in its backward, and wants weights in
the type of the rows; a sum by `index_add_` rounds to bf16 after every row and, by its atomics, in another order at
every run. These kernels read 16 bytes a thread, add up in order, and give the same bits every time.

Needs Triton, which CUDA builds of torch bring; `executor.exchange.row_sums` asks `runs_on` first and has torch's path.

Shapes: N rows, H hidden, B bags, X entries of all bags.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Columns of a program: 16 bytes of bf16 for each of 128 threads."""


@triton.jit  # type: ignore[untyped-decorator]  # Triton ships no types for it
def _sum_rows(  # type: ignore[no-untyped-def]  # a kernel's arguments are pointers and numbers of Triton
    rows, row_of, first_of, weight_of, sums, bags, entries, hidden, weighted: tl.constexpr, block: tl.constexpr
):
    bag = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < hidden
    begin = tl.load(first_of + bag)
    end = tl.load(first_of + bag + 1, mask=bag + 1 < bags, other=entries)
    total = tl.zeros((block,), dtype=tl.float32)
    for entry in range(begin, end):
        row = tl.load(row_of + entry)
        part = tl.load(rows + row * hidden + column, mask=inside, other=0.0).to(tl.float32)
        if weighted:
            part *= tl.load(weight_of + entry).to(tl.float32)
        total += part
    tl.store(sums + bag * hidden + column, total.to(sums.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]  # as above
def _sum_rows_backward(  # type: ignore[no-untyped-def]  # as above
    grad_sums, rows, row_of, bag_of, weight_of, grad_rows, grad_weights, hidden, block: tl.constexpr
):
    entry = tl.program_id(0).to(tl.int64)
    row = tl.load(row_of + entry)
    bag = tl.load(bag_of + row)
    weight = tl.load(weight_of + entry).to(tl.float32)
    products = tl.zeros((block,), dtype=tl.float32)
    for start in range(0, hidden, block):
        column = start + tl.arange(0, block)
        inside = column < hidden
        grad = tl.load(grad_sums + bag * hidden + column, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(rows + row * hidden + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_rows + row * hidden + column, (weight * grad).to(grad_rows.dtype.element_ty), mask=inside)
        products += grad * value
    tl.store(grad_weights + entry, tl.sum(products, axis=0).to(grad_weights.dtype.element_ty))


def sum_rows(y_NH: Tensor, row_X: Tensor, first_B: Tensor, weight_X: Tensor | None) -> Tensor:
    """Return [B, H] in the type of `y_NH`: for each bag the sum of its rows, weighted where weights are given."""
    H, B, X = y_NH.shape[1], len(first_B), len(row_X)
    sum_BH = y_NH.new_empty(B, H)
    if sum_BH.numel():
        weights = row_X if weight_X is None else weight_X  # some pointer, which nobody reads then
        given = [one.contiguous() for one in (y_NH, row_X, first_B, weights)]
        with torch.cuda.device_of(y_NH):  # type: ignore[no-untyped-call]  # launches go to the current device
            _sum_rows[B, triton.cdiv(H, BLOCK)](*given, sum_BH, B, X, H, weighted=weight_X is not None, block=BLOCK)
    return sum_BH


def sum_rows_backward(
    grad_BH: Tensor, y_NH: Tensor, row_X: Tensor, bag_N: Tensor, weight_X: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients [N, H] and [X] of a weighted sum in which each of the N rows stands once."""
    grad_NH, grad_X = torch.empty_like(y_NH, memory_format=torch.contiguous_format), torch.empty_like(weight_X)
    if len(row_X):
        given = [one.contiguous() for one in (grad_BH, y_NH, row_X, bag_N, weight_X)]
        with torch.cuda.device_of(y_NH):  # type: ignore[no-untyped-call]  # as above
            _sum_rows_backward[(len(row_X),)](*given, grad_NH, grad_X, y_NH.shape[1], block=BLOCK)
    return grad_NH, grad_X
