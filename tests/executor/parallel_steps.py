"""Steps of a model split by tp, ep and fsdp beside the same model in one process, which sees the batches of all ranks.

A layout is the mesh (dimension names and sizes), whether sequence parallelism is on, and how experts are split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn import functional

from executor.fsdp import apply_fsdp, parameter_groups
from executor.moe_layers import find_moe_layers
from executor.parallelize import apply_expert_parallel
from executor.replicas import check_replicas_equal, clip_grad_norm_, sum_replica_gradients
from executor.tensor_parallel import apply_tensor_parallel
from planner import Plan
from tests.executor.adapters.families import EXPOSES_LOGITS, VOCABULARY, forward, model_of
from tests.executor.adapters.steps import worst
from tests.executor.double import double_stays_double
from tests.executor.models import INTERMEDIATE

STEPS = 20


@dataclass(frozen=True)
class Layout:
    """A mesh of named dimensions, and what is applied on it.

    Attributes:
        tp, ep, fsdp: sizes; 1 leaves a dimension out, except that `fsdp` 0 leaves out FSDP2 altogether.
        sequence: sequence parallelism.
        slices: whether tp ranks share every expert, or each has all of it.
        batch: whether ep ranks have batches of their own or the same one.
        recompute: activation checkpointing.
        device: "cpu" or "cuda".

    """

    tp: int = 1
    ep: int = 1
    fsdp: int = 0
    sequence: bool = False
    slices: bool = False
    batch: str = "own"
    recompute: bool = False
    device: str = "cpu"

    @property
    def ranks(self) -> int:
        return self.tp * self.ep * max(self.fsdp, 1)

    @property
    def batches(self) -> int:
        """Batches of different tokens in a step."""
        return max(self.fsdp, 1) * (self.ep if self.batch == "own" else 1)

    def mesh(self) -> Any:
        names = ("fsdp", "ep", "tp") if self.fsdp else ("ep", "tp")
        return init_device_mesh(self.device, tuple(getattr(self, name) for name in names), mesh_dim_names=names)

    def my_batch(self, mesh: Any) -> int:
        ep = mesh["ep"].get_local_rank() if self.batch == "own" else 0
        return ep if not self.fsdp else mesh["fsdp"].get_local_rank() * (self.batches // self.fsdp) + ep


def build(family: str, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a model whose heads 2 ranks can share."""
    return model_of(family, dtype, seed, num_key_value_heads=2).to(device)


def split(model: nn.Module, layout: Layout, mesh: Any, plan: Plan | None) -> nn.Module:
    apply_tensor_parallel(model, mesh, sequence_parallel=layout.sequence, expert_slices=layout.slices)
    apply_expert_parallel(model, mesh, plan, batch=layout.batch)  # type: ignore[arg-type]  # a field of a test
    if layout.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]  # of transformers
    if layout.fsdp:
        apply_fsdp(model, mesh)
    return model


def batch_of(layout: Layout, step: int) -> list[Tensor]:
    """Return the token ids [B, S] of every batch; without sequence parallelism S divides by nothing in particular."""
    g = torch.Generator().manual_seed(1000 + step)
    length = 8 if layout.sequence else 7
    return [torch.randint(0, VOCABULARY, (2, length), generator=g).to(layout.device) for _ in range(layout.batches)]


def reduce(model: nn.Module, layout: Layout, mesh: Any) -> None:
    """Finish the gradients of a step: without FSDP2 those of plain data parallelism over ep are ours to sum."""
    of_experts = {id(param) for layer in find_moe_layers(model).values() for param in layer.held.parameters()}
    for param in model.parameters():
        if id(param) not in of_experts and not layout.fsdp and layout.batch == "own":
            assert param.grad is not None
            grad = param.grad.to_local() if isinstance(param.grad, DTensor) else param.grad
            dist.all_reduce(grad, group=mesh["ep"].get_group())
    sum_replica_gradients(model)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sliced(name: str, tensor: Tensor, rank: int, size: int) -> Tensor:
    """Return what a tp rank has of a tensor of packed experts; gpt-oss has a bias, and gate and up in turns."""
    first, last = (part * INTERMEDIATE // size for part in (rank, rank + 1))
    if tensor.shape[-1] == 2 * INTERMEDIATE:  # columns of gate_up_proj, or of its bias, of gpt-oss
        return tensor[..., 2 * first : 2 * last]
    if name == "gate_up_proj":
        return torch.cat([tensor[:, first:last], tensor[:, INTERMEDIATE + first : INTERMEDIATE + last]], dim=1)
    if name == "down_proj":
        return tensor[..., first:last] if tensor.shape[-1] == INTERMEDIATE else tensor[:, first:last]
    return tensor


def pairs_of(model: nn.Module, dense: nn.Module, layout: Layout, mesh: Any, grad: bool) -> list[tuple[Tensor, Tensor]]:
    """Return each parameter (or its gradient), whole, beside that of the dense model; experts slot by slot."""
    slots = {
        id(param): torch.tensor(layer.exchange.layout.my_experts, device=layout.device)
        for layer in find_moe_layers(model).values()
        for param in layer.held.parameters()
    }
    wanted, pairs = dict(dense.named_parameters()), []
    for name, param in model.named_parameters():
        found, reference = (param.grad, wanted[name].grad) if grad else (param, wanted[name])
        assert found is not None, name
        assert reference is not None, name
        if id(param) in slots:
            reference = reference[slots[id(param)]]
            if layout.slices:
                reference = sliced(name.rpartition(".")[2], reference, mesh["tp"].get_local_rank(), layout.tp)
        pairs.append((whole(found.detach()), reference.detach()))
    return pairs


def exact_loss(logits: Tensor, labels: Tensor, vocab_size: int, **_: Any) -> Tensor:
    """Return the loss of a causal language model in the type of the logits; the library's own is fp32."""
    return functional.cross_entropy(logits[:, :-1].reshape(-1, vocab_size), labels[:, 1:].reshape(-1))


def one_step(_rank: int, _size: int, family: str, layout: Layout, plan: Plan | None) -> dict[str, float]:
    """Return the errors of logits, loss, what the router records, and gradients."""
    mesh, dense = layout.mesh(), build(family, device=layout.device)
    ids, scale = batch_of(layout, 0), layout.batches if layout.fsdp else 1
    outs = [forward(dense, family, one) for one in ids]
    (torch.stack([out.loss for out in outs]).sum() / scale).backward()
    model = split(build(family, device=layout.device), layout, mesh, plan)
    mine = layout.my_batch(mesh)
    out, wanted = forward(model, family, ids[mine]), outs[mine]
    out.loss.backward()
    reduce(model, layout, mesh)
    errors = {
        "logits": worst([(whole(out.logits.detach()), wanted.logits.detach())]),
        "loss": worst([(out.loss.detach(), wanted.loss.detach())]),
        "gradients": worst(pairs_of(model, dense, layout, mesh, grad=True)),
    }
    if family in EXPOSES_LOGITS:
        recorded = zip(out.router_logits, wanted.router_logits, strict=True)
        errors["router"] = worst([(found.detach(), reference.detach()) for found, reference in recorded])
    return errors


def train(_rank: int, _size: int, family: str, layout: Layout, plan: Plan | None) -> dict[str, float]:
    """Train 20 steps of Adam with clipping beside the dense model; return the largest differences on the way.

    In fp64: 20 steps make much of rounding, and fp32 could not tell it from a small mistake.
    """
    with double_stays_double():
        return _trained(family, layout, plan)


def _trained(family: str, layout: Layout, plan: Plan | None) -> dict[str, float]:
    mesh, dense = layout.mesh(), build(family, device=layout.device, dtype=torch.float64).train()
    model = split(build(family, device=layout.device, dtype=torch.float64), layout, mesh, plan).train()
    mine, scale = layout.my_batch(mesh), layout.batches if layout.fsdp else 1
    dense.loss_function = exact_loss  # type: ignore[assignment]  # a property with a setter
    if layout.tp == 1:
        model.loss_function = exact_loss  # type: ignore[assignment]  # the same
    ours = torch.optim.Adam(parameter_groups(model), lr=1e-2, eps=1e-4, foreach=True)
    theirs = torch.optim.Adam(dense.parameters(), lr=1e-2, eps=1e-4)
    most = {"loss": 0.0, "norm": 0.0}
    for step in range(STEPS):
        ids = batch_of(layout, step)
        ours.zero_grad()
        theirs.zero_grad()
        loss = forward(model, family, ids[mine]).loss
        loss.backward()
        reduce(model, layout, mesh)
        norm = clip_grad_norm_(model, 1.0)
        losses = [forward(dense, family, one).loss for one in ids]
        (torch.stack(losses).sum() / scale).backward()
        dense_norm = nn.utils.clip_grad_norm_(dense.parameters(), 1.0)
        ours.step()
        theirs.step()
        most["loss"] = max(most["loss"], worst([(loss.detach(), losses[mine].detach())]))
        most["norm"] = max(most["norm"], worst([(norm, dense_norm)]))
    check_replicas_equal(model)
    return most | {"weights": worst(pairs_of(model, dense, layout, mesh, grad=False))}


def on_trajectory(most: dict[str, float]) -> bool:
    """Return whether training stayed with the dense model."""
    return max(most.values()) < 1e-10
