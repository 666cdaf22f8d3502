"""Held: the experts that one rank holds, in whatever form a module has them.

| form                        | tensors, S slots first                                                             |
|-----------------------------|------------------------------------------------------------------------------------|
| `PackedExperts`             | gate_up (S, 2I, H), down (S, H, I), and biases                                     |
| `ListedExperts`, ModuleList | a module each                                                                      |
| three matrices              | gate_w, up_w (S, H, I), down_w (S, I, H), as KempnerForge packs them; gate_w or    |
|                             | `_packed_activation`                                                               |
| Hugging Face                | gate_up_proj (S, 2I, H) or up_proj (S, I, H), down_proj (S, H, I), biases `*_bias`; |
|                             | with `is_transposed` the last two dimensions are the other way round; what stands  |
|                             | between the matrices is `_apply_gate` or `act_fn`                                  |

Shapes: S slots of this rank, N rows sorted by slot, H hidden, I intermediate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from executor.experts import (
    ListedExperts,
    PackedExperts,
    SlotRows,
    check_rows,
    linear_by_slot,
    select_modules,
    select_slots,
)
from executor.scaled_gradient import scaled
from topologies.errors import BadInput


@dataclass(frozen=True, eq=False)
class Part:
    """What one slot has of a parameter: its row `slot`, or all of it where that is None."""

    param: nn.Parameter
    slot: int | None

    def of(self, tensor: Tensor) -> Tensor:
        """Return the slot's share, a view, of a tensor shaped as the parameter: its value, gradient, or state."""
        return tensor if self.slot is None else tensor[self.slot]


class Held(Protocol):
    """The experts of one rank, slot by slot.

    Attributes:
        hidden, intermediate: H and I; None where the form does not say.

    """

    @property
    def hidden(self) -> int | None: ...  # noqa: D102

    @property
    def intermediate(self) -> int | None: ...  # noqa: D102

    @property
    def num_slots(self) -> int:
        """S."""

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all slots."""

    def parts(self, slot: int) -> dict[str, Part]:
        """Return what a slot has, by the names that its tensors have in the module."""

    def select(self, slots: Sequence[int]) -> None:
        """Keep only these slots, in this order, in new parameters; raises BadInput where one is not here, or twice."""

    def compute(self, x_NH: Tensor, rows: SlotRows, scale_S: Tensor | None = None) -> Tensor:
        """Return y_NH; the gradients of each slot's parameters, and of nothing else, are multiplied by `scale_S`."""


Weights = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class PackedHeld:
    """Experts in parameters of a module whose dimension 0 is the slot.

    Attributes:
        module: has the parameters.
        names: of them.
        apply: from the parameters, rows, and their division to the outputs of the rows.
        hidden, intermediate: H and I.

    """

    module: Any
    names: tuple[str, ...]
    apply: Callable[[Weights, Tensor, SlotRows], Tensor]
    hidden: int
    intermediate: int

    @property
    def num_slots(self) -> int:
        """See `Held`."""
        return len(getattr(self.module, self.names[0]))

    def parameters(self) -> list[nn.Parameter]:
        """See `Held`."""
        return [getattr(self.module, name) for name in self.names]

    def parts(self, slot: int) -> dict[str, Part]:
        """See `Held`."""
        return {name: Part(getattr(self.module, name), slot) for name in self.names}

    def select(self, slots: Sequence[int]) -> None:
        """See `Held`."""
        select_slots(self.module, self.names, slots)

    def compute(self, x_NH: Tensor, rows: SlotRows, scale_S: Tensor | None = None) -> Tensor:
        """See `Held`."""
        weights = {name: scaled(getattr(self.module, name), scale_S) for name in self.names}
        return self.apply(weights, x_NH, rows)


@dataclass(frozen=True, eq=False)
class ListedHeld:
    """Experts that are modules of their own, in the ModuleList `owner.experts`."""

    owner: Any
    hidden: None = None
    intermediate: None = None

    @property
    def num_slots(self) -> int:
        """See `Held`."""
        return len(self.owner.experts)

    def parameters(self) -> list[nn.Parameter]:
        """See `Held`."""
        return list(self.owner.experts.parameters())

    def parts(self, slot: int) -> dict[str, Part]:
        """See `Held`."""
        return {name: Part(param, None) for name, param in self.owner.experts[slot].named_parameters()}

    def select(self, slots: Sequence[int]) -> None:
        """See `Held`."""
        select_modules(self.owner, slots)

    def compute(self, x_NH: Tensor, rows: SlotRows, scale_S: Tensor | None = None) -> Tensor:
        """See `Held`."""
        experts: nn.ModuleList = self.owner.experts
        check_rows(x_NH, rows, len(experts))
        if not len(experts):
            return x_NH
        scales = [None] * len(experts) if scale_S is None else scale_S.unbind()
        parts = zip(experts, scales, x_NH.split_with_sizes(rows.counts), strict=True)
        return torch.cat([_called(expert, scale, x_CH) for expert, scale, x_CH in parts])


def _called(expert: nn.Module, scale: Tensor | None, x_CH: Tensor) -> Tensor:
    weights = {} if scale is None else {name: scaled(param, scale) for name, param in expert.named_parameters()}
    y_CH: Tensor = functional_call(expert, weights, (x_CH,)) if weights else expert(x_CH)
    return y_CH


def held_by(moe: Any) -> Held:
    """Return the experts of a module, which has them itself or as `moe.experts`; raises BadInput for other forms."""
    experts = getattr(moe, "experts", moe)
    if isinstance(experts, ListedExperts):
        return ListedHeld(experts)
    if isinstance(experts, nn.ModuleList):
        return ListedHeld(moe)
    if isinstance(experts, PackedExperts):
        return _ours(experts)
    if hasattr(experts, "up_w") and hasattr(experts, "down_w"):
        return _three_matrices(experts)
    if hasattr(experts, "down_proj") and (hasattr(experts, "gate_up_proj") or hasattr(experts, "up_proj")):
        return _hugging_face(experts)
    raise BadInput(
        f"{type(moe).__name__} has no experts of a known form: a ModuleList, PackedExperts, up_w with down_w (and"
        " gate_w), or gate_up_proj with down_proj"
    )


def _ours(experts: PackedExperts) -> PackedHeld:
    def apply(weights: Weights, x_NH: Tensor, rows: SlotRows) -> Tensor:
        y_NH: Tensor = functional_call(experts, dict(weights), (x_NH, rows))
        return y_NH

    _, hidden, intermediate = experts.down.shape
    return PackedHeld(experts, tuple(name for name, _ in experts.named_parameters()), apply, hidden, intermediate)


def _three_matrices(experts: Any) -> PackedHeld:
    gated = getattr(experts, "gate_w", None) is not None

    def apply(weights: Weights, x_NH: Tensor, rows: SlotRows) -> Tensor:
        up_NI = linear_by_slot(x_NH, rows, weights["up_w"].transpose(1, 2))
        if gated:
            inner_NI = functional.silu(linear_by_slot(x_NH, rows, weights["gate_w"].transpose(1, 2))) * up_NI
        else:
            inner_NI = experts._packed_activation(up_NI)
        return linear_by_slot(inner_NI, rows, weights["down_w"].transpose(1, 2))

    _, intermediate, hidden = experts.down_w.shape
    names = ("gate_w", "up_w", "down_w") if gated else ("up_w", "down_w")
    return PackedHeld(experts, names, apply, hidden, intermediate)


def _hugging_face(experts: Any) -> PackedHeld:
    gated, transposed = hasattr(experts, "gate_up_proj"), getattr(experts, "is_transposed", False)
    first = "gate_up_proj" if gated else "up_proj"

    def linear(weights: Weights, name: str, x_NA: Tensor, rows: SlotRows) -> Tensor:
        matrix = weights[name].transpose(1, 2) if transposed else weights[name]
        return linear_by_slot(x_NA, rows, matrix, weights.get(f"{name}_bias"))

    def apply(weights: Weights, x_NH: Tensor, rows: SlotRows) -> Tensor:
        inner_NI = _between(experts, linear(weights, first, x_NH, rows), gated)
        return linear(weights, "down_proj", inner_NI, rows)

    names = (first, f"{first}_bias", "down_proj", "down_proj_bias")
    held = tuple(name for name in names if getattr(experts, name, None) is not None)
    sizes = experts.down_proj.shape[1:]
    hidden, intermediate = reversed(sizes) if transposed else sizes
    return PackedHeld(experts, held, apply, hidden, intermediate)


def _between(experts: Any, inner_NF: Tensor, gated: bool) -> Tensor:
    """Return [N, I] from the outputs [N, 2I] (gate, then up) or [N, I] of the first matrix."""
    activation = getattr(experts, "act_fn", functional.silu)
    if not gated:
        inner_NI: Tensor = activation(inner_NF)
    elif hasattr(experts, "_apply_gate"):
        inner_NI = experts._apply_gate(inner_NF)
    else:
        gate_NI, up_NI = inner_NF.chunk(2, dim=-1)
        inner_NI = activation(gate_NI) * up_NI
    return inner_NI
