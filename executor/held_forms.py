"""held_by: the experts of a module, by the form in which their tensors stand.

| form                        | tensors, S slots first                                                             |
|-----------------------------|------------------------------------------------------------------------------------|
| `PackedExperts`             | gate_up (S, 2I, H), down (S, H, I), and biases                                     |
| `ListedExperts`, ModuleList | a module each                                                                      |
| three matrices              | gate_w, up_w (S, H, I), down_w (S, I, H), as KempnerForge packs them; gate_w or    |
|                             | `_packed_activation`                                                               |
| Hugging Face                | gate_up_proj (S, 2I, H) or up_proj (S, I, H), down_proj (S, H, I), biases `*_bias`; |
|                             | with `is_transposed` the last two dimensions are the other way round; what stands  |
|                             | between the matrices is `_apply_gate` or `act_fn`                                  |

Shapes: S slots of this rank, N rows sorted by slot, H hidden, I intermediate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from executor.expert_slices import Cut
from executor.experts import ListedExperts, PackedExperts, SlotRows, linear_by_slot
from executor.held import Held, ListedHeld, PackedHeld, Weights
from executor.partial_gradient import share_of
from topologies.errors import BadInput


def held_by(moe: Any) -> Held:
    """Return the experts of a module, which has them itself or as `moe.experts`; raises BadInput for other forms."""
    experts = getattr(moe, "experts", moe)
    if isinstance(experts, ListedExperts):
        return ListedHeld(experts)
    if isinstance(experts, nn.ModuleList):
        return ListedHeld(moe)
    if isinstance(experts, PackedExperts):
        return _ours(experts)
    if hasattr(experts, "up_w") and hasattr(experts, "down_w"):
        return _three_matrices(experts)
    if hasattr(experts, "down_proj") and (hasattr(experts, "gate_up_proj") or hasattr(experts, "up_proj")):
        return _hugging_face(experts)
    raise BadInput(
        f"{type(moe).__name__} has no experts of a known form: a ModuleList, PackedExperts, up_w with down_w (and"
        " gate_w), or gate_up_proj with down_proj"
    )


def _ours(experts: PackedExperts) -> PackedHeld:
    def apply(weights: Weights, x_NH: Tensor, rows: SlotRows) -> Tensor:
        y_NH: Tensor = functional_call(experts, dict(weights), (x_NH, rows))
        return y_NH

    _, hidden, intermediate = experts.down.shape
    return PackedHeld(experts, tuple(name for name, _ in experts.named_parameters()), apply, hidden, intermediate)


def _three_matrices(experts: Any) -> PackedHeld:
    gated = getattr(experts, "gate_w", None) is not None

    def apply(weights: Weights, x_NH: Tensor, rows: SlotRows) -> Tensor:
        up_NI = linear_by_slot(x_NH, rows, weights["up_w"].transpose(1, 2))
        if gated:
            inner_NI = functional.silu(linear_by_slot(x_NH, rows, weights["gate_w"].transpose(1, 2))) * up_NI
        else:
            inner_NI = experts._packed_activation(up_NI)
        return linear_by_slot(inner_NI, rows, weights["down_w"].transpose(1, 2))

    _, intermediate, hidden = experts.down_w.shape
    names = ("gate_w", "up_w", "down_w") if gated else ("up_w", "down_w")
    return PackedHeld(experts, names, apply, hidden, intermediate)


def _hugging_face(experts: Any) -> PackedHeld:
    gated, transposed = hasattr(experts, "gate_up_proj"), getattr(experts, "is_transposed", False)
    first = "gate_up_proj" if gated else "up_proj"
    cuts: Mapping[str, Cut] = getattr(experts, "expert_cuts", {})
    tp_ranks = cuts["down_proj"].ranks.size if cuts else 1
    gate = gate_of(experts)

    def linear(weights: Weights, name: str, bias_SB: Tensor | None, x_NA: Tensor, rows: SlotRows) -> Tensor:
        matrix = weights[name].transpose(1, 2) if transposed else weights[name]
        return linear_by_slot(x_NA, rows, matrix, bias_SB)

    def apply(weights: Weights, x_NH: Tensor, rows: SlotRows) -> Tensor:
        inner_NI = gate(linear(weights, first, weights.get(f"{first}_bias"), x_NH, rows))
        bias_SH = weights.get("down_proj_bias")
        if bias_SH is not None and tp_ranks > 1:
            bias_SH = share_of(bias_SH, tp_ranks)
        return linear(weights, "down_proj", bias_SH, inner_NI, rows)

    names = (first, f"{first}_bias", "down_proj", "down_proj_bias")
    held = tuple(name for name in names if getattr(experts, name, None) is not None)
    sizes = experts.down_proj.shape[1:]
    hidden, intermediate = reversed(sizes) if transposed else sizes
    return PackedHeld(experts, held, apply, hidden, intermediate * tp_ranks, cuts)


def gate_of(experts: Any) -> Callable[[Tensor], Tensor]:
    """Return what stands between the matrices of Hugging Face's experts.

    It makes [N, I] of the first matrix's outputs: [N, 2I], gates and ups as the module has them, or [N, I] without
    gates.
    """
    activation = getattr(experts, "act_fn", functional.silu)
    if not hasattr(experts, "gate_up_proj"):
        plain: Callable[[Tensor], Tensor] = activation
        return plain
    own: Callable[[Tensor], Tensor] | None = getattr(experts, "_apply_gate", None)
    return own or partial(_gated, activation)


def _gated(activation: Callable[[Tensor], Tensor], inner_NF: Tensor) -> Tensor:
    gate_NI, up_NI = inner_NF.chunk(2, dim=-1)
    return activation(gate_NI) * up_NI
