"""What a placement file of any format says, checked, before it is matched with a model and a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from planner.placement import FloatArray, IntArray
from topologies.errors import BadInput

MAX_LAYERS = 10_000
MAX_SLOTS = 1_000_000  # of a layer, over all ranks


@dataclass(frozen=True, eq=False)
class SlotFile:
    """The slots of every row of a file.

    Attributes:
        experts: int64 [slots] for each row: the expert in every slot, ranks one after the other.
        ranks: int64 [slots] for each row, ascending; None where slots are spread over the ranks in equal blocks.
        rows_are: what the rows stand for: all transformer layers, the MoE layers, the one row for every layer, or the
            layers that `layers` numbers.
        layers: the layer of the model of each row, for `rows_are` = "numbered".
        masses: what each slot serves, in the proportion of the copies of its expert; None for equal copies.
        num_ranks: as the file states it.

    """

    experts: tuple[IntArray, ...]
    ranks: tuple[IntArray, ...] | None = None
    rows_are: Literal["transformer layers", "MoE layers", "every layer", "numbered"] = "MoE layers"
    layers: tuple[int, ...] = ()
    masses: tuple[FloatArray, ...] | None = None
    num_ranks: int | None = None


def expert_rows(value: Any, what: str) -> tuple[IntArray, ...]:
    """Return a list of lists of expert ids, parsed from JSON or YAML; raise BadInput naming the first wrong entry."""
    if not isinstance(value, list) or not value:
        raise BadInput(f"{what}: {type(value).__name__} {str(value)[:40]!r}, not a list with a row for every layer")
    if len(value) > MAX_LAYERS:
        raise BadInput(f"{what}: {len(value)} rows, over the limit of {MAX_LAYERS}")
    return tuple(expert_row(row, f"{what}[{index}]") for index, row in enumerate(value))


def expert_row(row: Any, what: str) -> IntArray:
    """Return a list of expert ids; raise BadInput naming the first entry that is none."""
    if not isinstance(row, list) or not row:
        raise BadInput(f"{what}: {type(row).__name__} {str(row)[:40]!r}, not a list of expert ids")
    if len(row) > MAX_SLOTS:
        raise BadInput(f"{what}: {len(row)} slots, over the limit of {MAX_SLOTS}")
    for index, expert in enumerate(row):
        if type(expert) is not int or not 0 <= expert < 2**31:
            raise BadInput(f"{what}[{index}] = {str(expert)[:40]!r}: not an expert id (an integer of at least 0)")
    return np.array(row, dtype=np.int64)


def integer_array(array: NDArray[Any], dimensions: int, least: int, what: str) -> IntArray:
    """Return an integer array as int64; raise BadInput for other types, dimensions, or entries below `least`."""
    if array.dtype.kind not in "iu":
        raise BadInput(f"{what}: holds {array.dtype}, not integers")
    if array.ndim != dimensions or not array.size:
        raise BadInput(f"{what}: shape {list(array.shape)}, not {dimensions} dimensions with entries in them")
    if int(array.min()) < least or int(array.max()) >= 2**31:
        value = int(array.min()) if int(array.min()) < least else int(array.max())
        raise BadInput(f"{what}{_first(array, value)} = {value}: outside {least}..2147483647")
    return array.astype(np.int64)


def _first(array: NDArray[Any], value: int) -> list[int]:
    return [int(i) for i in np.argwhere(array == value)[0]]


def check_keys(document: Any, required: Sequence[str], what: str) -> dict[str, Any]:
    """Return a JSON object that has the required keys; raise BadInput naming the first one missing."""
    if not isinstance(document, dict):
        raise BadInput(f"{what}: a {type(document).__name__}, not an object with {', '.join(required)}")
    missing = [key for key in required if key not in document]
    if missing:
        held = ", ".join(str(key)[:30] for key in list(document)[:8]) or "none"
        raise BadInput(f"{what}: no {missing[0]!r}; keys: {held}")
    return document
