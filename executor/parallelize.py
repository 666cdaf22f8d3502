"""apply_expert_parallel: a plan becomes the layout of a model's MoE layers, in place."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch.distributed as dist
from torch import Tensor, nn

from executor.agreement import check_hosts, check_same, check_told, layouts_in_order
from executor.conformance import check_deployed, odd_ones
from executor.exchange import exchange_name, make_exchange
from executor.held import Held
from executor.layout import LayerLayout, contiguous_layout
from executor.moe_layers import MoELayer, check_all_found, check_apart, check_layer, find_moe_layers, shape_of
from executor.roster import roster_of_job
from executor.transport import CallGuard, Transport
from planner import Plan
from topologies import BadInput, EpplanError
from topologies.errors import unknown_name

log = logging.getLogger(__name__)
Batch = Literal["own", "same"]


def apply_expert_parallel(
    model: nn.Module,
    device_mesh: Any,
    plan: Plan | None = None,
    *,
    exchange: str | None = None,
    batch: Batch = "own",
    guard: CallGuard | None = None,
) -> nn.Module:
    """Spread the experts of a model over the ranks of the mesh's `ep` dimension, in place, and return the model.

    Call it on a model with all its experts on every rank, after tensor parallelism and before FSDP2, and build the
    optimizer afterwards: each rank keeps the experts of its slots, in new parameters. All ranks check that the plan
    fits before any of them touches a weight, and that what was deployed is the plan. Without an `ep` dimension, or
    with one of size 1, nothing is done.

    Args:
        model: holds MoE layers of any kind that `find_moe_layers` knows: ours, those of Hugging Face transformers, or
            modules that call `ep_dispatch_and_compute` themselves.
        device_mesh: a `DeviceMesh` with a dimension named `ep`, or None.
        plan: rank r of the dimension takes the slots of rank r of the plan. None deals experts out contiguously.
        exchange: `pairwise`, `dedup` or `two-level`; the plan's own by default (`pairwise` without a plan).
        batch: with `own`, every rank has its own tokens, and the gradient of an expert is that of the *sum* of the
            ranks' losses. With `same`, all ranks run the same tokens, and it is that of one rank's loss, as if there
            were no expert parallelism.
        guard: compares all collectives of the layers across ranks (`executor.guard`), for debugging.

    Raises:
        BadInput: on every rank, the plan does not fit the model or the ranks on one of them, which is named; or the
            ranks ask for different exchanges or batches, or have different models.

    """
    group = _ep_group(device_mesh)
    if group is None:
        return model
    transport = Transport(group, guard, None if plan is None else plan.domain_of_rank.tolist(), roster_of_job())
    layers = find_moe_layers(model)
    layouts = _layouts_of_all(device_mesh, lambda: _agreed_layouts(model, layers, transport, plan, exchange, batch))
    name = exchange_name(exchange, plan)
    for layer, layout in zip(layers.values(), layouts, strict=True):
        layer.held.select(layout.my_experts)
        layer.exchange = make_exchange(name, layout, transport)
        if batch == "same":
            _average_gradients(layer.held, transport.size)
    check_deployed(layers)
    return model


def _ep_group(device_mesh: Any) -> dist.ProcessGroup | None:
    """Return the group of the `ep` dimension; None where there is none or it has one rank."""
    if device_mesh is None or "ep" not in (device_mesh.mesh_dim_names or ()):
        return None
    ep = device_mesh["ep"]
    group: dist.ProcessGroup = ep.get_group()
    return group if ep.size() > 1 else None


def _agreed_layouts(
    model: nn.Module,
    layers: dict[str, MoELayer],
    transport: Transport,
    plan: Plan | None,
    exchange: str | None,
    batch: str,
) -> list[LayerLayout]:
    """Return this rank's layouts, once all ranks have found that theirs fit and are the same; raises on all or none."""
    problem, layouts, asked = "", [], ""
    try:
        asked = _asked(exchange_name(exchange, plan), batch)
        check_all_found(model, list(layers))
        layouts = _fitting_layouts(layers, transport, plan)
    except EpplanError as error:
        problem = str(error)
    digests = [layout.digest() for layout in layouts]
    shapes = [f"{name} with {shape_of(layer)}" for name, layer in layers.items()]
    said = [asked, f"{len(layers)} MoE layers", *shapes]
    told = transport.gather("check of the plan", (problem, digests, socket.gethostname(), said))
    problems = [other for other, *_ in told]
    if not any(problems):
        for said_R in zip(*(theirs for *_, theirs in told), strict=False):  # of one length where the second is the same
            check_same(said_R)
    check_told(problems, [theirs for _, theirs, *_ in told])
    if plan is not None:
        hosts = [host for _, _, host, _ in told]
        check_hosts(plan, hosts)
        planned = len({entry.host for entry in plan.cluster.ranks})
        if len(set(hosts)) == 1 < planned:
            log.warning("a plan for %d hosts runs on one: its exchanges are real, its links are not", planned)
    return layouts


def _layouts_of_all(device_mesh: Any, agree: Callable[[], list[LayerLayout]]) -> list[LayerLayout]:
    """Return what the ranks of `ep` agree on, once all others, along the mesh's other dimensions, have the same."""
    problem, layouts = "", []
    try:
        layouts = agree()
    except BadInput as error:
        problem = str(error)
    digests = [(layout.digest(), layout.rank) for layout in layouts]
    for name in device_mesh.mesh_dim_names:
        told: list[Any] = [None] * device_mesh[name].size()
        if name != "ep" and len(told) > 1:
            dist.all_gather_object(told, (problem, digests), group=device_mesh[name].get_group())
            problems = [f"{name} {place}: {other}" for place, (other, _) in enumerate(told) if other]
            odd = odd_ones([theirs for _, theirs in told])
            problems += [f"{name} {place}: its plan is not that of the other ranks" for place in odd]
            problem = problem or "".join(problems[:1])
    if problem:
        raise BadInput(problem)
    return layouts


def _asked(exchange: str, batch: str) -> str:
    """Say what a caller asks for, which must be the same on all ranks; BadInput where there is no such batch."""
    if batch not in get_args(Batch):
        raise unknown_name("batch", batch, get_args(Batch))
    return f"exchange {exchange} and batch {batch}"


def _fitting_layouts(layers: dict[str, MoELayer], transport: Transport, plan: Plan | None) -> list[LayerLayout]:
    if plan is None:
        layouts = [
            contiguous_layout(layer.num_experts, transport.size, transport.rank, number)
            for number, layer in enumerate(layers.values())
        ]
    else:
        layouts = layouts_in_order(list(layers), transport, plan)
    for (name, layer), layout in zip(layers.items(), layouts, strict=True):
        check_layer(name, layer, layout, plan)
    check_apart(layers)
    return layouts


def _average_gradients(experts: Held, size: int) -> None:
    """Divide the gradients of experts by the number of ranks, each of which has sent the same tokens."""

    def divide(grad: Tensor) -> Tensor:
        return grad / size

    for param in experts.parameters():
        if param.requires_grad:
            param.register_hook(divide)  # type: ignore[no-untyped-call]  # torch leaves it untyped
