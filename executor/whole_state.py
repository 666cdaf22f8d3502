"""gather_state_dict: the state of a model that is spread over ranks, on one of them, as if it had never been spread."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from executor.held import ListedHeld, PackedHeld
from executor.moe_layers import MoELayer, find_moe_layers
from executor.slices import Slice
from topologies.errors import BadInput


@torch.no_grad()
def gather_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return, on the first rank of all, the `state_dict` of the whole model on the CPU; {} on others.

    Every rank must call. The names are those from before `apply_expert_parallel`, and so are all shapes: what tensor
    parallelism or FSDP2 has split is put together, a tensor at a time.
    """
    layers = find_moe_layers(model)
    first = _is_first(model)
    state = {}
    for name, tensor in shared_state(model).items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if first:
            state[name] = whole.to("cpu", copy=True)
    for layer in layers.values():
        home = home_of(model, layer)
        for what, rows in _gathered(layer):
            if not first or not rows:
                continue
            if isinstance(layer.held, PackedHeld):
                state[f"{home}.{what}"] = torch.stack(rows)
            else:
                state |= {f"{home}.{expert}.{what}": row for expert, row in enumerate(rows)}
    return state


def _is_first(model: nn.Module) -> bool:
    """Return whether this rank is the first of every group over which the model is spread."""
    layers = find_moe_layers(model).values()
    ranks = [layer.exchange.transport.rank for layer in layers]
    ranks += [transport.rank for layer in layers for among in layer.held.spread.values() for transport in among]
    for param in model.parameters():
        if isinstance(param, DTensor):
            ranks += param.device_mesh.get_coordinate() or []
    return not any(ranks)


def shared_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's `state_dict` without the experts, under its names; raises BadInput on buffers of experts."""
    homes = tuple(f"{home_of(model, layer)}." for layer in find_moe_layers(model).values())
    names = {id(param): name for name, param in model.named_parameters()}
    experts = {names[id(param)] for layer in find_moe_layers(model).values() for param in layer.held.parameters()}
    shared = {name: tensor for name, tensor in model.state_dict().items() if name not in experts}
    odd = [name for name in shared if name.startswith(homes) and name not in names.values()]
    if homes and odd:
        raise BadInput(f"{odd[0]}: a buffer of an expert; checkpoints hold parameters of experts only")
    return shared


def home_of(model: nn.Module, layer: MoELayer) -> str:
    """Return the name of the module whose parameters are experts."""
    held = layer.held
    assert isinstance(held, (PackedHeld, ListedHeld))  # there are no others
    module: nn.Module = held.module if isinstance(held, PackedHeld) else held.owner.experts
    names: dict[int, str] = {id(one): name for name, one in model.named_modules()}
    return names[id(module)]


def _gathered(layer: MoELayer) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield each tensor of an expert by name: on rank 0 those of all experts, in order of ids; [] on other ranks."""
    layout, transport = layer.exchange.layout, layer.exchange.transport
    first_rank = dict(
        zip(layout.placement.expert_S[::-1].tolist(), layout.placement.rank_S[::-1].tolist(), strict=True)
    )
    mine = [slot for slot, expert in enumerate(layout.my_experts) if first_rank[expert] == layout.rank]
    slots = _whole_slots(layer)
    parts = [slots[slot] for slot in mine]
    shapes = {what: (part.shape, part.dtype) for what, part in parts[0].items()} if parts else {}
    told = transport.gather("experts of a checkpoint", ([layout.my_experts[slot] for slot in mine], shapes))
    experts = [expert for theirs, _ in told for expert in theirs]
    for what, (shape, dtype) in next(shapes for _, shapes in told if shapes).items():
        device = parts[0][what].device if parts else transport.device
        empty = torch.empty(0, dtype=dtype, device=device)
        flat = torch.cat([empty, *(one[what].reshape(-1) for one in parts)])
        sends = [flat.numel(), *[0] * (transport.size - 1)]
        receives = [len(theirs) * shape.numel() if transport.rank == 0 else 0 for theirs, _ in told]
        rows = transport.all_to_all("experts of a checkpoint", flat, sends, receives).cpu().view(-1, *shape)
        yield what, [row for _, row in sorted(zip(experts, rows, strict=False), key=lambda pair: pair[0])]


def _whole_slots(layer: MoELayer) -> list[dict[str, Tensor]]:
    """Return the tensors of every slot of this rank, by name, with what other ranks have of them."""
    held = layer.held
    if isinstance(held, PackedHeld):
        wholes = {name: _whole(held, name) for name in held.names}
        return [{name: whole[slot] for name, whole in wholes.items()} for slot in range(held.num_slots)]
    parts = [held.parts(slot) for slot in range(held.num_slots)]
    return [{name: part.of(part.param.detach()) for name, part in one.items()} for one in parts]


def _whole(held: PackedHeld, name: str) -> Tensor:
    """Return one packed parameter [S, ...] without cuts."""
    param: Tensor = getattr(held.module, name).detach()
    here = (param.full_tensor() if isinstance(param, DTensor) else param).contiguous()
    if name not in held.cuts:
        return here
    dim, ranks = held.cuts[name].dim + 1, held.cuts[name].ranks  # dimension 0 is the slot
    theirs = [torch.empty_like(here) for _ in range(ranks.size)]
    dist.all_gather(theirs, here, group=ranks.group)
    shape = list(here.shape)
    shape[dim] *= ranks.size
    whole = here.new_empty(shape)
    for rank, part in enumerate(theirs):
        Slice.all_of(shape).cut(dim, rank, ranks.size, held.cuts[name].groups).put(whole, part)
    return whole
