"""Checkpoints that know logical experts: saved under one plan and number of ranks, loaded under any other, bit for bit.

    save_checkpoint("step-1000", model, optimizer)      # on all ranks, by torch.distributed.checkpoint
    load_checkpoint("step-1000", model, optimizer)      # under another plan, on more ranks or fewer, or without any
    state = gather_state_dict(model)                    # on rank 0 under the names of the whole model:
    if rank == 0: model.save_pretrained(folder, state_dict=state)       # plain Hugging Face safetensors

An expert's tensors are kept one by one under `<layer>.experts.<expert>.<tensor>`, those of the optimizer likewise, and
a copy is kept once. All else is under its name in the model. Of an optimizer the state of each parameter is kept, not
its settings (learning rate and the like).

torch.distributed.checkpoint unpickles: load only what you have saved.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from executor.held import ListedHeld, PackedHeld, Part
from executor.moe_layers import MoELayer, find_moe_layers
from topologies.errors import BadInput

OPTIMIZER = "optimizer."
"""What all names of its state begin with."""


def save_checkpoint(path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Write the model, and the state of its optimizer, into the new folder `path`: whole, or not under that name.

    Every rank must call. Copies of an expert are taken to be equal (`executor.check_replicas_equal`).

    Raises:
        BadInput: there is something at `path`, or the model or the optimizer has what no checkpoint can hold.

    """
    path = Path(path)
    if path.exists():
        raise BadInput(f"{path} exists already; a checkpoint is written into a new folder")
    state = _tensors(model)
    if optimizer is not None:
        state |= _optimizer_tensors(_parts(model), optimizer)
    partial = path.with_name(f"{path.name}.partial")
    if _is_first():
        shutil.rmtree(partial, ignore_errors=True)  # of a job that was killed as it saved
    _barrier()
    with _one_process_is_meant():
        save(state, checkpoint_id=partial)
    if _is_first():
        partial.rename(path)
    _barrier()


def load_checkpoint(path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Read into the model, and its optimizer, what `save_checkpoint` wrote; every rank reads its own experts.

    Raises:
        BadInput: there is no checkpoint, or it lacks a tensor of the model, or has it in another shape.

    """
    path = Path(path)
    if not (path / ".metadata").is_file():
        raise BadInput(f"{path} holds no checkpoint of epplan (no file .metadata)")
    reader = FileSystemReader(path)
    found: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
    state = _tensors(model)
    if optimizer is not None:
        parts = _parts(model)
        _make_room(parts, optimizer, found)
        state |= _optimizer_tensors(parts, optimizer)
    _agree("".join(_unlike(state, found)[:1]), path)
    with _one_process_is_meant():
        load(state, storage_reader=reader)


def _unlike(state: Mapping[str, Tensor], found: Mapping[str, Any]) -> list[str]:
    """Return what the checkpoint lacks, or has in another shape."""
    unlike = []
    for key, tensor in state.items():
        if key == OPTIMIZER and key not in found:
            unlike.append("has no state of an optimizer: it was saved without")
        elif key not in found:
            unlike.append(f"has no {key}: it is of another model")
        elif found[key].size != tensor.shape:
            unlike.append(f"has {key} as {tuple(found[key].size)}, the model as {tuple(tensor.shape)}")
    return unlike


def _agree(problem: str, path: Path) -> None:
    """Raise BadInput on all ranks where one has a problem: each has other experts, and all must go on together."""
    problems = [problem]
    if dist.is_initialized():
        problems = [""] * dist.get_world_size()
        dist.all_gather_object(problems, problem)
    for one in filter(None, problems):
        raise BadInput(f"{path} {one}")


def _parts(model: nn.Module) -> dict[str, Part]:
    """Return all parameters of this rank by their logical names: those of experts slot by slot, the others whole."""
    parts: dict[str, Part] = {}
    layers = find_moe_layers(model)
    of_experts = {id(param) for layer in layers.values() for param in layer.held.parameters()}
    for name, param in model.named_parameters():
        if id(param) not in of_experts:
            parts[name] = Part(param, None)
    for name, layer in layers.items():
        if any(hasattr(param, "device_mesh") for param in layer.held.parameters()):
            raise BadInput(f"{name}: its experts are sharded tensors; such a model saves itself")
        for slot, expert in enumerate(layer.exchange.layout.my_experts):
            for part_name, part in layer.held.parts(slot).items():
                parts[f"{name}.experts.{expert}.{part_name}"] = part
    return parts


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return views of this rank's part of the model by their logical names, buffers included."""
    parts = _parts(model)
    tensors = {name: part.of(part.param.detach()) for name, part in parts.items()}
    return tensors | _shared_state(model)


def _shared_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what every rank has of the model's `state_dict`: all but the experts, under its names."""
    homes = tuple(f"{_home(model, layer)}." for layer in find_moe_layers(model).values())
    names = {id(param): name for name, param in model.named_parameters()}
    experts = {names[id(param)] for layer in find_moe_layers(model).values() for param in layer.held.parameters()}
    shared = {name: tensor for name, tensor in model.state_dict().items() if name not in experts}
    odd = [name for name in shared if name.startswith(homes) and name not in names.values()]
    if homes and odd:
        raise BadInput(f"{odd[0]}: a buffer of an expert; checkpoints hold parameters of experts only")
    return shared


def _home(model: nn.Module, layer: MoELayer) -> str:
    """Return the name of the module whose parameters are experts."""
    held = layer.held
    assert isinstance(held, (PackedHeld, ListedHeld))  # there are no others
    module: nn.Module = held.module if isinstance(held, PackedHeld) else held.owner.experts
    names: dict[int, str] = {id(one): name for name, one in model.named_modules()}
    return names[id(module)]


def _optimizer_tensors(parts: Mapping[str, Part], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return views of the optimizer's state by logical names: of each parameter's every tensor, and a mark."""
    tensors = {OPTIMIZER: torch.ones(())}  # plain SGD has no state, and is not to be taken for what was left out
    for name, part in parts.items():
        for what, value in optimizer.state.get(part.param, {}).items():
            if not isinstance(value, Tensor) or (value.ndim and value.shape != part.param.shape):
                raise BadInput(f"{name}: the optimizer's {what!r} is neither a number nor shaped as the parameter")
            tensors[f"{OPTIMIZER}{name}.{what}"] = part.of(value) if value.shape == part.param.shape else value
    return tensors


def _make_room(parts: Mapping[str, Part], optimizer: torch.optim.Optimizer, found: Mapping[str, Any]) -> None:
    """Give the optimizer the tensors that the checkpoint has for its parameters, as a first step would make them."""
    saved: dict[str, dict[str, Any]] = {}
    for key, entry in found.items():
        if key.startswith(OPTIMIZER):
            name, _, what = key.removeprefix(OPTIMIZER).rpartition(".")
            saved.setdefault(name, {})[what] = entry
    managed = {id(param) for group in optimizer.param_groups for param in group["params"]}
    for name, part in parts.items():
        if id(part.param) not in managed:
            continue
        for what, entry in saved.get(name, {}).items():
            whole = bool(len(entry.size)) or not part.param.ndim
            new = torch.zeros_like(part.param) if whole else torch.zeros((), dtype=entry.properties.dtype)
            optimizer.state[part.param].setdefault(what, new)


@torch.no_grad()
def gather_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return, on the first rank of the layers' group, the `state_dict` of the whole model on the CPU; {} on others.

    Every rank of the group must call. The names are those from before `apply_expert_parallel`.
    """
    first = all(layer.exchange.transport.rank == 0 for layer in find_moe_layers(model).values())
    state = {name: tensor.to("cpu", copy=True) for name, tensor in _shared_state(model).items()} if first else {}
    for layer in find_moe_layers(model).values():
        home = _home(model, layer)
        for what, rows in _gathered(layer):
            if isinstance(layer.held, PackedHeld):
                state |= {f"{home}.{what}": torch.stack(rows)} if rows else {}
            else:
                state |= {f"{home}.{expert}.{what}": row for expert, row in enumerate(rows)}
    return state


def _gathered(layer: MoELayer) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield each tensor of an expert by name: on rank 0 those of all experts, in order of ids; [] on other ranks."""
    layout, transport = layer.exchange.layout, layer.exchange.transport
    first_rank = dict(
        zip(layout.placement.expert_S[::-1].tolist(), layout.placement.rank_S[::-1].tolist(), strict=True)
    )
    mine = [slot for slot, expert in enumerate(layout.my_experts) if first_rank[expert] == layout.rank]
    parts = [layer.held.parts(slot) for slot in mine]
    shapes = {what: (part.of(part.param).shape, part.param.dtype) for what, part in parts[0].items()} if parts else {}
    told = transport.gather("experts of a checkpoint", ([layout.my_experts[slot] for slot in mine], shapes))
    experts = [expert for theirs, _ in told for expert in theirs]
    for what, (shape, dtype) in next(shapes for _, shapes in told if shapes).items():
        device = parts[0][what].param.device if parts else torch.device("cpu" if transport.runs_rounds else "cuda")
        empty = torch.empty(0, dtype=dtype, device=device)
        flat = torch.cat([empty, *(one[what].of(one[what].param).reshape(-1) for one in parts)])
        sends = [flat.numel(), *[0] * (transport.size - 1)]
        receives = [len(theirs) * shape.numel() if transport.rank == 0 else 0 for theirs, _ in told]
        rows = transport.all_to_all("experts of a checkpoint", flat, sends, receives).cpu().view(-1, *shape)
        yield what, [row for _, row in sorted(zip(experts, rows, strict=False), key=lambda pair: pair[0])]


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    """Silence torch where it warns that it runs in one process without torch.distributed."""
    with warnings.catch_warnings():
        if not dist.is_initialized():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield
