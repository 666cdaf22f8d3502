"""The experts that one rank holds: packed matrices, or a list of modules.

Shapes: N rows at this rank, sorted by slot; S slots of this rank, H hidden, I intermediate; F rows of the first
matrix: 2I (gate, then up) or, where the activation is not gated, I.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from executor.activations import find_activation
from executor.grouped_mm import grouped_linear
from executor.host import to_device
from topologies.errors import BadInput


@dataclass(frozen=True, eq=False)
class SlotRows:
    """How the rows at a rank are divided among its slots.

    Attributes:
        counts: rows of each slot, on the host.
        ends_S: int32, on the device of the rows: the row after each slot's last.

    """

    counts: tuple[int, ...]
    ends_S: Tensor

    @classmethod
    def of(cls, counts: Iterable[int], device: torch.device | str = "cpu") -> SlotRows:
        """Return the division with these rows a slot."""
        counts = tuple(counts)
        return cls(counts, to_device(tuple(accumulate(counts)), device, torch.int32))

    @property
    def total(self) -> int:
        """N."""
        return sum(self.counts)


def linear_by_slot(x_NA: Tensor, rows: SlotRows, weight_SBA: Tensor, bias_SB: Tensor | None = None) -> Tensor:
    """Return y_NB: `x @ weight[s].T + bias[s]` for the rows of each slot s; in autocast's type under autocast."""
    check_rows(x_NA, rows, len(weight_SBA))
    device = x_NA.device.type
    if torch.is_autocast_enabled(device) and x_NA.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x_NA, weight_SBA = x_NA.to(dtype), weight_SBA.to(dtype)
    y_NB = grouped_linear(x_NA, weight_SBA, rows.ends_S, rows.counts)
    if bias_SB is None:
        return y_NB
    rows_S = rows.ends_S.diff(prepend=rows.ends_S.new_zeros(1))
    slot_N = torch.repeat_interleave(rows_S, output_size=len(x_NA))  # the size spares a read from the device
    return y_NB + bias_SB.to(y_NB.dtype)[slot_N]


class PackedExperts(nn.Module):
    """Experts of one shape in packed matrices, as Hugging Face and grouped GEMMs have them.

    Attributes:
        gate_up: (S, F, H), the first matrix of each slot: rows of the gate, then rows of up.
        down: (S, H, I), the second.
        gate_up_bias, down_bias: (S, F) and (S, H), or None.
        activation: a name of `executor.activations.ACTIVATIONS`.

    """

    def __init__(
        self,
        num_slots: int,
        hidden: int,
        intermediate: int,
        activation: str = "swiglu",
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        first = (2 if find_activation(activation).gated else 1) * intermediate

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(num_slots, *shape, device=device, dtype=dtype))

        self.gate_up, self.down = parameter(first, hidden), parameter(hidden, intermediate)
        self.gate_up_bias = parameter(first) if bias else None
        self.down_bias = parameter(hidden) if bias else None
        self.reset_parameters()

    @classmethod
    def of(
        cls,
        gate_up: Tensor,
        down: Tensor,
        activation: str = "swiglu",
        gate_up_bias: Tensor | None = None,
        down_bias: Tensor | None = None,
    ) -> PackedExperts:
        """Return experts that hold these tensors; one that is a Parameter is taken as it is, not copied."""
        slots, hidden, intermediate = down.shape
        experts = cls(slots, hidden, intermediate, activation, device="meta")
        if gate_up.shape != experts.gate_up.shape:
            raise BadInput(
                f"gate_up has shape {tuple(gate_up.shape)}; with down {tuple(down.shape)} and activation"
                f" {activation!r} it must be {tuple(experts.gate_up.shape)}"
            )
        given = {"gate_up": gate_up, "down": down, "gate_up_bias": gate_up_bias, "down_bias": down_bias}
        for name, tensor in given.items():
            if tensor is not None:
                whole = isinstance(tensor, nn.Parameter)
                setattr(experts, name, tensor if whole else nn.Parameter(tensor, tensor.requires_grad))
        return experts

    def reset_parameters(self) -> None:
        """Draw matrices as `nn.Linear` does, uniform in +-1/sqrt(columns); biases are zero."""
        for matrix_SBA in (self.gate_up, self.down):
            bound = matrix_SBA.shape[-1] ** -0.5
            nn.init.uniform_(matrix_SBA, -bound, bound)
        for bias_SB in (self.gate_up_bias, self.down_bias):
            if bias_SB is not None:
                nn.init.zeros_(bias_SB)

    @property
    def num_slots(self) -> int:
        """S."""
        return len(self.down)

    def forward(self, x_NH: Tensor, rows: SlotRows) -> Tensor:
        """Return y_NH: each row through the expert of its slot; parameters without rows get gradients of zeros."""
        inner_NF = linear_by_slot(x_NH, rows, self.gate_up, self.gate_up_bias)
        inner_NI = find_activation(self.activation).apply(inner_NF)
        return linear_by_slot(inner_NI, rows, self.down, self.down_bias)

    def select(self, slots: Sequence[int]) -> None:
        """Keep only these experts, in this order: `gate_up[i]` becomes what `gate_up[slots[i]]` was.

        Parameters are replaced by new ones, which an optimizer must be told; type, device and requires_grad stay.

        Raises:
            BadInput: an expert that is not here, or one named twice.

        """
        select_slots(self, [name for name, _ in self.named_parameters()], slots)

    def extra_repr(self) -> str:
        """Return the sizes for print()."""
        slots, hidden, intermediate = self.down.shape
        return f"slots={slots}, hidden={hidden}, intermediate={intermediate}, activation={self.activation}"


class ListedExperts(nn.Module):
    """Experts that are modules of their own, each from (rows, H) to (rows, H).

    Attributes:
        experts: module of each slot.

    """

    def __init__(self, experts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.experts = experts if isinstance(experts, nn.ModuleList) else nn.ModuleList(experts)

    @property
    def num_slots(self) -> int:
        """S."""
        return len(self.experts)

    def forward(self, x_NH: Tensor, rows: SlotRows) -> Tensor:
        """Return y_NH; an expert without rows is called on none, so that its parameters get gradients of zeros."""
        check_rows(x_NH, rows, self.num_slots)
        if not self.num_slots:
            return x_NH
        parts = zip(self.experts, x_NH.split_with_sizes(rows.counts), strict=True)
        return torch.cat([expert(x_CH) for expert, x_CH in parts])

    def select(self, slots: Sequence[int]) -> None:
        """Keep only these experts, in this order: `experts[i]` becomes what `experts[slots[i]]` was.

        Raises:
            BadInput: an expert that is not here, or one named twice.

        """
        select_modules(self, slots)


def check_rows(x_NH: Tensor, rows: SlotRows, num_slots: int) -> None:
    """Raise BadInput where rows, their division and the slots do not fit together."""
    if len(rows.counts) != num_slots:
        raise BadInput(f"rows are divided among {len(rows.counts)} slots, but this rank holds {num_slots} experts")
    if rows.total != len(x_NH):
        raise BadInput(f"rows of the slots sum to {rows.total}, but {len(x_NH)} rows are here")


def select_slots(module: nn.Module, names: Sequence[str], slots: Sequence[int]) -> None:
    """Replace parameters of a module, whose dimension 0 is the slot, by these slots of theirs; errors of `select`."""
    check_selection(slots, len(getattr(module, names[0])))
    for name in names:
        old: nn.Parameter = getattr(module, name)
        kept = old.detach()[torch.tensor(slots, dtype=torch.int64, device=old.device)]
        setattr(module, name, nn.Parameter(kept, old.requires_grad))


def select_modules(owner: Any, slots: Sequence[int]) -> None:
    """Replace the ModuleList `owner.experts` by these modules of it, numbered from 0; errors of `select`."""
    check_selection(slots, len(owner.experts))
    owner.experts = nn.ModuleList(owner.experts[slot] for slot in slots)


def check_selection(slots: Sequence[int], num_slots: int) -> None:
    """Raise BadInput where a slot is not in 0..num_slots-1 or is named twice."""
    for slot in slots:
        if not 0 <= slot < num_slots:
            raise BadInput(f"expert {slot} is not in 0..{num_slots - 1}, the experts of this module")
    if len(set(slots)) < len(slots):
        twice = next(slot for slot in slots if list(slots).count(slot) > 1)
        raise BadInput(f"expert {twice} is named more than once: a rank holds at most one copy of an expert")
