"""Balancing without a loss: the correction biases of routers follow the loads of their experts.

After Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts" (2024), as DeepSeek-V3 uses
it. Call `balance` once a step, next to the optimizer, never between a forward and its backward: under activation
checkpointing the forward is computed again, and must choose the same experts.

Shapes: L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from executor.moe import MoE
from topologies.errors import BadInput


@torch.no_grad()
def balance(layers: Iterable[MoE], coeff: float = 1e-3, group: dist.ProcessGroup | None = None) -> None:
    """Correct the bias of every layer by the pairs that its experts got since the last call.

    Args:
        layers: MoE layers whose routers have a correction bias, all with as many experts.
        coeff: size of a step (DeepSeek-V3: 1e-3).
        group: ranks whose counts are summed, in one collective; None where this rank has seen all tokens. Every rank
            then takes the same step.

    Raises:
        BadInput: a layer without a correction bias.

    """
    layers = list(layers)
    if not layers:
        return
    biases_LE = [_bias_of(layer) for layer in layers]
    count_LE = torch.stack([_load_of(layer, bias_E) for layer, bias_E in zip(layers, biases_LE, strict=True)])
    if group is not None:
        dist.all_reduce(count_LE, group=group)
    for layer, bias_E, count_E in zip(layers, biases_LE, count_LE, strict=True):
        bias_E.add_(bias_step(count_E, coeff))
        layer.load_E = None


def _bias_of(layer: MoE) -> Tensor:
    if layer.router.correction_bias is None:
        raise BadInput("a layer's router has no correction bias: give its RouterConfig correction_bias=True")
    return layer.router.correction_bias


def _load_of(layer: MoE, bias_E: Tensor) -> Tensor:
    return torch.zeros_like(bias_E, dtype=torch.int64) if layer.load_E is None else layer.load_E


def bias_step(count_E: Tensor, coeff: float) -> Tensor:
    """Return [E], fp32: coeff * sign(mean - count), re-centred so that the biases keep their mean."""
    count_E = count_E.double()
    step_E = coeff * torch.sign(count_E.mean() - count_E)
    return (step_E - step_E.mean()).float()
