"""Checkpoints that know logical experts: saved under one plan and number of ranks, loaded under any other, bit for bit.

    save_checkpoint("step-1000", model, optimizer)      # on all ranks, by torch.distributed.checkpoint
    load_checkpoint("step-1000", model, optimizer)      # under another plan, on more ranks or fewer, or without any
    state = gather_state_dict(model)                    # on rank 0 under the names of the whole model:
    if rank == 0: model.save_pretrained(folder, state_dict=state)       # plain Hugging Face safetensors

An expert's tensors are kept one by one under `<layer>.experts.<expert>.<tensor>`, those of the optimizer likewise, and
a copy is kept once. All else is under its name in the model. What tensor parallelism or FSDP2 has split is written in
pieces and read back in others: the checkpoint does not know how many ranks there were. Of an optimizer the state of
each parameter is kept, not its settings (learning rate and the like).

torch.distributed.checkpoint unpickles: load only what you have saved.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from executor.held import Part
from executor.moe_layers import find_moe_layers
from executor.pieces import Pieces
from executor.transport import Transport
from executor.whole_state import shared_state
from topologies.errors import BadInput, EpplanError

OPTIMIZER = "optimizer."
"""What all names of its state begin with."""


class NotSaved(EpplanError):
    """A rank could not write its part of a checkpoint; the text names it and the cause."""

    exit_code = 1


def save_checkpoint(path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Write the model, and the state of its optimizer, into the new folder `path`: whole, or not under that name.

    Every rank must call. Copies of an expert are taken to be equal (`executor.check_replicas_equal`).

    Raises:
        BadInput: there is something at `path`, or the model or the optimizer has what no checkpoint can hold.
        NotSaved: on all ranks, one of them could not write; nothing is left.

    """
    path = Path(path)
    _agree("exists already; a checkpoint is written into a new folder" if path.exists() else "", path)
    state = _tensors(model)
    if optimizer is not None:
        state |= _optimizer_tensors(_parts(model), optimizer)
    partial = path.with_name(f"{path.name}.partial")
    transport = _transport(model)
    with transport.inside(f"saving {path.name}"):
        _remove(partial)  # of a job that was killed as it saved
        try:
            with _one_process_is_meant():
                save(state, storage_writer=_Writer(partial, transport))
        except CheckpointException as error:
            _remove(partial)
            raise NotSaved(f"{path} is not saved: {_first_failure(error)}") from error
        if _is_first():
            partial.rename(path)
        _barrier()


def _remove(partial: Path) -> None:
    if _is_first():
        shutil.rmtree(partial, ignore_errors=True)
    _barrier()


def _first_failure(error: CheckpointException) -> str:
    rank, (cause, _) = min(error.failures.items(), key=lambda failure: failure[0])
    return f"rank {rank} raised {type(cause).__name__}: {cause}"


class _Writer(FileSystemWriter):
    """Writes as torch does, but tells the other ranks when it is at its own part: a rank that hangs there is named."""

    def __init__(self, path: Path, transport: Transport) -> None:
        super().__init__(path)
        self.transport = transport

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        with self.transport.outside():
            return super().write_data(plan, planner)


def _transport(model: nn.Module) -> Transport:
    """Return what has a rank that is lost named, as in the exchanges of the model's layers."""
    transports = (layer.exchange.transport for layer in find_moe_layers(model).values())
    return next(transports, Transport())


def load_checkpoint(path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Read into the model, and its optimizer, what `save_checkpoint` wrote; every rank reads its own experts.

    Raises:
        BadInput: on all ranks, there is no checkpoint, it lacks a tensor of the model or has it in another shape, or
            it is damaged; in a file of tensors that shows late, and the model then holds a part of them.

    """
    path = Path(path)
    there = (path / ".metadata").is_file()  # on every rank? disks of hosts are not always shared
    _agree("" if there else "holds no checkpoint of epplan (no file .metadata)", path)
    reader = FileSystemReader(path)
    found, problem = _described(reader)
    _agree(problem, path)
    state = _tensors(model)
    if optimizer is not None:
        parts = _parts(model)
        _make_room(parts, optimizer, found)
        state |= _optimizer_tensors(parts, optimizer)
    _agree("".join(_unlike(state, found)[:1]), path)
    with _transport(model).inside(f"loading {path.name}"), _one_process_is_meant():
        try:
            load(state, storage_reader=reader)
        except CheckpointException as error:
            raise BadInput(f"{path} is damaged: {_first_failure(error)}") from error


def _described(reader: FileSystemReader) -> tuple[dict[str, TensorStorageMetadata], str]:
    """Return the tensors that a checkpoint says it has, by name; or what is wrong with its description."""
    try:
        found = reader.read_metadata().state_dict_metadata
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
        return {}, f"is damaged: its .metadata cannot be read ({type(error).__name__}: {error})"
    return {key: entry for key, entry in found.items() if isinstance(entry, TensorStorageMetadata)}, ""


def _unlike(state: Mapping[str, Tensor], found: Mapping[str, TensorStorageMetadata]) -> list[str]:
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
    """Raise BadInput on all ranks where one has a problem: each has its own disk and experts, all go on together."""
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
        for slot, expert in enumerate(layer.exchange.layout.my_experts):
            for part_name, part in layer.held.parts(slot).items():
                parts[f"{name}.experts.{expert}.{part_name}"] = part
    return parts


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return views of this rank's part of the model by their logical names, buffers included."""
    tensors = {name: _stored(part, part.param.detach()) for name, part in _parts(model).items()}
    return tensors | shared_state(model)


def _stored(part: Part, tensor: Tensor) -> Tensor:
    """Return the part's share of a tensor like its parameter, in the form in which a checkpoint writes and reads it."""
    if part.slot is None:
        return tensor  # plain, or a DTensor, which knows how to store itself
    here = part.of(tensor)
    return here if part.slice.is_whole else Pieces(part.slice, here)


def _optimizer_tensors(parts: Mapping[str, Part], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return views of the optimizer's state by logical names: of each parameter's every tensor, and a mark."""
    tensors = {OPTIMIZER: torch.ones(())}  # plain SGD has no state, and is not to be taken for what was left out
    for name, part in parts.items():
        for what, value in optimizer.state.get(part.param, {}).items():
            if not isinstance(value, Tensor) or (value.ndim and value.shape != part.param.shape):
                raise BadInput(f"{name}: the optimizer's {what!r} is neither a number nor shaped as the parameter")
            tensors[f"{OPTIMIZER}{name}.{what}"] = _stored(part, value) if value.shape == part.param.shape else value
    return tensors


def _make_room(
    parts: Mapping[str, Part], optimizer: torch.optim.Optimizer, found: Mapping[str, TensorStorageMetadata]
) -> None:
    """Give the optimizer the tensors that the checkpoint has for its parameters, as a first step would make them."""
    saved: dict[str, dict[str, TensorStorageMetadata]] = {}
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
