"""ep_dispatch_and_compute: expert parallelism as one function, for code that brings its own MoE module.

The signature is that of KempnerForge's function of the same name (kempnerforge/distributed/expert_parallel.py). What
differs: ids travel as integers, masked ids (-1) do not travel, rows are not padded to the fullest expert, any layout
works, and `gradient_scale` changes gradients only.

Shapes: T tokens of this rank, K top_k, E experts, S slots of this rank, H hidden.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from executor.capacity import count_ids
from executor.deployment import Deployment
from executor.exchange import make_exchange
from executor.held_forms import held_by
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
        moe: holds this rank's experts, itself or as `moe.experts`, in one of the forms of `executor.held`. With a
            LayerLayout in `moe.ep_layout` (`apply_expert_parallel` sets it) the experts are where it says; else rank r
            holds num_local_experts from r * num_local_experts on.
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
    deployment: Deployment | None = getattr(moe, "ep_deployment", None)
    transport = Transport(ep_group) if deployment is None else deployment.exchange.transport
    layout = _layout_of(moe, transport, local_expert_start, num_local_experts, ep_world_size)
    if deployment is None:
        deployment = Deployment(make_exchange("pairwise", layout, transport))
    scale_S = _gradient_scale(indices, layout, transport) if gradient_scale else None
    return deployment.run(held_by(moe), x, weights, indices, scale_S)


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
