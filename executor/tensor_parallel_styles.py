"""The styles of tensor parallelism, by name; `executor.families` says which module has which.

Parameters become DTensors over the tp dimension, so that FSDP2, optimizers and checkpoints know what they are. Modules
compute with plain tensors: what the transformers library writes works on any heads and any columns, and only the
edges of a block exchange anything. Between the edges the gradient of a whole tensor is a *partial* one, of this rank's
heads, columns or experts; it is summed once, at the edge, or at the parameter.

    hidden states between blocks     [B, S, H] on every rank, or with sequence parallelism [B, S / tp, H]
      -> block's input               [B, S, H]: gathered; its gradients are summed (and scattered)
      -> block's output              [B, S, H], a part of the sum: summed (and scattered)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle
from torch.nn import functional

from executor.adapters.huggingface import HuggingFaceLayer
from executor.exchange import local_exchange
from executor.expert_slices import cuts_of, slice_parameters
from executor.held_forms import gate_of
from executor.partial_gradient import share_of, summed_gradient
from executor.scaled_gradient import scaled
from executor.shadows import shadow_parameters
from executor.transport import Transport
from topologies.errors import BadInput


class Local(ParallelStyle):
    """The module's own parameters become DTensors; its forward computes with this rank's part of them.

    Attributes:
        placements: by names of parameters; others are whole on every rank.
        summed: whether each rank's gradient of a whole parameter is a part of it. Else all ranks have the same.
        share: name of a parameter that every rank adds to a part of a sum, so that it counts a share of it.

    """

    def __init__(self, placements: Mapping[str, Placement] | None = None, summed: bool = True, share: str = "") -> None:
        super().__init__()
        self.placements, self.summed, self.share = dict(placements or {}), summed, share

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, param in list(module.named_parameters(recurse=False)):
            placement = self.placements.get(name, Replicate())
            part = distribute_tensor(param.detach(), device_mesh, [placement], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(part, param.requires_grad))
        shadow_parameters(module, partial(self._local, device_mesh))
        return module

    def _local(self, mesh: DeviceMesh, name: str, param: nn.Parameter) -> Tensor:
        assert isinstance(param, DTensor)  # FSDP2 has brought it back
        here = param.to_local()
        if name == self.share:
            return share_of(here, mesh.size())
        return summed_gradient(here, mesh.get_group()) if self.summed and name not in self.placements else here


class Edges(ParallelStyle):
    """The edges of a module: how its first input comes, what it takes, what it gives, and how that goes on.

    Attributes:
        comes, takes: placements of the hidden states; where `takes` is Replicate, their gradients inside are partial.
        gives, goes: placements of the output, or of its first tensor; None leaves it alone.

    """

    def __init__(
        self, comes: Placement, takes: Placement, gives: Placement | None = None, goes: Placement | None = None
    ) -> None:
        super().__init__()
        self.comes, self.takes, self.gives, self.goes = comes, takes, gives, goes

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (self._enter(args[0], device_mesh), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": self._enter(kwargs["hidden_states"], device_mesh)}

        def leave(_module: nn.Module, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (self._leave(output[0], device_mesh), *output[1:])
            return self._leave(output, device_mesh)

        module.register_forward_pre_hook(enter, with_kwargs=True)
        if self.gives is not None:
            module.register_forward_hook(leave)
        return module

    def _enter(self, x_BSH: Tensor, mesh: DeviceMesh) -> Tensor:
        if self.takes.is_shard() and self.comes.is_replicate() and x_BSH.shape[1] % mesh.size():
            raise BadInput(
                f"sequence parallelism over {mesh.size()} ranks: a sequence of {x_BSH.shape[1]} tokens does not divide;"
                f" pad it to {-(-x_BSH.shape[1] // mesh.size()) * mesh.size()}"
            )
        inside: Placement = Partial() if self.takes.is_replicate() else self.takes
        return _moved(x_BSH, mesh, self.comes, self.takes).to_local(grad_placements=[inside])

    def _leave(self, y_BSH: Tensor, mesh: DeviceMesh) -> Tensor:
        assert self.gives is not None
        assert self.goes is not None
        return _moved(y_BSH, mesh, self.gives, self.goes).to_local()


def _moved(x: Tensor, mesh: DeviceMesh, source: Placement, target: Placement) -> DTensor:
    return DTensor.from_local(x, mesh, [source], run_check=False).redistribute(placements=[target])


class Vocabulary(ParallelStyle):
    """An embedding whose rows are split: each rank looks up what it has, zeros stand for the others; the sum is all."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        words, rank, size = module.get_parameter("weight").shape[0], device_mesh.get_local_rank(), device_mesh.size()
        first, last = (part * words // size for part in (rank, rank + 1))
        elsewhere: list[Tensor] = []

        def find(_module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
            elsewhere[:] = [(args[0] < first) | (args[0] >= last)]
            return (args[0] - first).masked_fill(elsewhere[0], 0)

        def combine(_module: nn.Module, _args: Any, y_BSH: Tensor) -> Tensor:
            found_BSH = y_BSH.masked_fill(elsewhere.pop()[..., None], 0.0)
            return _moved(found_BSH, device_mesh, Partial(), Replicate()).to_local()

        padding: Any = getattr(module, "padding_idx", None)
        if padding is not None:
            module.padding_idx = padding - first if first <= padding < last else None  # type: ignore[assignment]  # torch types attributes as modules
        Local({"weight": Shard(0)})._apply(module, device_mesh)
        module.register_forward_pre_hook(find)
        module.register_forward_hook(combine)
        return module


class Both(ParallelStyle):
    """Two styles of one module."""

    def __init__(self, first: ParallelStyle, second: ParallelStyle) -> None:
        super().__init__()
        self.first, self.second = first, second

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return self.second._apply(self.first._apply(module, device_mesh), device_mesh)


class CountedOnce(ParallelStyle):
    """All ranks record the same logits of a router, and a loss made of them: each backs a share of its gradient.

    The gradient of the router's parameters is the sum over ranks of what they do with the block's part of the sum.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def share(_module: nn.Module, _args: Any, output: Any) -> Any:
            if not isinstance(output, tuple):
                return output
            scale = torch.full((), 1 / device_mesh.size(), device=output[0].device)
            return (scaled(output[0], scale), *output[1:])

        module.register_forward_hook(share)
        return module


class TokenShares(ParallelStyle):
    """Experts that are whole on every rank: each sends its share of the tokens to them; zeros stand for the others."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        rank, size, whole = device_mesh.get_local_rank(), device_mesh.size(), [0]

        def take(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            whole[0] = len(args[0])
            first, last = (share * whole[0] // size for share in (rank, rank + 1))
            return tuple(one[first:last] for one in args)

        def place(_module: nn.Module, _args: Any, y_TH: Tensor) -> Tensor:
            first, last = (share * whole[0] // size for share in (rank, rank + 1))
            return functional.pad(y_TH, (0, 0, first, whole[0] - last))

        module.register_forward_pre_hook(take)
        module.register_forward_hook(place)
        module.sharers = device_mesh.get_group()  # type: ignore[assignment]  # torch types attributes as modules
        return module


class ExpertSlices(ParallelStyle):
    """Experts of which every rank has a slice, for all tokens; our forward stands in for theirs."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        layer = HuggingFaceLayer(module, None)
        layer.exchange = local_exchange(layer.num_experts)
        cuts = cuts_of(module, gate_of(module), Transport(device_mesh.get_group()))
        slice_parameters(module, cuts)
        module.expert_cuts = cuts  # type: ignore[assignment]  # torch types attributes as tensors or modules
        return module


class SplitLogits(ParallelStyle):
    """The head's outputs as a DTensor, split by vocabulary: no rank has all of them."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def split(_module: nn.Module, _args: Any, logits: Tensor) -> DTensor:
            return DTensor.from_local(logits, device_mesh, [Shard(logits.ndim - 1)], run_check=False)

        module.register_forward_hook(split)
        return module


def make_styles(sequence_parallel: bool, expert_slices: bool) -> dict[str, ParallelStyle]:
    """Return the styles by the names of `executor.families`."""
    between: Placement = Shard(1) if sequence_parallel else Replicate()
    norm = Local(summed=sequence_parallel)
    columns = Local({"weight": Shard(0), "bias": Shard(0)})
    styles: dict[str, ParallelStyle] = {
        "vocabulary": Vocabulary(),
        "norm": norm,
        "block": Both(Local({"sinks": Shard(0)}), Edges(between, Replicate(), Partial(), between)),
        "columns": columns,
        "rows": Local({"weight": Shard(1)}, share="bias"),
        "inside": Local(),
        "router": Both(Local(), CountedOnce()),
        "experts": ExpertSlices() if expert_slices else TokenShares(),
        "last norm": norm,
        "head": Both(Both(Edges(Replicate(), Replicate()), columns), SplitLogits()),
    }
    if sequence_parallel:
        styles["entry"] = Edges(Replicate(), Shard(1))
        styles["last norm"] = Both(norm, Edges(Shard(1), Shard(1), Shard(1), Replicate()))
    return styles
