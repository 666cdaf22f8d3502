"""The MoE layers of a model, whoever wrote them: found by what they offer, matched with the layers of a plan."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import nn

from executor.adapters.dispatching import dispatching_layer
from executor.adapters.huggingface import hugging_face_layer
from executor.deployment import Recorder
from executor.exchange import Exchange
from executor.held import Held
from executor.layout import LayerLayout
from executor.measure import PhaseClock
from executor.moe import MoE
from planner import Plan
from topologies import BadInput


class MoELayer(Protocol):
    """What the executor asks of a MoE layer.

    Attributes:
        exchange: brings tokens to their experts and back; without communication until `apply_expert_parallel`.
        recorder: told of every routing, or None.
        clock: times the phases, or None.

    """

    exchange: Exchange
    recorder: Recorder | None
    clock: PhaseClock | None

    @property
    def num_experts(self) -> int:
        """E, logical experts."""

    @property
    def top_k(self) -> int | None:
        """K; None where the layer does not say."""

    @property
    def held(self) -> Held:
        """The experts of this rank, slot by slot."""

    @property
    def misfit(self) -> str:
        """Why the layer cannot be spread over ranks; empty where it can."""


def find_moe_layers(model: nn.Module) -> dict[str, MoELayer]:
    """Return the MoE layers of a model by their names, in the order of its modules; nothing is changed."""
    found = ((name, _layer_of(module)) for name, module in model.named_modules())
    return {name: layer for name, layer in found if layer is not None}


def _layer_of(module: nn.Module) -> MoELayer | None:
    if isinstance(module, MoE):
        return module
    return dispatching_layer(module) or hugging_face_layer(module)


def check_all_found(model: nn.Module, layers: Sequence[str]) -> None:
    """Raise BadInput where there is no MoE layer, or where a module has `experts` that are not of a known form."""
    for name, module in model.named_modules():
        experts = getattr(module, "experts", None)
        if not isinstance(experts, nn.Module) or not any(True for _ in experts.parameters()):
            continue
        if not any(name == layer or name.startswith(f"{layer}.") for layer in layers):
            raise BadInput(
                f"{name}: its experts ({type(experts).__name__}) are of no form that can be spread over ranks: see"
                " executor/adapters"
            )
    if not layers:
        raise BadInput("the model has no MoE layer: no module with experts")


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


def check_layer(name: str, layer: MoELayer, layout: LayerLayout, plan: Plan | None) -> None:
    """Refuse a layer that the layout or the plan does not fit, before anything of it is changed; raises BadInput."""
    if layer.misfit:
        raise BadInput(f"{name}: {layer.misfit}")
    held = layer.held
    check_shape(name, layer, layout, plan)
    if held.num_slots != layout.num_experts:
        raise BadInput(
            f"{name}: holds {held.num_slots} of {layout.num_experts} experts; expert parallelism is applied once, "
            "to a layer with all of them"
        )
    if any(hasattr(param, "device_mesh") for param in held.parameters()):
        raise BadInput(f"{name}: its experts are sharded already; apply expert parallelism before FSDP2")


def check_shape(name: str, layer: MoELayer, layout: LayerLayout, plan: Plan | None) -> None:
    """Refuse a layer whose numbers are not those of the layout and the plan, however many experts are here."""
    if layout.num_experts != layer.num_experts:
        raise BadInput(f"{name}: {layer.num_experts} experts, the plan has {layout.num_experts}")
    if plan is None:
        return
    held = layer.held
    found = {"top_k": layer.top_k, "hidden": held.hidden, "intermediate": held.intermediate}
    for what, value in found.items():
        if value is not None and value != getattr(plan.model, what):
            raise BadInput(
                f"{name}: {what} is {value}, the plan is for {plan.model.name} with {getattr(plan.model, what)}"
            )


def check_apart(layers: Mapping[str, MoELayer]) -> None:
    """Refuse layers that share a tensor of their experts: each keeps slots of its own, so they would come apart."""
    owner: dict[int, str] = {}
    for name, layer in layers.items():
        for param in layer.held.parameters():
            other = owner.setdefault(id(param), name)
            if other != name:
                raise BadInput(f"{name}: shares tensors of its experts with {other}; every layer needs its own")


def shape_of(layer: MoELayer) -> str:
    """Say what must be the same on all ranks, whichever experts each of them holds."""
    held = layer.held
    types = sorted({str(param.dtype).removeprefix("torch.") for param in held.parameters()})
    sizes = {"top_k": layer.top_k, "hidden": held.hidden, "intermediate": held.intermediate}
    said = [f"{name} {size}" for name, size in sizes.items() if size is not None]
    parts = held.parts(0) if held.num_slots else {}
    frozen = [f"{name} frozen" for name, part in parts.items() if not part.param.requires_grad]
    return ", ".join([f"{layer.num_experts} experts", *said, *types, *frozen])
