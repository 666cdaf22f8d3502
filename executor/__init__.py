"""Reality: plan.json -> EP layers on torch.distributed, measured. Names are imported when they are first asked for.

mesh = init_device_mesh("cuda", (2, 4, 2), mesh_dim_names=("fsdp", "ep", "tp"))     # or ("ep",) alone
apply_tensor_parallel(model, mesh, sequence_parallel=True)          # in place, in this order, each where it is wanted
apply_expert_parallel(model, mesh, load_plan("plan.json"))
apply_fsdp(model, mesh)
optimizer = torch.optim.AdamW(parameter_groups(model))
...
loss.backward()
sum_replica_gradients(model)                                        # one gradient for all copies of an expert
clip_grad_norm_(model, 1.0)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from executor.adapters.ep_implementation import use_plan
    from executor.balancing import balance
    from executor.capacity import Capacity
    from executor.checkpoint import load_checkpoint, save_checkpoint
    from executor.conformance import Conformance, NotConforming
    from executor.dispatch_and_compute import ep_dispatch_and_compute
    from executor.exchange import make_exchange
    from executor.experts import ListedExperts, PackedExperts
    from executor.fsdp import apply_fsdp, parameter_groups
    from executor.guard import Guard, GuardError
    from executor.layout import LayerLayout, contiguous_layout
    from executor.measure import PhaseClock
    from executor.migrate import expert_bytes, migrate_to
    from executor.moe import MoE
    from executor.moe_layers import find_moe_layers
    from executor.parallelize import apply_expert_parallel
    from executor.record import RoutingRecorder
    from executor.reference import dense_moe, expert_parallel_dispatch
    from executor.replicas import check_replicas_equal, clip_grad_norm_, sum_replica_gradients
    from executor.router import Router, RouterConfig
    from executor.shared import SharedExpert
    from executor.tensor_parallel import apply_tensor_parallel
    from executor.transport import Transport
    from executor.whole_state import gather_state_dict

_HOME = {
    "Capacity": "capacity",
    "Conformance": "conformance",
    "Guard": "guard",
    "GuardError": "guard",
    "LayerLayout": "layout",
    "ListedExperts": "experts",
    "MoE": "moe",
    "NotConforming": "conformance",
    "PackedExperts": "experts",
    "PhaseClock": "measure",
    "Router": "router",
    "RouterConfig": "router",
    "RoutingRecorder": "record",
    "SharedExpert": "shared",
    "Transport": "transport",
    "apply_expert_parallel": "parallelize",
    "apply_fsdp": "fsdp",
    "apply_tensor_parallel": "tensor_parallel",
    "balance": "balancing",
    "check_replicas_equal": "replicas",
    "clip_grad_norm_": "replicas",
    "contiguous_layout": "layout",
    "dense_moe": "reference",
    "ep_dispatch_and_compute": "dispatch_and_compute",
    "expert_bytes": "migrate",
    "expert_parallel_dispatch": "reference",
    "find_moe_layers": "moe_layers",
    "gather_state_dict": "whole_state",
    "load_checkpoint": "checkpoint",
    "make_exchange": "exchange",
    "migrate_to": "migrate",
    "parameter_groups": "fsdp",
    "save_checkpoint": "checkpoint",
    "sum_replica_gradients": "replicas",
    "use_plan": "adapters.ep_implementation",
}
"""The module of each public name; `expert_parallel_dispatch` and the planner's side need no torch."""

__all__ = [
    "Capacity",
    "Conformance",
    "Guard",
    "GuardError",
    "LayerLayout",
    "ListedExperts",
    "MoE",
    "NotConforming",
    "PackedExperts",
    "PhaseClock",
    "Router",
    "RouterConfig",
    "RoutingRecorder",
    "SharedExpert",
    "Transport",
    "apply_expert_parallel",
    "apply_fsdp",
    "apply_tensor_parallel",
    "balance",
    "check_replicas_equal",
    "clip_grad_norm_",
    "contiguous_layout",
    "dense_moe",
    "ep_dispatch_and_compute",
    "expert_bytes",
    "expert_parallel_dispatch",
    "find_moe_layers",
    "gather_state_dict",
    "load_checkpoint",
    "make_exchange",
    "migrate_to",
    "parameter_groups",
    "save_checkpoint",
    "sum_replica_gradients",
    "use_plan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'executor' has no attribute {name!r}")
    return getattr(import_module(f"executor.{_HOME[name]}"), name)
