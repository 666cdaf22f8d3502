"""Whole tensors on ranks that each compute a part of a sum: how their gradients stay those of one process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def summed_gradient(whole: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the tensor, which all ranks of a group have; the gradients of their uses will be summed over the group."""
    out: Tensor = _SummedGradient.apply(whole, group)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return out


def share_of(whole: Tensor, ranks: int) -> Tensor:
    """Return a rank's share of what is added once; its gradient is the sum's, which all ranks see alike."""
    out: Tensor = _Share.apply(whole, ranks)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return out


class _SummedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, whole: Tensor, ranks: int) -> Tensor:
        return whole / ranks

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
