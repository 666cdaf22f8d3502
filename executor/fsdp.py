"""apply_fsdp: FSDP2 after tensor and expert parallelism; each parameter over the ranks that hold the same one.

    apply_tensor_parallel(model, mesh)
    apply_expert_parallel(model, mesh, plan)
    apply_fsdp(model, mesh)
    optimizer = torch.optim.AdamW(parameter_groups(model), ...)

| parameters                    | sharded over                                                                  |
|-------------------------------|-------------------------------------------------------------------------------|
| packed experts                | `fsdp`, and `tp` where each tp rank sends its share of the tokens to experts   |
|                               | of its own; along dimension 1, so that slots stay whole slots on every rank    |
| all others                    | `fsdp` and `ep`, beside the shards over `tp`                                  |

Experts and the rest of their decoder layer are units of their own: a unit's gradients are reduced when its backward is
over, so never between the two all-to-alls of an exchange, and in one order on all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from executor.adapters.huggingface import HuggingFaceLayer
from executor.held import PackedHeld
from executor.moe import MoE
from executor.moe_layers import find_moe_layers
from executor.scaled_gradient import scaled
from executor.shadows import shadow_parameters
from topologies.errors import BadInput


def apply_fsdp(model: nn.Module, device_mesh: DeviceMesh, **options: Any) -> nn.Module:
    """Shard a model by FSDP2, in place, and return it.

    Call it last, and build the optimizer afterwards. Gradients are means over all different batches: over `fsdp` and
    `ep`, or over `fsdp` alone where all ep ranks run the same one; nothing needs to be said for that. Copies of experts
    under the plan stay parameters of their own: `sum_replica_gradients` is still to be called after backward.

    Args:
        model: of Hugging Face transformers, or with `executor.MoE` layers; its experts are packed.
        device_mesh: with a dimension named `fsdp` (of size 1, if need be), and `ep` and `tp` where they are used.
        options: for every call of `fully_shard`: `mp_policy`, `reshard_after_forward`, `offload_policy`.

    Raises:
        BadInput: there is no `fsdp` dimension, experts are of another kind, a rank has none, or their sizes do not
            divide; the model is then as it was.

    """
    names = device_mesh.mesh_dim_names or ()
    if "fsdp" not in names:
        raise BadInput(f"apply_fsdp needs a dimension named fsdp, the mesh has {', '.join(names) or 'no names'}")
    experts_of = _experts(model)
    others = _joined(device_mesh, [name for name in names if name in ("fsdp", "ep")])
    meshes = {name: _expert_mesh(experts, device_mesh) for name, experts in experts_of.items()}
    for name, experts in experts_of.items():
        _check_sizes(f"{name}.experts", experts, meshes[name].size())
    for name, experts in experts_of.items():
        fully_shard(experts, mesh=meshes[name], shard_placement_fn=lambda _: Shard(1), **options)
        _scale_gradients(experts, meshes[name].size() / others.size())
    for unit in [*_decoder_layers(model, list(experts_of)), model]:
        fully_shard(unit, mesh=others, **options)
    for unit in model.modules():
        if isinstance(unit, FSDPModule) and dist.get_backend(others.get_group()) == "gloo":
            unit.set_force_sum_reduction_for_comms(True)  # gloo knows no mean
    return model


def _scale_gradients(experts: nn.Module, scale: float) -> None:
    """Multiply the gradients of experts, which FSDP2 divides by the ranks of its mesh, not by the batches behind them.

    Its own `set_gradient_divide_factor` divides twice where one rank is alone and sums in fp16 or fp64 (torch 2.13).
    """
    if scale != 1.0:
        shadow_parameters(experts, lambda _, param: scaled(param, torch.full((), scale, device=param.device)))


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return the trained parameters as groups for an optimizer, one for each mesh that they are sharded over.

    An optimizer that looks at many parameters at once (`foreach`, which is the default on GPUs) does so within a group,
    and DTensors of different meshes cannot meet.
    """
    groups: dict[Any, list[nn.Parameter]] = {}
    for param in model.parameters():
        if param.requires_grad:
            key = param.device_mesh if isinstance(param, DTensor) else None
            groups.setdefault(key, []).append(param)
    return [{"params": params} for params in groups.values()]


def _experts(model: nn.Module) -> dict[str, Any]:
    """Return the modules of packed experts by the names of their layers."""
    found = {}
    for name, layer in find_moe_layers(model).items():
        held = layer.held
        if not (isinstance(layer, (MoE, HuggingFaceLayer)) and isinstance(held, PackedHeld)):
            raise BadInput(f"{name}: apply_fsdp needs packed experts in a module of their own, called as a module")
        if 0 in layer.exchange.layout.slots_R:
            rank = layer.exchange.layout.slots_R.index(0)
            raise BadInput(f"{name}: ep rank {rank} holds no expert, and FSDP2 cannot shard nothing: give it a slot")
        found[name] = held.module
    if not found:
        raise BadInput("the model has no MoE layer; use fully_shard itself")
    return found


def _expert_mesh(experts: Any, mesh: DeviceMesh) -> DeviceMesh:
    """Return the ranks that hold the same experts."""
    shared = ("fsdp",) if getattr(experts, "sharers", None) is None else ("fsdp", "tp")
    return _joined(mesh, [name for name in mesh.mesh_dim_names or () if name in shared])


def _joined(mesh: DeviceMesh, names: Sequence[str]) -> DeviceMesh:
    """Return one dimension for these, in order of the mesh."""
    if len(names) == 1:
        return mesh[names[0]]
    return mesh[tuple(names)]._flatten("_".join(names))


def _check_sizes(name: str, experts: nn.Module, ranks: int) -> None:
    for own, param in experts.named_parameters():
        if param.shape[1] % ranks:
            raise BadInput(f"{name}.{own}: dimension 1 is {param.shape[1]}, which {ranks} ranks do not divide")


def _decoder_layers(model: nn.Module, blocks: Sequence[str]) -> list[nn.Module]:
    """Return the modules of every list in which a MoE block stands, those without experts included."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return [
        layer for name, module in lists if any(block.startswith(f"{name}.") for block in blocks) for layer in module
    ]
