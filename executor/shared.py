"""SharedExpert: the part of an MoE layer that every token visits, on the token's own rank.

Shapes: T tokens, H hidden, I intermediate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from executor.activations import find_activation


class SharedExpert(nn.Module):
    """A SwiGLU expert for all tokens; several shared experts are one of their joint width.

    Attributes:
        gate_up: H to 2I, the gate's columns first.
        down: I to H.
        gate: H to 1, whose sigmoid scales the output (Qwen2-MoE), or None.

    """

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        gated: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden, 2 * intermediate, bias=False, device=device, dtype=dtype)
        self.down = nn.Linear(intermediate, hidden, bias=False, device=device, dtype=dtype)
        self.gate = nn.Linear(hidden, 1, bias=False, device=device, dtype=dtype) if gated else None

    def forward(self, x_TH: Tensor) -> Tensor:
        """Return y_TH."""
        y_TH: Tensor = self.down(find_activation("swiglu").apply(self.gate_up(x_TH)))
        return y_TH if self.gate is None else y_TH * self.gate(x_TH).sigmoid()
