"""Counts in JSON: what SGLang's users exchange, and what vLLM's load balancer holds; or one such object a line (JSONL).

`{"logical_count": [layers][experts]}` or `[steps][layers][experts]`. No released vLLM writes its load window to a file
(proposals #26176, #41141); scripts that do so dump fields of its `EplbState` under their own names, which are read:
`global_expert_load_window`, `logical_expert_load_window`, `expert_load_window`, `expert_load_pass`, of the same shapes.
With `physical_to_logical_map` [layers][slots] beside them the counts are of slots and are credited to their experts.
Every line of a JSONL file is a step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.readers.raw import RawRouting, check_ids, checked_counts, decode, from_steps, names_held
from planner.readers.source import RoutingFile
from planner.readers.tally import Tally
from topologies.errors import BadInput
from topologies.json_text import parse_json

MAX_DEPTH = 3
MAX_LINE_BYTES = 64 * 2**20
COUNTS = (
    "logical_count",
    "global_expert_load_window",
    "logical_expert_load_window",
    "expert_load_window",
    "expert_load_pass",
)


def read_json(data: bytes, source: str) -> RawRouting:
    """Return the counts of a JSON document; `source` is the file to name in errors."""
    document = parse_json(decode(data, source), source)
    return from_steps(*_logical(document, source))


def read_jsonl(file: RoutingFile) -> RawRouting:
    """Return the counts of a file with an object on every line, each a step."""
    tally = Tally(file.source)
    first: tuple[int, tuple[int, ...]] | None = None
    for step, (number, line) in enumerate(file.lines(MAX_LINE_BYTES)):
        what = f"{file.source}: line {number}"
        counts, name = _logical(parse_json(line, what), what)
        first = first or (number, counts.shape[-2:])
        if counts.shape[-2:] != first[1]:
            raise BadInput(
                f"{name}: [layers][experts] = {list(counts.shape[-2:])}, in line {first[0]} {list(first[1])}; "
                "all lines are of one model"
            )
        for layer, count_E in enumerate(from_steps(counts, name).counts[:, 0]):  # type: ignore[index]  # counts are set
            tally.add(layer, 0, step, count_E)
    return tally.result(stated=False)


def _logical(document: Any, source: str) -> tuple[NDArray[np.float64], str]:
    """Return the counts of logical experts, and their name."""
    counts, key = _counts_of(document, source)
    what = f"{source}: {key}"
    values = checked_counts(_as_array(counts, what), what)
    if "physical_to_logical_map" not in document:
        return values, what
    name = f"{source}: physical_to_logical_map"
    mapped = document["physical_to_logical_map"]
    map_LP = _as_array(mapped if isinstance(mapped, list) else [mapped], name)
    check_ids(map_LP, name)
    if (map_LP < 0).any():
        raise BadInput(f"{name}: a slot holds expert -1; every slot of the counts holds one: leave empty slots out")
    if map_LP.ndim != 2 or values.shape[-2:] != map_LP.shape:
        raise BadInput(
            f"{name}: shape {list(map_LP.shape)}, {key} has {list(values.shape)}; both end in [layers, slots]"
        )
    logical = np.zeros((*values.shape[:-1], int(map_LP.max()) + 1))
    for layer, expert_P in enumerate(map_LP):
        for slot, expert in enumerate(expert_P):
            logical[..., layer, expert] += values[..., layer, slot]
    return logical, what


def _counts_of(document: Any, source: str) -> tuple[list[Any], str]:
    if not isinstance(document, dict):
        raise BadInput(f'{source}: a JSON {type(document).__name__}, not an object with "logical_count"')
    key = next((key for key in COUNTS if key in document), None)
    if key is None:
        hint = "; this is a placement, not statistics" if "physical_to_logical_map" in document else ""
        raise BadInput(f'{source}: no "logical_count"; keys: {names_held(document)}{hint}')
    counts = document[key]
    if not isinstance(counts, list):
        raise BadInput(f"{source}: {key} is {str(counts)[:40]!r}, not a list of lists")
    return counts, key


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
    kinds = set(map(type, value))
    return bool in kinds or (list in kinds and any(_has_bool(v) for v in value if type(v) is list))


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
