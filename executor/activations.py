"""The non-linearities of an expert, by name.

Shapes: N rows, I intermediate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from topologies.errors import unknown_name

GPT_OSS_ALPHA = 1.702  # slope of the sigmoid, and the largest absolute value of its inputs:
GPT_OSS_LIMIT = 7.0  # openai/gpt-oss, configuration `swiglu_limit`; transformers' GptOssExperts has both


@dataclass(frozen=True)
class Activation:
    """What stands between the two matrices of an expert.

    Attributes:
        gated: the first matrix has 2I rows (gate, then up) rather than I.
        apply: turns (N, 2I), or (N, I) where not gated, into (N, I).

    """

    gated: bool
    apply: Callable[[Tensor], Tensor]


def _swiglu(gate_up_N2I: Tensor) -> Tensor:
    gate_NI, up_NI = gate_up_N2I.chunk(2, dim=-1)
    return functional.silu(gate_NI) * up_NI


def _clamped_swiglu(gate_up_N2I: Tensor) -> Tensor:
    gate_NI, up_NI = gate_up_N2I.chunk(2, dim=-1)
    gate_NI = gate_NI.clamp(max=GPT_OSS_LIMIT)
    up_NI = up_NI.clamp(-GPT_OSS_LIMIT, GPT_OSS_LIMIT)
    return (up_NI + 1) * (gate_NI * (gate_NI * GPT_OSS_ALPHA).sigmoid())


ACTIVATIONS = {
    "swiglu": Activation(gated=True, apply=_swiglu),
    "clamped-swiglu": Activation(gated=True, apply=_clamped_swiglu),
    "gelu": Activation(gated=False, apply=functional.gelu),
}


def find_activation(name: str) -> Activation:
    """Return the activation of a name; raise BadInput with the known names otherwise."""
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]
