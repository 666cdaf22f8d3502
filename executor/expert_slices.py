"""Experts that tp ranks share: of every expert each has a slice of its intermediate dimension, and adds to a sum.

| tensor of a slot     | cut along                                                                                |
|----------------------|------------------------------------------------------------------------------------------|
| gate_up_proj (2I, H) | dimension 0: matching rows of gate and up, in two groups where one follows the other, in |
|                      | one where they take turns (gpt-oss)                                                      |
| gate_up_proj_bias    | the same                                                                                 |
| down_proj (H, I)     | dimension 1                                                                              |
| down_proj_bias       | not at all: every rank adds its share                                                    |

With `is_transposed` the two dimensions of a matrix are the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from executor.slices import Slice
from executor.transport import Transport


@dataclass(frozen=True, eq=False)
class Cut:
    """How the tensor of a slot is cut.

    Attributes:
        dim: dimension of the slot's tensor.
        groups: equal parts of it, of each of which every rank has a part.
        ranks: that share it.

    """

    dim: int
    groups: int
    ranks: Transport

    def of(self, whole: Slice) -> Slice:
        """Return what this rank has of a tensor."""
        return whole.cut(self.dim, self.ranks.rank, self.ranks.size, self.groups)


def cuts_of(experts: Any, gate: Callable[[Tensor], Tensor], ranks: Transport) -> dict[str, Cut]:
    """Return how the tensors of packed experts are cut; `gate` is what stands between the matrices."""
    columns = 1 if getattr(experts, "is_transposed", False) else 0
    groups = 2 if hasattr(experts, "gate_up_proj") and not takes_turns(gate) else 1
    first = "gate_up_proj" if hasattr(experts, "gate_up_proj") else "up_proj"
    cuts = {first: Cut(columns, groups, ranks), "down_proj": Cut(1 - columns, 1, ranks)}
    if getattr(experts, f"{first}_bias", None) is not None:
        cuts[f"{first}_bias"] = Cut(0, groups, ranks)
    return cuts


@torch.no_grad()
def takes_turns(gate: Callable[[Tensor], Tensor]) -> bool:
    """Return whether gate and up stand in turns (g0 u0 g1 u1), not one after the other: tried on four numbers."""
    plain = torch.full((1, 4), 0.5)
    other = plain.clone()
    other[0, 1] = 1.0  # u0, of which output 0 is made, or g1, of which output 1 is
    return bool((gate(plain) != gate(other))[0, 0])


def slice_parameters(experts: nn.Module, cuts: dict[str, Cut]) -> None:
    """Replace the parameters by this rank's slices of them."""
    for name, cut in cuts.items():
        param = experts.get_parameter(name)
        shifted = Cut(cut.dim + 1, cut.groups, cut.ranks)  # dimension 0 is the slot
        part = shifted.of(Slice.all_of(param.shape)).take(param.detach())
        experts.register_parameter(name, nn.Parameter(part, param.requires_grad))
