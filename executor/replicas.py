"""Replicas in training: the copies of an expert get one gradient, and stay equal.

Each copy sees the tokens of its share, so its gradient is a part of the expert's. After backward the parts travel to
the expert's *home*, the rank of its first slot, are summed there in order of ranks, and the sum travels back: two
all-to-alls a layer, that every rank joins, also one that got no tokens. All copies then hold the same bits, and an
optimizer that looks at one element at a time (SGD, Adam) keeps them equal.

Shapes: R ranks, G slots of this rank, V values of one expert.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from executor.conformance import NotConforming, odd_ones
from executor.grad_norm import SquareSum, shards_of
from executor.held import Held, local
from executor.layout import LayerLayout
from executor.moe_layers import MoELayer, find_moe_layers
from executor.transport import Transport


@dataclass(frozen=True)
class _Copies:
    """The replicated experts of a layer, seen from one rank.

    Attributes:
        away: for each home rank, the slots of this rank whose expert lives there; own rank excluded.
        home: for each rank, the slots of this rank of whose experts that rank holds another copy; own rank excluded.

    """

    away: list[list[int]]
    home: list[list[int]]

    @classmethod
    def of(cls, layout: LayerLayout) -> _Copies:
        """Find them; both ends list the experts that they share in order of ids."""
        ranks_of: dict[int, list[int]] = {}
        for expert, rank in zip(layout.placement.expert_S.tolist(), layout.placement.rank_S.tolist(), strict=True):
            ranks_of.setdefault(expert, []).append(rank)
        away: list[list[int]] = [[] for _ in range(layout.num_ranks)]
        home: list[list[int]] = [[] for _ in range(layout.num_ranks)]
        for slot, expert in sorted(enumerate(layout.my_experts), key=lambda entry: entry[1]):
            first, *others = ranks_of[expert]
            if first != layout.rank:
                away[first].append(slot)
            else:
                for rank in others:
                    home[rank].append(slot)
        return cls(away, home)


@torch.no_grad()
def sum_replica_gradients(model: nn.Module) -> None:
    """Give all copies of an expert the sum of their gradients; call it after backward, on all ranks.

    Copies are those of the plan, and those on tp ranks that send their shares of one batch to experts of their own
    (FSDP2 has added these up already). Call it before gradients are clipped (`clip_grad_norm_`) and before the
    optimizer steps. With gradient accumulation once, after the last micro-batch. bf16 and fp16 gradients of the plan's
    copies are summed in fp32.
    """
    for layer in find_moe_layers(model).values():
        layout, transport = layer.exchange.layout, layer.exchange.transport
        sharers = layer.held.sharers
        if sharers is not None:
            for grads in _gradients_of_parameters(layer):
                dist.all_reduce(grads, group=sharers)
        if layout.num_slots > layout.num_experts:
            _sum_layer(_gradients(layer), _Copies.of(layout), transport)


def _sum_layer(grads: list[list[Tensor]], copies: _Copies, transport: Transport) -> None:
    """Sum the gradients of one layer; `grads[slot]` are views into the gradients of this rank's parameters."""
    parts = _exchange_slots(grads, copies.away, copies.home, transport, "replica gradients to their homes")
    totals: dict[int, Tensor] = {}
    for slots, values in zip(copies.home, parts, strict=True):  # ranks in order: the same bits every time
        for slot, value in zip(slots, values, strict=True):
            totals[slot] = (totals[slot] if slot in totals else _flat(grads[slot])) + value
    for slot, total in totals.items():
        _write(grads[slot], total)
    sums = _exchange_slots(grads, copies.home, copies.away, transport, "replica gradients from their homes")
    for slots, values in zip(copies.away, sums, strict=True):
        for slot, value in zip(slots, values, strict=True):
            _write(grads[slot], value)


def _exchange_slots(
    grads: list[list[Tensor]], sends: list[list[int]], receives: list[list[int]], transport: Transport, call: str
) -> list[list[Tensor]]:
    """Send the gradients of slots to ranks; return by rank the values [V] of the slots that come from there."""
    sizes = [sum(part.numel() for part in parts) for parts in grads]
    out = [sum(sizes[slot] for slot in slots) for slots in sends]
    back = [sum(sizes[slot] for slot in slots) for slots in receives]
    empty = _flat([part for parts in grads for part in parts][:1])[:0]
    packed = torch.cat([empty, *(_flat(grads[slot]) for slots in sends for slot in slots)])
    arrived = transport.all_to_all(call, packed, out, back).split_with_sizes(back)
    return [
        list(values.split_with_sizes([sizes[slot] for slot in slots]))
        for values, slots in zip(arrived, receives, strict=True)
    ]


def _flat(parts: list[Tensor]) -> Tensor:
    """Return the values of one expert in a row, in fp32 or, where they are wider, in fp64."""
    if not parts:
        return torch.empty(0)
    wide = torch.promote_types(parts[0].dtype, torch.float32)
    return torch.cat([part.reshape(-1).to(wide) for part in parts])


def _write(parts: list[Tensor], value: Tensor) -> None:
    for part, chunk in zip(parts, value.split_with_sizes([part.numel() for part in parts]), strict=True):
        part.copy_(chunk.view_as(part))


def _gradients_of_parameters(layer: MoELayer) -> list[Tensor]:
    """Return the gradients of the parameters of experts; zeros where backward has left none."""
    trained = [param for param in layer.held.parameters() if param.requires_grad]
    for param in trained:
        if param.grad is None:
            param.grad = torch.zeros_like(param)
    return [param.grad for param in trained if param.grad is not None]


def _gradients(layer: MoELayer) -> list[list[Tensor]]:
    """Return, slot by slot, views of the gradients of the experts; zeros where backward has left none."""
    _gradients_of_parameters(layer)
    held = layer.held
    return [
        [part.of(part.param.grad) for part in held.parts(slot).values() if part.param.grad is not None]
        for slot in range(held.num_slots)
    ]


@torch.no_grad()
def clip_grad_norm_(model: nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients so that their joint 2-norm is at most `max_norm`; return the norm before, in fp64.

    Call it on all ranks, after `sum_replica_gradients`. Each logical expert counts once, however many copies it has
    and wherever they are; so does each entry of what tensor parallelism or FSDP2 has sharded. Plain parameters count as
    they are on this rank (they are the same on every rank, once data parallelism has reduced them).
    """
    layers = find_moe_layers(model).values()
    of_experts = {id(param) for layer in layers for param in layer.held.parameters()}
    grads = [param.grad for param in model.parameters() if param.grad is not None]
    squares = SquareSum(grads[0].device if grads else torch.device("cpu"))
    for layer in layers:
        grads_of, spread, transport = _home_gradients(layer), layer.held.spread, layer.exchange.transport
        for name in [*spread, *sorted(grads_of.keys() - spread.keys())] or [""]:
            squares.add(grads_of.get(name, []), [transport, *spread.get(name, [])])
    for param in model.parameters():
        if param.grad is not None and id(param) not in of_experts:
            squares.add([local(param.grad)], shards_of(param.grad))
    norm = squares.total().sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for grad in grads:
        local(grad).mul_(scale.to(grad.dtype))
    return norm


def _home_gradients(layer: MoELayer) -> dict[str, list[Tensor]]:
    """Return the gradients of the slots that are the first of their expert, by names of tensors."""
    placement, first = layer.exchange.layout.placement, layer.exchange.layout.first_slot_R[layer.exchange.layout.rank]
    homes = set(np.unique(placement.expert_S, return_index=True)[1].tolist())
    grads: dict[str, list[Tensor]] = {}
    for slot in range(layer.held.num_slots):
        for name, part in layer.held.parts(slot).items():
            if first + slot in homes and part.param.grad is not None:
                grads.setdefault(name, []).append(part.of(part.param.grad))
    return grads


def check_replicas_equal(model: nn.Module) -> None:
    """Check on all ranks together that the copies of every expert hold the same bits.

    Raises NotConforming, on all ranks alike, that names layer, expert and ranks.
    """
    for name, layer in find_moe_layers(model).items():
        layout = layer.exchange.layout
        mine = {expert: _digest(layer.held, slot) for slot, expert in enumerate(layout.my_experts)}
        of_rank = layer.exchange.transport.gather("check of replicas", mine)
        for expert in range(layout.num_experts):
            digests = {rank: theirs[expert] for rank, theirs in enumerate(of_rank) if expert in theirs}
            odd = odd_ones(list(digests.values()))
            if odd:
                ranks = [list(digests)[i] for i in odd]
                raise NotConforming(
                    f"{name}: rank {ranks[0]}'s copy of expert {expert} differs from that of most ranks"
                )


def _digest(held: Held, slot: int) -> str:
    """Return a hash of one expert's weights."""
    values = (part.of(part.param).detach() for part in held.parts(slot).values())
    raw = (value.contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes() for value in values)
    return hashlib.sha256(b"".join(raw)).hexdigest()
