"""NumPy `.npz`: per-token `topk_ids`, or `counts`; read without pickle and within limits on the declared sizes.

`topk_ids` [layers, tokens, top_k] integers, -1 = masked; or `counts` [layers, experts] or [layers, sources, experts].
Optional: `layers` [layers], the index of each row in the model; `token_source` [tokens], the source rank of each token;
`experts`, one number (a trace alone cannot tell how many experts there are). Other arrays are ignored.
"""

from __future__ import annotations

import ast
import re
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.readers.raw import MAX_ARRAY_BYTES, RawRouting, checked_counts, checked_trace, names_held, one_line
from planner.readers.zips import read_member
from topologies.errors import BadInput

MAX_HEADER_BYTES = 10_000


def read_npz(archive: zipfile.ZipFile, source: str) -> RawRouting:
    """Return the content of an opened `.npz`; `source` is the file to name in errors."""
    names = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
    given = [name for name in ("topk_ids", "counts") if name in names]
    if len(given) != 1:
        held = names_held(sorted(names))
        raise BadInput(
            f"{source}: needs one of topk_ids and counts, has {' and '.join(given) or 'neither'}; arrays: {held}"
        )
    arrays = {
        name: _read_array(archive, name, source)
        for name in (*given, "layers", "token_source", "experts")
        if name in names
    }
    layers = tuple(_integers(arrays["layers"], f"{source}: layers")) if "layers" in arrays else None
    experts = _integers(arrays["experts"].reshape(-1), f"{source}: experts")[0] if "experts" in arrays else None
    if "counts" in arrays:
        counts = checked_counts(arrays["counts"], f"{source}: counts")
        if counts.ndim not in (2, 3):
            raise BadInput(
                f"{source}: counts has {counts.ndim} dimensions, not [layers, experts] or [layers, sources, experts]"
            )
        return RawRouting(counts=counts[:, None, :] if counts.ndim == 2 else counts, layers=layers, experts=experts)
    trace = checked_trace(arrays["topk_ids"], f"{source}: topk_ids")
    sources = None
    if "token_source" in arrays:
        sources = np.array(_integers(arrays["token_source"], f"{source}: token_source"), dtype=np.int64)
        if len(sources) != trace.shape[1]:
            raise BadInput(f"{source}: token_source has {len(sources)} entries, topk_ids has {trace.shape[1]} tokens")
    return RawRouting(trace=trace, layers=layers, token_source=sources, experts=experts)


def _integers(values: NDArray[Any], what: str) -> list[int]:
    """Return a 1-D array of integers of at least 0 as a list."""
    if values.dtype.kind not in "iu" or values.ndim != 1 or not values.size:
        raise BadInput(f"{what}: {values.dtype} of shape {list(values.shape)}, not a list of integers")
    if int(values.min()) < 0 or int(values.max()) >= 2**31:
        raise BadInput(f"{what}: reaches from {values.min()} to {values.max()}, outside 0..2147483647")
    return [int(v) for v in values]


def _read_array(archive: zipfile.ZipFile, name: str, source: str) -> NDArray[Any]:
    """Return one array; its header's shape must agree with the size of the member, before anything is built."""
    what = f"{source}: {name}"
    data = read_member(archive, f"{name}.npy", source, limit_bytes=MAX_ARRAY_BYTES)
    header, start = _read_header(data, what)
    stored, fortran, shape = (header.get(key) for key in ("descr", "fortran_order", "shape"))
    if not isinstance(stored, str) or not re.fullmatch(r"[<>|=]?[iuf]\d{1,2}", stored):
        raise BadInput(f"{what}: holds {one_line(stored)}, not numbers")
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise BadInput(f"{what}: declares shape {one_line(shape)}")
    try:
        dtype = np.dtype(stored)
    except TypeError as error:
        raise BadInput(f"{what}: holds {stored}, which NumPy does not know") from error
    declared, held = dtype.itemsize, len(data) - start
    for side in shape:
        declared *= side
    if declared != held:
        raise BadInput(f"{what}: declares shape {list(shape)} of {dtype} = {declared} bytes, holds {held}")
    return np.frombuffer(data, dtype=dtype, offset=start).reshape(shape, order="F" if fortran else "C")


def _read_header(data: bytes, what: str) -> tuple[dict[str, Any], int]:
    """Return the header of a .npy (numpy.lib.format, versions 1 to 3) and where its numbers start.

    NumPy's own reader falls back on the tokenizer for files of Python 2, which fails in more ways than one can list.
    """
    width = 2 if data[6:7] == b"\x01" else 4
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    if not data.startswith(b"\x93NUMPY") or data[6:7] not in (b"\x01", b"\x02", b"\x03") or start > len(data):
        raise BadInput(f"{what}: not a .npy array: {one_line(data[:12])}")
    if start > MAX_HEADER_BYTES:
        raise BadInput(f"{what}: a .npy header of {start} bytes, over the limit of {MAX_HEADER_BYTES}")
    try:
        header = ast.literal_eval(data[8 + width : start].decode("utf-8").strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise BadInput(f"{what}: not a .npy array: {one_line(error)} in its header") from error
    if not isinstance(header, dict):
        raise BadInput(f"{what}: not a .npy array: its header is no dict")
    return header, start
