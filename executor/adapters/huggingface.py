"""Mixture-of-Experts blocks of Hugging Face transformers (5.17 to 5.23), as they are.

The contract: a block has a module `experts` with packed parameters (`gate_up_proj` or `up_proj`, and `down_proj`, three
dimensions each), called as `experts(hidden_states (T, H), ids (T, K), weights (T, K)) -> (T, H)`, weighted already.
Only that call is replaced. Router, its buffers, shared experts, and all that the model records stay as they are, and
parameters keep their names.

Whether the experts compute what we think is not guessed from their attributes but tried: their forward and ours run a
few tokens through two tiny experts, and must agree.

Shapes: T tokens, K top_k, E experts, H hidden.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from executor.adapters.foreign import ForeignLayer
from executor.deployment import Deployment
from executor.exchange import local_exchange
from executor.held_forms import held_by

TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = 1e-4  # of the largest output: a gate may compute in fp32


class HuggingFaceLayer(ForeignLayer):
    """See `ForeignLayer`; the module is `experts`."""

    def install(self, deployment: Deployment) -> None:  # noqa: ARG002  # the forward finds it on the module
        """See `ForeignLayer`."""
        if "forward" not in vars(self.module):
            self.module.forward = MethodType(_forward, self.module)  # as transformers itself does

    @property
    def misfit(self) -> str:
        """See `ForeignLayer`."""
        return "" if self.deployment is not None else _misfit(self.module)


def hugging_face_layer(block: nn.Module) -> HuggingFaceLayer | None:
    """Return the layer that this block is; None where it does not have such experts."""
    experts = getattr(block, "experts", None)
    if not isinstance(experts, nn.Module):
        return None
    first = getattr(experts, "gate_up_proj", getattr(experts, "up_proj", None))
    matrices = (first, getattr(experts, "down_proj", None))
    if not all(isinstance(matrix, nn.Parameter) and matrix.ndim == 3 for matrix in matrices):
        return None
    router = getattr(block, "gate", getattr(block, "router", None))
    top_k = getattr(router, "top_k", getattr(block, "top_k", None))
    return HuggingFaceLayer(experts, top_k if isinstance(top_k, int) else None)


def _forward(experts: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Stand in for the forward of the experts; an id that is no expert's, as E, skips its entry."""
    deployment: Any = experts.ep_deployment
    return run(deployment, experts, hidden_states, top_k_index, top_k_weights)


def run(deployment: Deployment, experts: Any, x_TH: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """Return [T, H]: the experts' weighted outputs; ids outside 0..E-1 are skipped, as transformers means them."""
    E = deployment.exchange.layout.num_experts
    ids_TK = ids_TK.masked_fill((ids_TK < 0) | (ids_TK >= E), -1)
    return deployment.run(held_by(experts), x_TH, weights_TK, ids_TK)


def _misfit(experts: nn.Module) -> str:
    """Return why these experts cannot be spread over ranks; empty where they can."""
    if getattr(experts, "_is_expert_parallel", False):
        return "its experts are expert-parallel already, by transformers"
    if "forward" in vars(experts):
        return "the forward of its experts has been replaced already"
    held = held_by(experts)
    own = list(held.parts(0))
    shared = [name for name, _ in experts.named_parameters() if name not in own]
    if shared:
        return f"its experts share {shared[0]}, which belongs to no single one"
    numbers = sorted({len(param) for param in held.parameters()})
    if len(numbers) > 1:
        return f"its packed parameters have {' and '.join(map(str, numbers))} experts"
    odd = [name for name, part in held.parts(0).items() if part.param.dtype not in TYPES]
    if odd:
        return f"{odd[0]} is stored as {getattr(experts, odd[0]).dtype}; ranks exchange plain floating numbers only"
    return _tried(experts, held.num_slots)


@torch.no_grad()
def _tried(experts: nn.Module, num_experts: int) -> str:
    """Run their forward and ours on a stand-in with two tiny experts; return what differs."""
    g = torch.Generator().manual_seed(0)
    H, rows = 8, min(2, num_experts)
    stand_in = _with_tiny_experts(experts, rows, H, g)
    x_TH = torch.randn(4, H, generator=g, dtype=torch.float64)
    weights_TK = torch.rand(4, 2, generator=g, dtype=torch.float64)
    ids_TK = torch.arange(8).remainder(rows).view(4, 2)
    theirs: Callable[..., Tensor] = inspect.unwrap(type(experts).forward)  # without the kernels that it may choose from
    ours = Deployment(local_exchange(rows))
    try:
        wanted_TH = theirs(stand_in, x_TH, ids_TK, weights_TK)
    except Exception as error:  # whatever it raises, it is not called as we call it
        return f"its experts cannot be called with (hidden_states, ids, weights): {error}"
    if _differ(wanted_TH, run(ours, stand_in, x_TH, ids_TK, weights_TK)):
        return "its experts compute something else than gate, up and down matrices say"
    skip_TK = ids_TK.clone()
    skip_TK[::2, 0] = num_experts
    try:
        wanted_TH = theirs(stand_in, x_TH, skip_TK, weights_TK)
    except Exception:  # it knows no such id, and never gets one
        return ""
    if _differ(wanted_TH, run(ours, stand_in, x_TH, skip_TK, weights_TK)):
        return f"its experts give the id {num_experts} a meaning of its own (an expert without weights, say)"
    return ""


def _with_tiny_experts(experts: nn.Module, rows: int, hidden: int, g: torch.Generator) -> Any:
    """Return a shallow copy with other parameters: fp64, `rows` experts, H and I small."""
    inner, transposed = 4, getattr(experts, "is_transposed", False)
    shapes = {"gate_up_proj": (2 * inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}

    def tiny(name: str) -> nn.Parameter:
        out, into = shapes[name.removesuffix("_bias")]
        matrix = (into, out) if transposed else (out, into)
        shape = (out,) if name.endswith("_bias") else matrix
        return nn.Parameter(torch.randn(rows, *shape, generator=g, dtype=torch.float64))

    stand_in = copy.copy(experts)
    stand_in._parameters = {name: tiny(name) for name in held_by(experts).parts(0)}
    return stand_in


def _differ(wanted_TH: Tensor, found_TH: Tensor) -> bool:
    if wanted_TH.shape != found_TH.shape:
        return True
    return bool((wanted_TH - found_TH).abs().max() > TOLERANCE * wanted_TH.abs().max())
