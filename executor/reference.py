"""The answers to compare with: one process, every expert, straight from the definitions.

`dense_moe` is the MoE layer that every exchange and every plan must equal; `expert_parallel_dispatch` is expert
parallelism with one matrix an expert, in NumPy. Neither shares code with the layers that run, and this file imports
no torch: tensors bring their methods along.

Shapes: T tokens, K top_k, E experts, H hidden, I intermediate; N tokens and d their width in the NumPy function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from topologies.errors import BadInput, unknown_name

if TYPE_CHECKING:
    from torch import Tensor


def dense_moe(
    x_TH: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    gate_up_E2IH: Tensor,
    down_EHI: Tensor,
    activation: str = "swiglu",
    gate_up_bias_E2I: Tensor | None = None,
    down_bias_EH: Tensor | None = None,
) -> Tensor:
    """Return y_TH, for each token the sum over k of `weights[t, k] * expert[ids[t, k]](x[t])`.

    Every expert computes every token, so it is slow, differentiable everywhere, and has no special cases: an id of -1
    belongs to no expert, an id that stands twice counts twice. `gate_up_E2IH` is (E, I, H) where `activation` is
    "gelu".
    """
    y_TH = x_TH * 0.0
    for expert in range(len(down_EHI)):
        inner_TI = x_TH @ gate_up_E2IH[expert].T
        if gate_up_bias_E2I is not None:
            inner_TI = inner_TI + gate_up_bias_E2I[expert]
        out_TH = activate(inner_TI, activation) @ down_EHI[expert].T
        if down_bias_EH is not None:
            out_TH = out_TH + down_bias_EH[expert]
        weight_T = (weights_TK * (ids_TK == expert)).sum(1)
        y_TH = y_TH + weight_T[:, None] * out_TH
    return y_TH.to(x_TH.dtype)


def activate(inner: Tensor, name: str) -> Tensor:
    """Return an expert's non-linearity, by its definition.

    swiglu: silu(gate) * up (Shazeer 2020). gelu: x * Phi(x), not gated. clamped-swiglu: gpt-oss's, with gate <= 7,
    -7 <= up <= 7 and gate * sigmoid(1.702 gate) * (up + 1). The gate is the first half of the columns.
    """
    if name == "gelu":
        return inner * 0.5 * (1.0 + (inner / math.sqrt(2.0)).erf())
    half = inner.shape[-1] // 2
    gate, up = inner[..., :half], inner[..., half:]
    if name == "swiglu":
        return gate * gate.sigmoid() * up
    if name == "clamped-swiglu":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return gate * (1.702 * gate).sigmoid() * (up + 1.0)
    raise unknown_name("activation", name, ["clamped-swiglu", "gelu", "swiglu"])


def expert_parallel_dispatch(
    tokens: ArrayLike, routing: ArrayLike, expert_Ws: Sequence[ArrayLike] | ArrayLike, rank: int, world_size: int
) -> NDArray[Any]:
    """Return what one rank contributes to an MoE layer with one matrix an expert and one expert a token.

    Expert e turns a token, a row vector, into `token @ W_e`. With E = len(expert_Ws) * world_size, rank r owns the
    experts [r * E / world_size, (r + 1) * E / world_size). The sum of all ranks' results is the whole layer.

    Args:
        tokens: (N, d), the same on every rank.
        routing: (N,) integers, the expert of each token, in 0..E-1.
        expert_Ws: the rank's own matrices (d, d), in order of expert ids.
        rank: this rank, in 0..world_size-1.
        world_size: ranks.

    Returns:
        (N, d) of the common type of tokens and matrices; rows of other ranks' tokens are zero.

    Raises:
        BadInput: shapes, rank or expert ids do not fit together.

    """
    tokens_Nd, routing_N, W_Edd = np.asarray(tokens), np.asarray(routing), _stack(expert_Ws)
    _check_shapes(tokens_Nd, routing_N, W_Edd)
    if world_size < 1 or not 0 <= rank < world_size:
        raise BadInput(f"rank {rank} is not in 0..world_size-1 (world_size is {world_size})")
    local = len(W_Edd)
    _check_ids(routing_N, local * world_size)

    out_Nd = np.zeros(tokens_Nd.shape, dtype=np.result_type(tokens_Nd, W_Edd))
    for nth, W in enumerate(W_Edd):
        mine_N = routing_N == rank * local + nth
        out_Nd[mine_N] = tokens_Nd[mine_N] @ W
    return out_Nd


def _stack(expert_Ws: Sequence[ArrayLike] | ArrayLike) -> NDArray[Any]:
    try:
        return np.asarray(expert_Ws)
    except ValueError as error:  # numpy's word for matrices of several shapes
        raise BadInput(f"expert_Ws are not matrices of one shape: {error}") from None


def _check_shapes(tokens_Nd: NDArray[Any], routing_N: NDArray[Any], W_Edd: NDArray[Any]) -> None:
    if tokens_Nd.ndim != 2:
        raise BadInput(f"tokens has shape {tokens_Nd.shape}, not (N, d)")
    N, d = tokens_Nd.shape
    if routing_N.shape != (N,):
        raise BadInput(f"routing has shape {routing_N.shape}, not (N,) = ({N},): one expert id for each token")
    if W_Edd.ndim != 3 or W_Edd.shape[1:] != (d, d):
        raise BadInput(f"expert_Ws has shape {W_Edd.shape}, not (experts of this rank, d, d) with d = {d} as in tokens")


def _check_ids(routing_N: NDArray[Any], experts: int) -> None:
    if not len(routing_N):
        return
    if not np.issubdtype(routing_N.dtype, np.integer):
        raise BadInput(f"routing is of type {routing_N.dtype}; expert ids are integers")
    wrong_W = np.flatnonzero((routing_N < 0) | (routing_N >= experts))
    if len(wrong_W):
        first = wrong_W[0]
        raise BadInput(
            f"routing[{first}] is expert {routing_N[first]}, not in 0..{experts - 1}"
            f" (len(expert_Ws) * world_size is {experts})"
        )
