"""grouped_linear: each slot's rows times that slot's matrix, in one grouped GEMM or a loop, with its own backward.

`torch.nn.functional.grouped_mm` is not used under autograd as it is, for it refuses a gradient that is expanded (that
of `y.sum()`), and one build leaves values in the weight gradients of empty groups (pytorch#172439).

Shapes: N rows sorted by slot, S slots, A input and B output columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import grouped_mm

ALIGNMENT_BYTES = 16
"""Rows of every matrix must start at multiples of this many bytes."""

CPU_TYPES = (torch.float32, torch.bfloat16, torch.float16)
CUDA_TYPES = (torch.bfloat16,)
"""On CUDA the other types run inside torch as a loop that first reads the offsets back from the device."""


def grouped_linear(x_NA: Tensor, weight_SBA: Tensor, ends_S: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Return y_NB: `x @ weight[s].T` for the rows of each slot s.

    Args:
        x_NA: rows, those of slot 0 first.
        weight_SBA: one matrix a slot.
        ends_S: int32, on the device of x: the row after each slot's last.
        counts: rows of each slot, on the host; they sum to N.

    The weight always gets a gradient, of zeros where no rows came. One differentiation only.

    """
    y_NB: Tensor = _GroupedLinear.apply(x_NA, weight_SBA, ends_S, counts)  # type: ignore[no-untyped-call]  # torch ships it so
    return y_NB


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NA: Tensor, weight_SBA: Tensor, ends_S: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x_NA, weight_SBA, ends_S)
        ctx.counts = counts
        return _times_matrix(x_NA, weight_SBA.transpose(1, 2), ends_S, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NB: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x_NA, weight_SBA, ends_S = ctx.saved_tensors
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        grad_NB = grad_NB.contiguous()
        grad_x_NA = _times_matrix(grad_NB, weight_SBA, ends_S, ctx.counts) if needs_x else None
        grad_weight_SBA = _outer_products(grad_NB, x_NA, ends_S, ctx.counts) if needs_weight else None
        return grad_x_NA, grad_weight_SBA, None, None


def _times_matrix(x_NA: Tensor, matrix_SAB: Tensor, ends_S: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Return [N, B]: the rows of each slot times its matrix."""
    A, B = matrix_SAB.shape[1:]
    if not len(x_NA):
        return x_NA.new_empty(0, B)
    if runs_grouped(x_NA, A, B):
        return grouped_mm(x_NA.contiguous(), matrix_SAB, offs=ends_S)
    y_NB = x_NA.new_empty(len(x_NA), B)
    parts = zip(x_NA.split_with_sizes(counts), matrix_SAB, y_NB.split_with_sizes(counts), strict=True)
    for x_CA, matrix_AB, y_CB in parts:
        torch.mm(x_CA, matrix_AB, out=y_CB)
    return y_NB


def _outer_products(grad_NB: Tensor, x_NA: Tensor, ends_S: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Return [S, B, A]: the sum over the rows of each slot of `grad.T @ x`."""
    B, A = grad_NB.shape[1], x_NA.shape[1]
    if not len(x_NA):
        return x_NA.new_zeros(len(counts), B, A)
    if runs_grouped(x_NA, A, B):
        sums_SBA = grouped_mm(grad_NB.t(), x_NA.contiguous(), offs=ends_S)
        for slot in (slot for slot, count in enumerate(counts) if not count):
            sums_SBA[slot].zero_()
        return sums_SBA
    sums_SBA = x_NA.new_empty(len(counts), B, A)
    parts = zip(grad_NB.split_with_sizes(counts), x_NA.split_with_sizes(counts), sums_SBA, strict=True)
    for grad_CB, x_CA, sum_BA in parts:
        torch.mm(grad_CB.t(), x_CA, out=sum_BA)  # zeros where the slot has no rows
    return sums_SBA


def runs_grouped(x: Tensor, A: int, B: int) -> bool:
    """Return whether the grouped GEMM takes this type on this device with these widths; a loop does the others."""
    aligned = all(width * x.element_size() % ALIGNMENT_BYTES == 0 for width in (A, B))
    if x.is_cuda:
        return aligned and x.dtype in CUDA_TYPES and torch.cuda.get_device_capability(x.device) >= (8, 0)
    return aligned and x.dtype in CPU_TYPES
