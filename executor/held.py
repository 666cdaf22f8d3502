"""Held: the experts that one rank holds, in whatever form a module has them (`executor.held_forms`).

Shapes: S slots of this rank, N rows sorted by slot, H hidden, I intermediate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.func import functional_call

from executor.expert_slices import Cut
from executor.experts import SlotRows, check_rows, select_modules, select_slots
from executor.grad_norm import shards_of
from executor.scaled_gradient import scaled
from executor.slices import Slice
from executor.transport import Transport


@dataclass(frozen=True, eq=False)
class Part:
    """What one slot has of a parameter: its row `slot`, or all of it where that is None.

    Attributes:
        param: plain, or sharded by FSDP2.
        slot: its row.
        cut: how tp ranks share the slot's tensor, or None.

    """

    param: nn.Parameter
    slot: int | None
    cut: Cut | None = None

    @property
    def slice(self) -> Slice:
        """What this rank has of the slot's whole tensor."""
        shape = list(self.param.shape if self.slot is None else self.param.shape[1:])
        if self.cut is not None:
            shape[self.cut.dim] *= self.cut.ranks.size
        here = Slice.all_of(shape) if self.cut is None else self.cut.of(Slice.all_of(shape))
        if isinstance(self.param, DTensor):
            (placement,), mesh = self.param.placements, self.param.device_mesh
            assert isinstance(placement, Shard)  # `apply_fsdp` has made it
            here = here.cut(placement.dim - 1, mesh.get_local_rank(), mesh.size())
        return here

    def of(self, tensor: Tensor) -> Tensor:
        """Return what this rank has of the slot, a view, of a tensor like the parameter: value, gradient, or state."""
        here = local(tensor)
        return here if self.slot is None else here[self.slot]


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part, a view, of a tensor that FSDP2 or tensor parallelism has sharded; others as they are."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


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

    @property
    def sharers(self) -> dist.ProcessGroup | None:
        """Ranks that hold these experts and send shares of one batch to them, where nothing else adds up gradients."""

    @property
    def spread(self) -> dict[str, list[Transport]]:
        """Groups of ranks, other than EP ranks, among which entries are divided, by names of tensors; {} for none."""

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
        cuts: how tp ranks share tensors of a slot, by name.

    """

    module: Any
    names: tuple[str, ...]
    apply: Callable[[Weights, Tensor, SlotRows], Tensor]
    hidden: int
    intermediate: int
    cuts: Mapping[str, Cut] = field(default_factory=dict)

    @property
    def num_slots(self) -> int:
        """See `Held`."""
        return len(getattr(self.module, self.names[0]))

    @property
    def sharers(self) -> dist.ProcessGroup | None:
        """See `Held`."""
        sharded = any(isinstance(param, DTensor) for param in self.parameters())
        return None if sharded else getattr(self.module, "sharers", None)

    @property
    def spread(self) -> dict[str, list[Transport]]:
        """See `Held`."""
        shared = {name: [cut.ranks] for name, cut in self.cuts.items()}
        return {name: shards_of(getattr(self.module, name)) + shared.get(name, []) for name in self.names}

    def parameters(self) -> list[nn.Parameter]:
        """See `Held`."""
        return [getattr(self.module, name) for name in self.names]

    def parts(self, slot: int) -> dict[str, Part]:
        """See `Held`."""
        return {name: Part(getattr(self.module, name), slot, self.cuts.get(name)) for name in self.names}

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

    @property
    def sharers(self) -> None:
        """See `Held`."""
        return None

    @property
    def spread(self) -> dict[str, list[Transport]]:
        """See `Held`."""
        return {}

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
