"""safetensors files, read in pieces: 8 bytes of header length, a JSON header, then the tensors.

Format: huggingface/safetensors, README. Header: {name: {"dtype", "shape", "data_offsets": [begin, end]}}, offsets from
the end of the header; tensors lie without gaps or overlaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.readers.npy import ArrayFile
from planner.readers.raw import one_line
from planner.readers.source import RoutingFile
from topologies.errors import BadInput
from topologies.json_text import parse_json

MAX_HEADER_BYTES = 64 * 2**20  # the format allows 100 MB
MAX_TENSORS = 500_000
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1", "F8_E4M3": "u1", "F8_E5M2": "u1",
    "F8_E8M0": "u1",
}  # fmt: skip
"""NumPy types that hold the elements; floats that NumPy lacks are held as integers of the same size."""


@dataclass(frozen=True)
class SafeTensor:
    """One tensor of a file; `start` and `end` are offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def is_safetensors(head: bytes) -> bool:
    """Return whether a file starts as safetensors do: with the length of a JSON object."""
    return len(head) > 9 and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES and head[8:9] == b"{"


def read_header(file: RoutingFile) -> tuple[dict[str, SafeTensor], dict[str, str]]:
    """Return the tensors of a file, in the order of their data, and its metadata; raise BadInput on damage."""
    with file.open() as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > MAX_HEADER_BYTES or length + 8 > file.size:
            raise BadInput(f"{file.source}: a safetensors header of {length} bytes in a file of {file.size}")
        header = parse_json(stream.read(length), f"{file.source}: damaged safetensors header", max_keys=MAX_TENSORS)
    if not isinstance(header, dict):
        raise BadInput(f"{file.source}: the safetensors header is no object")
    metadata = header.pop("__metadata__", {})
    start = 8 + length
    tensors = {name: _tensor(entry, start, f"{file.source}: {one_line(name)}") for name, entry in header.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    at = start
    for name, tensor in tensors.items():
        if tensor.start != at:
            raise BadInput(f"{file.source}: {one_line(name)} starts at byte {tensor.start}, expected {at}")
        at = tensor.end
    if at != file.size:
        raise BadInput(f"{file.source}: damaged or truncated: tensors end at byte {at}, the file at {file.size}")
    return tensors, metadata if isinstance(metadata, dict) else {}


def _tensor(entry: Any, start: int, what: str) -> SafeTensor:
    if not isinstance(entry, dict):
        raise BadInput(f"{what}: its entry in the header is no object")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise BadInput(
            f"{what}: dtype {one_line(dtype, 20)}, shape {one_line(shape, 30)}, offsets {one_line(offsets, 30)}"
        )
    tensor = SafeTensor(dtype, tuple(shape), start + offsets[0], start + offsets[1])
    if dtype in DTYPES:
        size = np.dtype(DTYPES[dtype]).itemsize
        for side in tensor.shape:
            size *= side
        if size != tensor.end - tensor.start:
            raise BadInput(f"{what}: shape {shape} of {dtype} takes {size} bytes, not {tensor.end - tensor.start}")
    return tensor


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and len(values) <= 32 and all(type(n) is int and 0 <= n < 2**62 for n in values)


def array_file(file: RoutingFile, name: str, tensor: SafeTensor) -> ArrayFile:
    """Return a tensor as an array to read; raise BadInput for a type that holds no counts or logits."""
    if tensor.dtype not in DTYPES or tensor.dtype.startswith("F8"):
        raise BadInput(f"{file.source}: {one_line(name)} holds {tensor.dtype[:20]}, not numbers that NumPy knows")
    dtype = np.dtype(DTYPES[tensor.dtype])
    what = f"{file.source}: {one_line(name)}"
    return ArrayFile(what, dtype, tensor.shape, False, tensor.start, file.open, bf16=tensor.dtype == "BF16")
