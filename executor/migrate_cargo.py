"""What an expert takes along when it moves: its parameters, and what the optimizer keeps for them.

A slot's tensors are seen as rows of bytes, one for each column of the layer's `Form`. Rows are views: who writes one
writes the parameter, or the optimizer's state. Where a rank keeps its number of slots, parameters stay the objects that
they were; else they are replaced, in the module and in the optimizer.

Shapes: S slots of this rank.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from executor.held import Held, ListedHeld, PackedHeld, Part, local
from topologies.errors import BadInput

Rows = list[Tensor]
"""One slot: uint8 views, one a column."""


@dataclass(frozen=True, eq=False)
class Kept:
    """The groups and the state of an optimizer, themselves; both empty where there is none."""

    groups: list[dict[str, Any]]
    state: dict[Any, dict[str, Any]]

    @classmethod
    def by(cls, optimizer: torch.optim.Optimizer | None) -> Kept:
        """Return those of an optimizer."""
        return cls([], {}) if optimizer is None else cls(optimizer.param_groups, optimizer.state)

    def group_of(self, param: nn.Parameter) -> int:
        """Return the number of a parameter's group; -1 where it has none."""
        found = (i for i, group in enumerate(self.groups) if any(one is param for one in group["params"]))
        return next(found, -1)


@dataclass(frozen=True)
class Column:
    """A tensor that every expert of a layer has: a parameter, or (`what`) what the optimizer keeps in its shape."""

    name: str
    what: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one expert."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Number:
    """What the optimizer keeps once for a parameter, as its count of steps; `dtype` is None where it is no tensor."""

    name: str
    what: str
    value: float | None
    dtype: torch.dtype | None
    on_cpu: bool

    def made(self, device: torch.device) -> Any:
        """Return it for a parameter on a device."""
        if self.dtype is None:
            return self.value
        return torch.tensor(self.value, dtype=self.dtype, device="cpu" if self.on_cpu else device)


@dataclass(frozen=True)
class Form:
    """What all experts of a layer have alike, on every rank.

    Attributes:
        columns: tensors that travel.
        numbers: of the optimizer; the same for all.
        groups: of each parameter by its name: the optimizer's group (-1: none), and whether it is trained.
        is_sharded: FSDP2 or tensor parallelism keeps a part of each expert here; the part travels.

    """

    columns: tuple[Column, ...]
    numbers: tuple[Number, ...]
    groups: tuple[tuple[str, int, bool], ...]
    is_sharded: bool

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert with its optimizer state."""
        return sum(column.row_bytes for column in self.columns)


def form_of(held: Held, kept: Kept) -> Form | None:
    """Return the form of this rank's experts; None where they are modules, and none is here.

    Raises:
        BadInput: they differ from one another, or something of them cannot travel.

    """
    slots = range(held.num_slots) if isinstance(held, ListedHeld) else (0,)
    forms = [_form_of_parts(held.parts(slot), kept) for slot in slots]
    odd = [slot for slot, form in enumerate(forms) if form != forms[0]]
    if odd:
        raise BadInput(f"its experts in slots 0 and {odd[0]} differ in shape, type, or what the optimizer keeps")
    return forms[0] if forms else None


def _form_of_parts(parts: Mapping[str, Part], kept: Kept) -> Form:
    columns, numbers, groups = [], [], []
    for name, part in parts.items():
        param = part.param
        groups.append((name, kept.group_of(param), param.requires_grad))
        for what, value in [("", param.detach()), *sorted(kept.state.get(param, {}).items())]:
            if isinstance(value, Tensor) and value.shape == param.shape:
                here = local(value)
                if not here.is_contiguous():
                    raise BadInput(f"{name}: {what or 'the parameter'} is stored with gaps, and cannot travel")
                shape = here.shape if part.slot is None else here.shape[1:]
                columns.append(Column(name, what, tuple(shape), here.dtype))
            else:
                numbers.append(_number(name, what, value))
    return Form(
        tuple(columns),
        tuple(numbers),
        tuple(groups),
        any(part.param is not local(part.param) for part in parts.values()),
    )


def _number(name: str, what: str, value: Any) -> Number:
    if isinstance(value, Tensor) and not value.ndim:
        return Number(name, what, value.item(), value.dtype, value.device.type == "cpu")
    if value is None or isinstance(value, (int, float)):
        return Number(name, what, value, None, on_cpu=True)
    raise BadInput(f"{name}: the optimizer's {what!r} is neither a number nor shaped as the parameter")


def rows_of(held: Held, kept: Kept, form: Form) -> list[Rows]:
    """Return the rows of every slot."""
    slots = []
    for slot in range(held.num_slots):
        parts = held.parts(slot)
        tensors = [(parts[column.name], column.what) for column in form.columns]
        whole = [(part, kept.state[part.param][what] if what else part.param.detach()) for part, what in tensors]
        slots.append([part.of(tensor).reshape(-1).view(torch.uint8) for part, tensor in whole])
    return slots


def resize(held: Held, kept: Kept, form: Form, num_slots: int) -> None:
    """Make room for this many slots; what they hold is not defined, but for the first ones of a list of modules."""
    if isinstance(held, PackedHeld):
        for name in held.names:
            old: nn.Parameter = getattr(held.module, name)
            new = nn.Parameter(old.detach().new_empty((num_slots, *old.shape[1:])), old.requires_grad)
            _carry_hooks(old, new)
            setattr(held.module, name, new)
            for group in kept.groups:
                group["params"] = [new if param is old else param for param in group["params"]]
            kept.state.pop(old, None)
            _give_state(kept, name, new, form)
        return
    assert isinstance(held, ListedHeld)  # there are no others
    experts = list(held.owner.experts)
    added = [_like(experts[0], kept, form) for _ in range(num_slots - len(experts))]
    held.owner.experts = nn.ModuleList(experts[:num_slots] + added)
    gone = {id(param) for module in experts[num_slots:] for param in module.parameters()}
    for group in kept.groups:
        group["params"] = [param for param in group["params"] if id(param) not in gone]
    for param in [param for param in kept.state if id(param) in gone]:
        del kept.state[param]


def _like(module: nn.Module, kept: Kept, form: Form) -> nn.Module:
    """Return a module with parameters of its own, which stand in the optimizer where those of the other one stand."""
    added = copy.deepcopy(module)
    for (name, old), new in zip(module.named_parameters(), added.parameters(), strict=True):
        new.grad = None
        _carry_hooks(old, new)
        group = kept.group_of(old)
        if group >= 0:
            kept.groups[group]["params"].append(new)
            _give_state(kept, name, new, form)
    return added


def _carry_hooks(old: Tensor, new: Tensor) -> None:
    """Give a parameter the hooks of the one that it follows, such as the mean over ranks with the same tokens."""
    for hook in (old._backward_hooks or {}).values():
        new.register_hook(hook)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for hook in (getattr(old, "_post_accumulate_grad_hooks", None) or {}).values():
        new.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]  # as above


def _give_state(kept: Kept, name: str, new: nn.Parameter, form: Form) -> None:
    """Give a parameter state of the layer's form: tensors that are not defined yet, and numbers."""
    tensors = {
        column.what: torch.empty_like(new, dtype=column.dtype, requires_grad=False)
        for column in form.columns
        if column.name == name and column.what
    }
    numbers = {one.what: one.made(new.device) for one in form.numbers if one.name == name}
    if tensors or numbers:
        kept.state[new] = tensors | numbers
