"""NumPy files: `topk_ids` or `counts` in an .npz, and router logits in .npz or .npy.

`topk_ids` [layers, tokens, top_k] integers, -1 = masked; or `counts` [layers, experts] or [layers, sources, experts].
Optional: `layers` [layers], the index of each row in the model; `token_source` [tokens], the source rank of each token;
`experts`, one number (a trace alone cannot tell how many experts there are). Other arrays are ignored. Router logits
are floats: see `planner.readers.router_logits`.
"""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.readers.npy import ArrayFile, npy_file, npz_files
from planner.readers.raw import MAX_EXPERTS, RawRouting, checked_counts, names_held
from planner.readers.router_logits import is_logits, read_logits
from planner.readers.source import RoutingFile
from planner.readers.traces import read_trace
from topologies.errors import BadInput

MAX_LAYERS = 10_000
STATED = ("topk_ids", "counts", "layers", "token_source", "experts")


def read_npz(archive: zipfile.ZipFile, source: str, top_k: int | None) -> RawRouting:
    """Return the content of an opened `.npz`; `source` is the file to name in errors."""
    arrays = npz_files(archive, source, required=STATED)
    given = [name for name in ("topk_ids", "counts") if name in arrays]
    others = {name: array for name, array in arrays.items() if name not in STATED}
    if not given and is_logits(others):
        return read_logits(others, source, top_k)
    if len(given) != 1:
        held = names_held(sorted(name.removesuffix(".npy") for name in archive.namelist()))
        raise BadInput(
            f"{source}: needs one of topk_ids and counts, has {' and '.join(given) or 'neither'}; arrays: {held}"
        )
    layers = tuple(_integers(arrays, "layers", MAX_LAYERS).tolist()) if "layers" in arrays else None
    experts = int(_integers(arrays, "experts", 1)[0]) if "experts" in arrays else None
    if "counts" in arrays:
        return _with_labels(_counts(arrays["counts"]), layers, experts)
    sources = _integers(arrays, "token_source") if "token_source" in arrays else None
    return _with_labels(read_topk_ids(arrays["topk_ids"], sources), layers, experts)


def read_npy_logits(file: RoutingFile, top_k: int | None) -> RawRouting | None:
    """Return the routing of a single array of router logits; None where the array is something else."""
    array = npy_file(file.open, file.size, file.source)
    if not is_logits({"logits": array}):
        return None
    return read_logits({"logits": array}, file.source, top_k)


def read_topk_ids(array: ArrayFile, token_source: NDArray[np.int64] | None = None) -> RawRouting:
    """Return the routing of expert ids [layers, tokens, top_k]."""
    if array.dtype.kind not in "iu":
        raise BadInput(f"{array.what}: holds {array.dtype}, not integer expert ids")
    if len(array.shape) != 3 or 0 in array.shape:
        raise BadInput(f"{array.what}: shape {list(array.shape)}, not [layers, tokens, top_k] with entries in it")
    rows, tokens, top_k = array.shape
    if top_k > MAX_EXPERTS:
        raise BadInput(f"{array.what}: {top_k} ids a token; there are {MAX_EXPERTS} expert ids at most")
    if token_source is not None and len(token_source) != tokens:
        source = array.what.removesuffix("topk_ids")
        raise BadInput(f"{source}token_source has {len(token_source)} entries, topk_ids has {tokens} tokens")
    layers = [(array, row * tokens) for row in range(rows)]
    return read_trace(layers, lambda ids, _: ids, top_k, what=array.what, token_source=token_source)


def _counts(array: ArrayFile) -> RawRouting:
    counts = checked_counts(array.read(), array.what)
    if counts.ndim not in (2, 3):
        raise BadInput(
            f"{array.what} has {counts.ndim} dimensions, not [layers, experts] or [layers, sources, experts]"
        )
    return RawRouting(counts=counts[:, None, :] if counts.ndim == 2 else counts)


def _with_labels(raw: RawRouting, layers: tuple[int, ...] | None, experts: int | None) -> RawRouting:
    fields: dict[str, Any] = vars(raw) | {"layers": layers, "experts": experts}
    return RawRouting(**fields)


def _integers(arrays: dict[str, ArrayFile], name: str, most: int | None = None) -> NDArray[np.int64]:
    """Return a list of integers of at least 0; with `most` = 1 it may be a number."""
    values, what = arrays[name].read(), arrays[name].what
    values = values.reshape(1) if values.ndim == 0 and most == 1 else values
    if values.dtype.kind not in "iu" or values.ndim != 1 or not values.size:
        raise BadInput(f"{what}: {values.dtype} of shape {list(values.shape)}, not a list of integers")
    if most is not None and values.size > most:
        raise BadInput(f"{what}: {values.size} entries, over the limit of {most}")
    if int(values.min()) < 0 or int(values.max()) >= 2**31:
        raise BadInput(f"{what}: reaches from {values.min()} to {values.max()}, outside 0..2147483647")
    return values.astype(np.int64)
