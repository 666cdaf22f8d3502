"""Megatron-LM's routing trace: `router_trace_rank{N}.jsonl`, one file a rank (`--moe-routing-trace-path DIR`).

Format (NVIDIA/Megatron-LM, megatron/core/transformer/moe/router_trace.py @ 059f0f5c): a line for each step and layer,
{"step", "stage", "block": "decoder" | "mtp", "layer", "rank", "num_tokens", "topk", "top_indices": [[expert, ...],
...]}. `layer` is that of the module's name in its pipeline stage, from 0; older traces number layers from 1, which is
noticed where a model is given. Multi-token-prediction blocks are left out. `rank` is the rank that sends the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.readers.plain_tables import table_of
from planner.readers.raw import RawRouting, check_ids, refuse_repeats
from planner.readers.source import RoutingFile
from planner.readers.tally import Tally
from topologies.errors import BadInput
from topologies.json_text import parse_json

MAX_LINE_BYTES = 64 * 2**20
MAX_RANK = 99_999
FIELDS = ("step", "layer", "rank", "top_indices")


def read_megatron(files: Sequence[RoutingFile], source: str) -> RawRouting:
    """Return the routing of the trace files of some ranks; `source` names them all in errors."""
    tally = Tally(source)
    left_out = 0
    for file in files:
        block = _Block(tally)
        for number, line in file.lines(MAX_LINE_BYTES):
            what = f"{file.source}: line {number}"
            record = _record(line, what)
            if record.get("block", "decoder") != "decoder":
                left_out += 1
                continue
            step, layer, rank = (_integer(record, key, what) for key in FIELDS[:3])
            ids_TK = _ids(record, what)
            if ids_TK.size:
                tally.add_ids(layer, rank, step, ids_TK)
                block.add((rank, step), layer, ids_TK)
        block.close()
    mtp = (f"{source}: {left_out} records of multi-token-prediction layers are left out",) if left_out else ()
    return replace(tally.result(remarks=mtp), from_one=True)


class _Block:
    """Gathers the layers that one rank's tokens run through in one step; a layer that comes again starts the next."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._key: tuple[int, int] | None = None
        self._ids: dict[int, NDArray[Any]] = {}

    def add(self, key: tuple[int, int], layer: int, ids_TK: NDArray[Any]) -> None:
        """Add the choices of one layer."""
        if key != self._key or layer in self._ids:
            self.close()
            self._key = key
        self._ids[layer] = ids_TK

    def close(self) -> None:
        """Hand the block over."""
        if self._ids and self._key is not None:
            self._tally.tokens.add(self._key[0], self._ids)
        self._ids = {}


def _record(line: bytes, what: str) -> dict[str, Any]:
    """Return one record; top_indices as an array where they are plainly written."""
    start = line.find(b"[", line.find(b'"top_indices"'))
    end = line.find(b"]]", start) + 2
    ids_TK = table_of(line[start:end]) if 0 < start < end else None
    record = parse_json(line if ids_TK is None else line[:start] + b"[]" + line[end:], what)
    if ids_TK is not None and isinstance(record, dict) and record.get("top_indices") == []:
        record["top_indices"] = ids_TK
    missing = [key for key in FIELDS if not isinstance(record, dict) or key not in record]
    if missing:
        raise BadInput(f"{what}: no {missing[0]!r}; a record of a routing trace has {', '.join(FIELDS)}")
    return record  # type: ignore[no-any-return]  # checked to be a dict just above


def _integer(record: dict[str, Any], key: str, what: str) -> int:
    value = record[key]
    limit = MAX_RANK if key == "rank" else 2**31
    if type(value) is not int or not 0 <= value <= limit:
        raise BadInput(f"{what}: {key} = {str(value)[:40]!r} is not an integer from 0 to {limit}")
    return value


def _ids(record: dict[str, Any], what: str) -> NDArray[Any]:
    """Return top_indices [tokens, top_k]."""
    listed = record["top_indices"]
    if isinstance(listed, np.ndarray):
        return _checked(listed, record, what)
    try:
        ids_TK = np.array(listed)
    except ValueError:
        ids_TK = np.zeros(0)
    if ids_TK.size == 0 and listed == []:
        return ids_TK
    if ids_TK.ndim != 2 or ids_TK.dtype.kind not in "iu":
        raise BadInput(f"{what}: top_indices is not a list of equally long lists of integers")
    return _checked(ids_TK, record, what)


def _checked(ids_TK: NDArray[Any], record: dict[str, Any], what: str) -> NDArray[Any]:
    if "num_tokens" in record and record["num_tokens"] != len(ids_TK):
        raise BadInput(f"{what}: num_tokens = {str(record['num_tokens'])[:20]}, but top_indices has {len(ids_TK)}")
    check_ids(ids_TK, f"{what}: top_indices")
    refuse_repeats(ids_TK, f"{what}: top_indices")
    return ids_TK
