"""Router logits of Hugging Face models (`output_router_logits=True`), saved by NumPy or safetensors.

`outputs.router_logits` is a tuple with [batch * sequence, experts] floats for each MoE layer. Accepted: one array
[layers, tokens, experts], or an array [tokens, experts] for each layer under names that end in its number (`arr_0`,
`router_logits.3`), MoE layers in that order. The chosen experts are the top-k of the model of each row: softmax and
sigmoid keep the order. They are *not* those of a router that adds a correction bias to its scores or limits tokens to
groups (DeepSeek-V3): the logits do not tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.readers.npy import ArrayFile
from planner.readers.raw import MAX_EXPERTS, RawRouting
from planner.readers.traces import read_trace
from topologies.errors import BadInput

NUMBERED = re.compile(r"(.*?)(\d{1,5})(\D*)")


def is_logits(arrays: Mapping[str, ArrayFile]) -> bool:
    """Return whether arrays look like router logits: floats, one of three sides or some of two."""
    if not arrays or any(array.dtype.kind != "f" and not array.bf16 for array in arrays.values()):
        return False
    sides = {len(array.shape) for array in arrays.values()}
    return sides == {3} if len(arrays) == 1 else sides == {2}


def read_logits(arrays: Mapping[str, ArrayFile], source: str, top_k: int | None) -> RawRouting:
    """Return the routing of router logits; `top_k` is that of the model.

    Raises BadInput without a model, for layers of different shapes, and for NaN.
    """
    if top_k is None:
        raise BadInput(f"{source}: router logits; how many experts a token visits is in the model: give --model")
    ordered = _in_order(arrays, source)
    shapes = {array.shape[-2:] for array in ordered}
    tokens, experts = ordered[0].shape[-2:]
    if len(shapes) > 1 or 0 in ordered[0].shape:
        raise BadInput(f"{source}: router logits of shapes {sorted(shapes)[:3]}; every layer has [tokens, experts]")
    if not top_k <= experts <= MAX_EXPERTS:
        raise BadInput(f"{source}: router logits of {experts} experts; the model's top_k is {top_k}")

    def choose(logits_TE: NDArray[Any], what: str) -> NDArray[np.int16]:
        if np.isnan(logits_TE).any():
            token, expert = (int(i) for i in np.argwhere(np.isnan(logits_TE))[0])
            raise BadInput(f"{what}: the logit of token {token} for expert {expert} is NaN")
        return np.argpartition(-logits_TE, top_k - 1, axis=1)[:, :top_k].astype(np.int16)

    if len(ordered) == 1 and len(ordered[0].shape) == 3:
        layers = [(ordered[0], row * tokens) for row in range(ordered[0].shape[0])]
    else:
        layers = [(array, 0) for array in ordered]
    raw = read_trace(layers, choose, top_k, what=f"{source}: router logits")
    note = f"{source}: top-{top_k} of the logits; a router with a correction bias or group limits chooses otherwise"
    fields: dict[str, Any] = vars(raw) | {"experts": experts, "listed": False, "remarks": (*raw.remarks, note)}
    if raw.counts is not None:
        fields["counts"] = np.pad(raw.counts, ((0, 0), (0, 0), (0, experts - raw.counts.shape[2])))
    return RawRouting(**fields)


def _in_order(arrays: Mapping[str, ArrayFile], source: str) -> list[ArrayFile]:
    if len(arrays) == 1:
        return list(arrays.values())
    numbered = {}
    for name, array in arrays.items():
        match = NUMBERED.fullmatch(name)
        if match is None:
            raise BadInput(
                f"{source}: the array {name[:40]!r} is not numbered as router logits are (router_logits.0, ...)"
            )
        numbered[match[1], match[3], int(match[2])] = array
    if len({(before, after) for before, after, _ in numbered}) > 1 or len(numbered) < len(arrays):
        raise BadInput(
            f"{source}: arrays of several names; router logits are numbered under one (router_logits.0, ...)"
        )
    return [numbered[key] for key in sorted(numbered)]
