"""JSON `{"logical_count": [layers][experts]}` or `[steps][layers][experts]`, as SGLang's users exchange it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.hf_values import parse_json
from planner.readers.raw import RawRouting, checked_counts, decode, names_held, summed_steps
from topologies.errors import BadInput

MAX_DEPTH = 3


def read_json(data: bytes, source: str) -> RawRouting:
    """Return the counts of a JSON document; `source` is the file to name in errors."""
    document = parse_json(decode(data, source), source)
    what = f"{source}: logical_count"
    counts = checked_counts(_as_array(_counts_of(document, source), what), what)
    return RawRouting(counts=summed_steps(counts, what)[:, None, :])


def _counts_of(document: Any, source: str) -> list[Any]:
    if not isinstance(document, dict):
        raise BadInput(f'{source}: a JSON {type(document).__name__}, not an object with "logical_count"')
    if "logical_count" not in document:
        hint = "; this is a placement, not statistics" if "physical_to_logical_map" in document else ""
        raise BadInput(f'{source}: no "logical_count"; keys: {names_held(document)}{hint}')
    counts = document["logical_count"]
    if not isinstance(counts, list):
        raise BadInput(f"{source}: logical_count is {str(counts)[:40]!r}, not a list of lists")
    return counts


def _as_array(nested: list[Any], what: str) -> NDArray[Any]:
    """Return nested lists of numbers as an array; raise BadInput naming the first entry that is no number or no row."""
    try:
        values = np.array(nested)
    except ValueError:
        values = np.array(None)
    if values.dtype.kind in "iuf" and not _has_bool(nested):
        return values
    _blame(nested, what, None, MAX_DEPTH)
    return np.array(nested, dtype=np.float64)  # integers past 64 bits


def _has_bool(value: Any) -> bool:
    return any(type(v) is bool or (type(v) is list and _has_bool(v)) for v in value)


def _blame(value: Any, what: str, shape: tuple[int, ...] | None, depth: int) -> tuple[int, ...]:
    """Return the shape of nested lists; raise BadInput at the first entry that breaks it or is deeper than `depth`."""
    if not isinstance(value, list):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadInput(f"{what} = {str(value)[:40]!r}: not a number")
        if isinstance(value, int) and abs(value) > 2**1000:
            raise BadInput(f"{what}: a number of {value.bit_length()} bits")
        return ()
    if depth == 0:
        raise BadInput(f"{what}: is a list, where [layers][experts] or [steps][layers][experts] has a number")
    if shape is not None and (not shape or len(value) != shape[0]):
        raise BadInput(f"{what}: has {len(value)} entries, the row before it {shape[0] if shape else 'is a number'}")
    inner: tuple[int, ...] | None = shape[1:] if shape else None
    for index, each in enumerate(value):
        found = _blame(each, f"{what}[{index}]", inner, depth - 1)
        if inner is not None and found != inner:
            raise BadInput(f"{what}[{index}]: is a number where the entries before it are lists")
        inner = found
    return (len(value), *(inner or ()))
