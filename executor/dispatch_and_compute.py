"""ep_dispatch_and_compute: expert parallelism as one function, for code that brings its own MoE module.

The signature is that of KempnerForge's function of the same name (kempnerforge/distributed/expert_parallel.py). What
differs: ids travel as integers, masked ids (-1) do not travel, rows are not padded to the fullest expert, any layout
works, and `gradient_scale` changes gradients only.

Shapes: T tokens of this rank, K top_k, E experts, N rows at this rank's experts, S slots of this rank, H hidden,
I intermediate.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional

from executor.activations import find_activation
from executor.capacity import count_ids
from executor.exchange import make_exchange
from executor.experts import ListedExperts, PackedExperts, SlotRows, check_rows, linear_by_slot
from executor.layout import LayerLayout, contiguous_layout
from executor.transport import Transport
from topologies.errors import BadInput


def ep_dispatch_and_compute(
    x: Tensor,
    weights: Tensor,
    indices: Tensor,
    moe: Any,
    ep_group: dist.ProcessGroup | None,
    local_expert_start: int,
    num_local_experts: int,
    ep_world_size: int,
    gradient_scale: bool = False,
) -> Tensor:
    """Return y (T, H): for each token the weighted sum of its experts' outputs, wherever they are.

    Every rank of the group must call it, with zero tokens too.

    Args:
        x: (T, H).
        weights: (T, K) routing weights.
        indices: (T, K) ids of logical experts over all ranks; -1 masks an entry.
        moe: holds this rank's experts in one of these forms, itself or as `moe.experts`: PackedExperts, ListedExperts,
            a ModuleList (local expert i is this rank's i-th), SwiGLU in `gate_w, up_w` (S, H, I) and `down_w`
            (S, I, H), or Hugging Face's `gate_up_proj` (S, 2I, H) and `down_proj` (S, H, I). With a LayerLayout in
            `moe.ep_layout` (an `executor.moe.MoE` has one) the experts are where it says; else rank r holds
            num_local_experts from r * num_local_experts on.
        ep_group: the ranks; None where ep_world_size is 1.
        local_expert_start: first expert of this rank; not looked at where there is a layout.
        num_local_experts: S.
        ep_world_size: ranks of the group.
        gradient_scale: multiply the gradients of each expert's weights by (mean count / its count), the counts being
            the pairs of a logical expert over the whole group and their mean that over all E experts. The output and
            the gradients of x and of the routing weights stay as they are (KempnerForge scales the experts' outputs,
            and so all of these).

    Raises:
        BadInput: the numbers contradict the group or the module, or the module has no experts of a known form.

    """
    transport = Transport(ep_group)
    layout = _layout_of(moe, transport, local_expert_start, num_local_experts, ep_world_size)
    exchange = make_exchange("pairwise", layout, transport)
    scale_S = _gradient_scale(indices, layout, transport) if gradient_scale else None
    dispatched = exchange.dispatch(x, weights, indices)
    y_NH = _through_experts(moe, dispatched.x_NH, dispatched.rows, scale_S)
    return exchange.combine(y_NH, dispatched).to(x.dtype)


def _layout_of(
    moe: Any, transport: Transport, local_expert_start: int, num_local_experts: int, ep_world_size: int
) -> LayerLayout:
    """Return where the experts are; refuse numbers that contradict it."""
    if transport.size != ep_world_size:
        raise BadInput(f"ep_world_size is {ep_world_size}, but ep_group has {transport.size} ranks")
    layout: LayerLayout | None = getattr(moe, "ep_layout", None)
    if layout is None:
        expected = transport.rank * num_local_experts
        if local_expert_start != expected:
            raise BadInput(
                f"local_expert_start is {local_expert_start}; rank {transport.rank} with {num_local_experts} experts"
                f" a rank starts at {expected}. Other layouts need a plan: see apply_expert_parallel"
            )
        return _contiguous(num_local_experts * ep_world_size, ep_world_size, transport.rank)
    if (layout.num_ranks, len(layout.my_experts)) != (ep_world_size, num_local_experts):
        raise BadInput(
            f"moe.ep_layout has {layout.num_ranks} ranks and {len(layout.my_experts)} experts on this one, but"
            f" ep_world_size is {ep_world_size} and num_local_experts {num_local_experts}"
        )
    return layout


@cache
def _contiguous(num_experts: int, num_ranks: int, rank: int) -> LayerLayout:
    """Keep the layout: its tables on the device are made once."""
    return contiguous_layout(num_experts, num_ranks, rank)


def _gradient_scale(ids_TK: Tensor, layout: LayerLayout, transport: Transport) -> Tensor:
    """Return [S], fp64: mean count over the count of each slot's logical expert, over the whole group."""
    count_E = transport.sum_over_ranks("expert counts", count_ids(ids_TK, layout.num_experts)).double()
    mine = torch.tensor(layout.my_experts, dtype=torch.int64, device=ids_TK.device)
    return count_E.mean() / count_E[mine].clamp(min=1.0)


def _through_experts(moe: Any, x_NH: Tensor, rows: SlotRows, scale_S: Tensor | None) -> Tensor:
    """Return y_NH through the experts of a module of any known form."""
    experts = getattr(moe, "experts", moe)
    if isinstance(experts, ListedExperts):
        experts = experts.experts
    if isinstance(experts, nn.ModuleList):
        return _through_list(experts, x_NH, rows, scale_S)
    if isinstance(experts, PackedExperts):
        return _called(experts, scale_S, x_NH, rows)
    if hasattr(experts, "gate_w"):
        gate_SIH, up_SIH, down_SHI = (
            _scaled(weight, scale_S).transpose(1, 2) for weight in (experts.gate_w, experts.up_w, experts.down_w)
        )
        gate_NI, up_NI = linear_by_slot(x_NH, rows, gate_SIH), linear_by_slot(x_NH, rows, up_SIH)
        return linear_by_slot(functional.silu(gate_NI) * up_NI, rows, down_SHI)
    if hasattr(experts, "gate_up_proj") and _is_swiglu(experts):
        inner_NF = linear_by_slot(x_NH, rows, _scaled(experts.gate_up_proj, scale_S))
        return linear_by_slot(find_activation("swiglu").apply(inner_NF), rows, _scaled(experts.down_proj, scale_S))
    raise BadInput(
        f"{type(moe).__name__} has no experts of a known form: a ModuleList, PackedExperts, gate_w with up_w and"
        " down_w, or gate_up_proj with down_proj (SwiGLU without biases)"
    )


def _is_swiglu(experts: Any) -> bool:
    act_fn = getattr(experts, "act_fn", functional.silu)
    plain = getattr(experts, "gate_up_proj_bias", None) is None
    return plain and (act_fn is functional.silu or isinstance(act_fn, nn.SiLU))


def _through_list(experts: nn.ModuleList, x_NH: Tensor, rows: SlotRows, scale_S: Tensor | None) -> Tensor:
    check_rows(x_NH, rows, len(experts))
    if not len(experts):
        return x_NH
    scales = [None] * len(experts) if scale_S is None else scale_S.unbind()
    parts = zip(experts, scales, x_NH.split_with_sizes(rows.counts), strict=True)
    return torch.cat([_called(expert, scale, x_CH) for expert, scale, x_CH in parts])


def _called(module: nn.Module, scale: Tensor | None, *inputs: Any) -> Tensor:
    """Return the module's output; gradients of its parameters will be multiplied by `scale`."""
    scaled = {name: _scaled(weight, scale) for name, weight in module.named_parameters()}
    y: Tensor = module(*inputs) if scale is None else functional_call(module, scaled, inputs)
    return y


def _scaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    """Return the weight; its gradient will be multiplied by `scale`, one number or one for each slot."""
    if scale is None:
        return weight
    scaled: Tensor = _ScaledGradient.apply(weight, scale)  # type: ignore[no-untyped-call]  # torch ships it so
    return scaled


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        by_slot = scale.to(grad.dtype).view(-1, *[1] * (grad.ndim - 1))
        return (grad * by_slot).view_as(grad), None
