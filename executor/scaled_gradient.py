"""scaled: a weight whose gradient is multiplied on its way out, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def scaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    """Return the weight; its gradient will be multiplied by `scale`, one number or one for each slot."""
    if scale is None:
        return weight
    out: Tensor = _ScaledGradient.apply(weight, scale)  # type: ignore[no-untyped-call]  # torch ships it so
    return out


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        by_slot = scale.to(grad.dtype).view(-1, *[1] * (grad.ndim - 1))
        return (grad * by_slot).view_as(grad), None
