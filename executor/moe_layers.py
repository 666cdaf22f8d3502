"""The MoE layers of a model: found by type, matched with the layers of a plan.

Shapes: S slots of a rank.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from executor.experts import PackedExperts
from executor.layout import LayerLayout
from executor.moe import MoE
from planner import Plan
from topologies import BadInput


def find_moe_layers(model: nn.Module) -> dict[str, MoE]:
    """Return the MoE layers of a model by their names, in the order of its modules."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MoE)}


def layer_numbers(names: Sequence[str], plan: Plan) -> list[int]:
    """Return the index in the plan's model of each MoE layer.

    The last number in a module's name is its layer (`model.layers.3.mlp` is layer 3) if that fits the plan for all of
    them; else the layers are taken in order, if there are as many.

    Raises BadInput where neither holds.
    """
    planned = [entry.layer for entry in plan.layers]
    named = [int(found[-1]) if (found := re.findall(r"(?<![^.])\d+(?![^.])", name)) else -1 for name in names]
    if len(set(named)) == len(named) and set(named) <= set(planned):
        return named
    if len(names) == len(planned):
        return planned
    raise BadInput(
        f"the model has {len(names)} MoE layers ({', '.join(names[:3])}, ...), the plan {len(planned)} "
        f"(layers {planned[0]}..{planned[-1]}), and the names do not say which is which"
    )


def check_layer(name: str, moe: MoE, layout: LayerLayout, plan: Plan | None) -> None:
    """Refuse a layer that the layout or the plan does not fit, before anything of it is changed; raises BadInput."""
    experts = moe.experts
    if layout.num_experts != moe.router.config.num_experts:
        raise BadInput(f"{name}: {moe.router.config.num_experts} experts, the plan has {layout.num_experts}")
    if experts.num_slots != layout.num_experts:
        raise BadInput(
            f"{name}: holds {experts.num_slots} of {layout.num_experts} experts; expert parallelism is applied once, "
            "to a layer with all of them"
        )
    sharded = [param for param, value in experts.named_parameters() if hasattr(value, "device_mesh")]
    if sharded:
        raise BadInput(f"{name}: {sharded[0]} is sharded already; apply expert parallelism before FSDP2")
    if plan is None:
        return
    found = {"top_k": moe.router.config.top_k}
    if isinstance(experts, PackedExperts):
        found |= {"hidden": experts.down.shape[1], "intermediate": experts.down.shape[2]}
    for what, value in found.items():
        if value != getattr(plan.model, what):
            raise BadInput(
                f"{name}: {what} is {value}, the plan is for {plan.model.name} with {getattr(plan.model, what)}"
            )
