"""Which layer of the model each row of a routing file belongs to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.model import MoEModel
from topologies.errors import BadInput

MAX_EXTRA_ROWS = 8
"""Rows past the model's layers that are taken for multi-token-prediction layers."""


def place_rows(
    busy: NDArray[np.bool_],
    stated: tuple[int, ...] | None,
    model: MoEModel | None,
    source: str,
    *,
    from_one: bool = False,
) -> tuple[NDArray[np.intp], tuple[int, ...], tuple[str, ...]]:
    """Match rows with layers and leave the dense ones out.

    Args:
        busy: [rows], whether any token visits an expert of the row.
        stated: the layer of each row, where the file states it.
        model: None where it is not known: rows are then layers by their number.
        source: the file to name in errors.
        from_one: the stated layers may be numbered from 1; they are where only that fits the model.

    Returns:
        (rows to keep, their layers ascending, remarks for the user).

    """
    if not busy.any():
        raise BadInput(f"{source}: every count is zero; these are no statistics")
    if stated is not None and from_one and model is not None and not set(stated) <= set(model.moe_layers):
        lower = tuple(layer - 1 for layer in stated)
        if set(lower) <= set(model.moe_layers):
            kept, layers, remarks = _by_statement(busy, lower, model, source)
            return kept, layers, (f"{source}: numbers layers from 1; shifted to those of {model.name}", *remarks)
    if stated is not None:
        return _by_statement(busy, stated, model, source)
    rows = len(busy)
    if model is None:
        kept = np.flatnonzero(busy)
        return kept, tuple(int(i) for i in kept), ()
    if rows == len(model.moe_layers) != model.num_layers:
        if not busy.all():
            row = int(np.argmin(busy))
            raise BadInput(f"{source}: row {row} (layer {model.moe_layers[row]}) of {rows} MoE layers has no counts")
        return np.arange(rows), model.moe_layers, ()
    return _by_number(busy, model, source)


def _by_number(
    busy: NDArray[np.bool_], model: MoEModel, source: str
) -> tuple[NDArray[np.intp], tuple[int, ...], tuple[str, ...]]:
    """Row number = layer: all layers, the first of them, or all and a few prediction layers after them.

    The first few are believed only where a dense layer among them shows that the numbers are those of this model.
    """
    rows, num_layers = len(busy), model.num_layers
    is_moe = np.zeros(max(rows, num_layers), dtype=bool)
    is_moe[list(model.moe_layers)] = True
    inside = min(rows, num_layers)
    wrong = np.flatnonzero(busy[:inside] != is_moe[:inside])
    unfit = len(wrong) > 0 and rows != num_layers
    if unfit or rows > num_layers + MAX_EXTRA_ROWS or (rows < num_layers and busy.all()):
        raise BadInput(
            f"{source}: {rows} rows; the model {model.name} has {num_layers} layers, "
            f"{len(model.moe_layers)} of them MoE ({_ranges(model.moe_layers)}); "
            f"for a part of them state the layers (.npz: layers, CSV: layer)"
        )
    if len(wrong):
        row = int(wrong[0])
        found = f"has counts, but is {_not_moe(row, model)}" if busy[row] else "has no counts, but is a MoE layer"
        raise BadInput(f"{source}: row {row} of {rows} {found}")
    kept = np.flatnonzero(busy[:inside])
    layers = tuple(int(i) for i in kept)
    remarks = _partial(layers, model, source)
    if rows > num_layers:
        remarks = (f"{source}: rows from {num_layers} on are past the model's {num_layers} layers and left out",)
    return kept, layers, remarks


def _by_statement(
    busy: NDArray[np.bool_], stated: tuple[int, ...], model: MoEModel | None, source: str
) -> tuple[NDArray[np.intp], tuple[int, ...], tuple[str, ...]]:
    if len(stated) != len(busy):
        raise BadInput(f"{source}: {len(stated)} layer numbers for {len(busy)} rows")
    order = np.argsort(np.array(stated), kind="stable")
    ascending = [stated[i] for i in order]
    twice = [a for a, b in itertools.pairwise(ascending) if a == b]
    if twice:
        raise BadInput(f"{source}: layer {twice[0]} is stated twice")
    kept = order[busy[order]]
    layers = tuple(stated[i] for i in kept)
    if model is None:
        return kept, layers, ()
    moe = set(model.moe_layers)
    strange = next((layer for layer in layers if layer not in moe), None)
    if strange is not None:
        raise BadInput(f"{source}: layer {strange} has counts, but is {_not_moe(strange, model)}")
    silent = next((stated[i] for i in order if not busy[i] and stated[i] in moe), None)
    if silent is not None:
        raise BadInput(f"{source}: layer {silent} has no counts, but is a MoE layer of the model {model.name}")
    return kept, layers, _partial(layers, model, source)


def _not_moe(layer: int, model: MoEModel) -> str:
    what = "dense" if layer < model.num_layers else f"past the last of {model.num_layers}"
    return f"{what} in the model {model.name} ({_ranges(model.moe_layers)})"


def _partial(layers: tuple[int, ...], model: MoEModel, source: str) -> tuple[str, ...]:
    """Return the remark that is due where the file says nothing of some MoE layers."""
    if len(layers) == len(model.moe_layers):
        return ()
    return (
        f"{source}: statistics of {len(layers)} of the {len(model.moe_layers)} MoE layers; the others are left out",
    )


def _ranges(layers: Sequence[int]) -> str:
    """Return ascending numbers in short: (3, 4, 5, 8) -> "MoE layers 3..5, 8"."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], layer]
        else:
            parts.append([layer])
    text = ", ".join("..".join(map(str, part)) for part in parts[:6])
    return f"MoE layers {text}{', ...' if len(parts) > 6 else ''}"
