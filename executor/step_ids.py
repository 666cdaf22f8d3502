"""The tokens of a measured step: which experts each token of each rank visits, from statistics or at random.

Shapes: L layers, R ranks, T tokens of one rank, K top_k, E experts, N tokens of a trace.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner import MoEModel, Routing
from planner.placement import FloatArray, IntArray
from planner.sampling import sample_tokens
from topologies.errors import BadInput

SEED = 20_26


def step_ids(
    model: MoEModel, layers: Sequence[int], num_ranks: int, tokens: int, routing: Routing | None
) -> dict[int, list[IntArray]]:
    """Return, for each layer (by its index in the model) and rank, the expert ids [T, K] of `tokens` tokens.

    The tokens of a trace are dealt out: to the ranks that they came from where the trace says so, else to one rank
    after the other; where there are too few, they are used again. Plain counts are sampled, with the router's group
    limit. Without statistics all experts are equally likely. Every process finds the same ids.

    Raises BadInput where the statistics lack a layer, or name more sources than there are ranks.
    """
    if routing is None:
        p_LE = np.full((len(layers), model.experts), 1.0 / model.experts)
        drawn_LTK = _sampled(model, p_LE, num_ranks * tokens)
        return {layer: np.split(ids_TK, num_ranks) for layer, ids_TK in zip(layers, drawn_LTK, strict=True)}
    chosen = routing.select(layers)
    if chosen.num_sources > num_ranks:
        raise BadInput(f"{chosen.name}: tokens of {chosen.num_sources} source ranks, but the plan has {num_ranks}")
    if chosen.trace is not None:
        of_rank = _dealt(chosen, num_ranks, tokens)
        return {
            layer: [trace_NK[token_T].astype(np.int64) for token_T in of_rank]
            for layer, trace_NK in zip(chosen.layers, chosen.trace, strict=True)
        }
    sources = [0] * num_ranks if chosen.num_sources == 1 else list(range(chosen.num_sources))
    drawn = [_sampled(model, chosen.counts[:, source], tokens, rank) for rank, source in enumerate(sources)]
    idle = [np.empty((len(layers), 0, model.top_k), dtype=np.int64)] * (num_ranks - len(sources))
    return {layer: [one_LTK[row] for one_LTK in (*drawn, *idle)] for row, layer in enumerate(chosen.layers)}


def _dealt(routing: Routing, num_ranks: int, tokens: int) -> list[IntArray]:
    """Return the tokens of the trace that each rank takes; a rank that none came from has none."""
    N = routing.num_tokens or 0
    if routing.token_source is None:
        return list((np.arange(num_ranks * tokens) % N).reshape(num_ranks, tokens))
    own = [np.flatnonzero(routing.token_source == rank) for rank in range(num_ranks)]
    return [np.resize(token_N, tokens if len(token_N) else 0) for token_N in own]


def _sampled(model: MoEModel, p_LE: FloatArray, tokens: int, stream: int = 0) -> IntArray:
    """Return int64 [L, tokens, K]; a source without counts is taken to send evenly."""
    p_LE = np.where(p_LE.any(axis=1, keepdims=True), p_LE, 1.0)
    ids_LTK = sample_tokens(p_LE, model.top_k, model.groups, model.top_groups, tokens, SEED + stream)
    return ids_LTK.astype(np.int64)
