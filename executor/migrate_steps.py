"""What is to be done in a migration, layer by layer, and that all ranks agree on it before anything moves.

Shapes: R ranks.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch.distributed as dist

from executor.agreement import check_hosts, check_same, check_told, layouts_in_order
from executor.conformance import odd_ones
from executor.exchange import exchange_name
from executor.layout import LayerLayout
from executor.migrate_cargo import Form, Kept, form_of
from executor.migrate_moves import Moves, moves_between
from executor.moe_layers import MoELayer, check_shape
from executor.transport import Transport
from planner import Plan
from topologies import BadInput, EpplanError


@dataclass(frozen=True, eq=False)
class Step:
    """One layer's part of a migration.

    Attributes:
        name, layer: of the model.
        old, new: layouts of this rank.
        form: of an expert.
        memory_bytes: that a rank may have on the way at once.

    """

    name: str
    layer: MoELayer
    old: LayerLayout
    new: LayerLayout
    form: Form
    memory_bytes: int

    @cached_property
    def moves(self) -> Moves:
        """Who fetches what from whom."""
        return moves_between(self.old, self.new)

    @cached_property
    def copied_R(self) -> list[list[tuple[int, int]]]:
        """For every rank, the slots (old, new) whose expert stays but is copied: to another slot, or to new tensors."""
        resized_R = [a != b for a, b in zip(self.old.slots_R, self.new.slots_R, strict=True)]
        return [
            [(a, b) for a, b in kept if resized or a != b]
            for kept, resized in zip(self.moves.kept_R, resized_R, strict=True)
        ]

    @cached_property
    def busiest(self) -> int:
        """Most experts that a rank has on the way: those it sends, fetches and copies."""
        on_way_R = [len(copied) for copied in self.copied_R]
        for move in self.moves.fetched:
            on_way_R[move.source] += 1
            on_way_R[move.rank] += 1
        return max(on_way_R)

    @property
    def chunks(self) -> list[range]:
        """The bytes of an expert, in ranges of which all that are on the way fit into the memory together."""
        if not self.busiest:
            return []
        total, width = self.form.expert_bytes, self.memory_bytes // self.busiest
        return [range(start, min(start + width, total)) for start in range(0, total, width)]


@dataclass(frozen=True, eq=False)
class _Told:
    """What a rank says before a migration."""

    problem: str
    memory_bytes: int
    exchange: str = ""
    host: str = field(default_factory=socket.gethostname)
    digests: Sequence[str] = ()
    forms: Sequence[Form | None] = ()


def agreed_steps(
    layers: Mapping[str, MoELayer],
    transport: Transport,
    plan: Plan,
    kept: Kept,
    memory_bytes: int,
    exchange: str | None = None,
) -> list[Step]:
    """Return what is to be done; raises BadInput on all ranks where the plan does not fit on one, or they differ."""
    problem, steps = "", []
    try:
        steps = _agreed_in_group(layers, transport, plan, kept, memory_bytes, exchange)
    except BadInput as error:
        problem = str(error)
    _agree_in_job(problem, plan, transport)
    return steps


def _agree_in_job(problem: str, plan: Plan, transport: Transport) -> None:
    """Raise BadInput on all ranks of the job where one group of EP ranks has a problem, or another plan."""
    if transport.group is not None and dist.get_world_size() > transport.size:
        told: list[Any] = [None] * dist.get_world_size()
        with transport.inside("check of the next plan"):
            dist.all_gather_object(told, (problem, hashlib.sha256(plan.to_json().encode()).hexdigest()))
        problem = problem or next((other for other, _ in told if other), "")
        odd = odd_ones([digest for _, digest in told])
        problem = problem or (f"rank {odd[0]} of the job has another plan than most" if odd else "")
    if problem:
        raise BadInput(problem)


def _agreed_in_group(
    layers: Mapping[str, MoELayer],
    transport: Transport,
    plan: Plan,
    kept: Kept,
    memory_bytes: int,
    exchange: str | None,
) -> list[Step]:
    layouts: list[LayerLayout] = []
    try:
        name = exchange_name(exchange, plan)
        layouts = _new_layouts(layers, transport, plan)
        forms = [_form_of(name, layer, kept) for name, layer in layers.items()]
        mine = _Told("", memory_bytes, f"exchange {name}", digests=[layout.digest() for layout in layouts], forms=forms)
    except EpplanError as error:
        mine = _Told(str(error), memory_bytes)
    told = transport.gather("check of the next plan", mine)
    check_told([one.problem for one in told], [one.digests for one in told])
    check_same([one.exchange for one in told])
    check_hosts(plan, [one.host for one in told])
    steps = []
    for index, ((name, layer), new) in enumerate(zip(layers.items(), layouts, strict=True)):
        old = layer.exchange.layout
        form = _agreed_form(name, [one.forms[index] for one in told], old.slots_R, new.slots_R)
        steps.append(Step(name, layer, old, new, form, min(one.memory_bytes for one in told)))
    for step in steps:
        if step.memory_bytes < step.busiest:
            raise BadInput(
                f"memory_bytes is {step.memory_bytes}; a byte of each expert that moves takes {step.busiest}"
            )
    return steps


def _new_layouts(layers: Mapping[str, MoELayer], transport: Transport, plan: Plan) -> list[LayerLayout]:
    layouts = layouts_in_order(list(layers), transport, plan)
    for (name, layer), layout in zip(layers.items(), layouts, strict=True):
        check_shape(name, layer, layout, plan)
        planned = len(layer.exchange.layout.my_experts)
        if layer.held.num_slots != planned:
            raise BadInput(f"{name}: holds {layer.held.num_slots} experts, the plan in force has {planned} here")
    return layouts


def _form_of(name: str, layer: MoELayer, kept: Kept) -> Form | None:
    try:
        return form_of(layer.held, kept)
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from error


def _agreed_form(name: str, forms: Sequence[Form | None], slots_R: Sequence[int], new_slots_R: Sequence[int]) -> Form:
    """Return the form of a layer's experts; ranks that hold none follow the others.

    Such a rank has empty parameters, of which its optimizer may know nothing yet, or no modules at all.
    """
    holders = [rank for rank, slots in enumerate(slots_R) if slots]
    odd = odd_ones([forms[rank] for rank in holders])
    if odd:
        raise BadInput(
            f"{name}: the experts of rank {holders[odd[0]]}, or what its optimizer keeps for them, differ in form from"
            " those of most ranks"
        )
    for rank, form in enumerate(forms):
        if form is None and new_slots_R[rank]:
            raise BadInput(
                f"{name}: its experts are modules, and rank {rank} holds none after which it could make the"
                f" {new_slots_R[rank]} that the plan wants there"
            )
    form = forms[holders[0]]
    assert form is not None  # a rank with slots has one
    changed = [rank for rank, (a, b) in enumerate(zip(slots_R, new_slots_R, strict=True)) if a != b]
    if form.is_sharded and changed:
        rank = changed[0]
        raise BadInput(
            f"{name}: its experts are sharded by FSDP2 or tensor parallelism, so the number of slots must stay: rank"
            f" {rank} has {slots_R[rank]}, the plan {new_slots_R[rank]}"
        )
    return form
