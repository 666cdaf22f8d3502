"""Modules that call `ep_dispatch_and_compute` themselves.

The contract is KempnerForge's (kempnerforge/model/moe.py, distributed/expert_parallel.py): a module with the attributes
`ep_world_size, ep_group, local_expert_start, num_local_experts`, which passes them, and itself, to the function when
`ep_world_size` is above 1. Its experts are a ModuleList `experts`, which is pruned and numbered from 0, or packed, in
any form of `executor.held`. Beside the four attributes it is given `ep_layout`, for any plan is more than a start.
"""

from __future__ import annotations

from torch import nn

from executor.adapters.foreign import ForeignLayer
from executor.deployment import Deployment

CONTRACT = ("ep_world_size", "ep_group", "local_expert_start", "num_local_experts")


class DispatchingLayer(ForeignLayer):
    """See `ForeignLayer`."""

    misfit = ""

    def install(self, deployment: Deployment) -> None:
        """See `ForeignLayer`."""
        layout, transport = deployment.exchange.layout, deployment.exchange.transport
        attributes = {
            "ep_world_size": transport.size,
            "ep_group": transport.group,
            "local_expert_start": min(layout.my_experts, default=0),
            "num_local_experts": len(layout.my_experts),
            "ep_layout": layout,
        }
        for name, value in attributes.items():
            setattr(self.module, name, value)


def dispatching_layer(module: nn.Module) -> DispatchingLayer | None:
    """Return the layer that this module is; None where it does not keep the contract."""
    if not all(hasattr(module, name) for name in CONTRACT):
        return None
    top_k = getattr(getattr(module, "router", module), "top_k", None)
    return DispatchingLayer(module, top_k if isinstance(top_k, int) else None)
