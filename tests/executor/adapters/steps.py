"""What the tests of adapters share: plans with copies, gradients of a step over ranks, how far two models differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from executor.moe_layers import MoELayer, find_moe_layers
from executor.replicas import sum_replica_gradients
from planner import Plan
from tests.executor.adapters.families import EXPERTS, TOP_K
from tests.executor.layers import Case
from tests.executor.models import plan_of

PATIENCE_S = 240


def mesh(size: int) -> Any:
    return init_device_mesh("cpu", (size,), mesh_dim_names=("ep",))


def plan_with_replicas(size: int, exchange: str = "pairwise") -> Plan:
    case = Case((8,) * size, experts=EXPERTS, top_k=TOP_K, replicas=0.3, domains=1 if size < 4 else 2, seed=size)
    return plan_of(case, exchange)


def reduce_gradients(model: nn.Module) -> None:
    """Sum the gradients of copies of experts, and over ranks those of all parameters that every rank has."""
    of_experts = {id(param) for layer in find_moe_layers(model).values() for param in layer.held.parameters()}
    for param in model.parameters():
        if id(param) not in of_experts and param.requires_grad:
            param.grad = torch.zeros_like(param) if param.grad is None else param.grad
            dist.all_reduce(param.grad)
    sum_replica_gradients(model)


def worst(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the largest error relative to its tensor; a tensor counts as no smaller than 1/1000 of the largest."""
    floor = max(float(wanted.abs().max()) for _, wanted in pairs) / 1000
    errors = [float((found - wanted).abs().max()) / max(float(wanted.abs().max()), floor) for found, wanted in pairs]
    return max(errors)


def mine(layer: MoELayer) -> Tensor:
    return torch.tensor(layer.exchange.layout.my_experts, dtype=torch.int64)


def pairs_of(model: nn.Module, dense: nn.Module, grad: bool) -> list[tuple[Tensor, Tensor]]:
    """Return each parameter (or its gradient) of this rank beside that of the dense model; experts slot by slot."""
    picks = {id(param): mine(layer) for layer in find_moe_layers(model).values() for param in layer.held.parameters()}
    wanted, pairs = dict(dense.named_parameters()), []
    for name, param in model.named_parameters():  # the names are those of the dense model
        found, reference = (param.grad, wanted[name].grad) if grad else (param, wanted[name])
        if reference is None:
            assert found is None or not found.any()
            continue
        assert found is not None
        reference = reference[picks[id(param)]] if id(param) in picks else reference
        if reference.numel():
            pairs.append((found.detach(), reference.detach()))
    return pairs
