"""What every reader returns, and the checks that every format shares."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topologies.errors import BadInput

MAX_ARRAY_BYTES = 256 * 2**20
"""The largest array, unpacked, that a reader holds whole; traces and logits are read in pieces and may be larger."""

MAX_RATIO = 64
"""How much smaller packing may make what is over `MAX_ARRAY_BYTES`: expert ids and counts pack to a tenth at best."""

MAX_COUNT = 1e300
"""Larger counts would overflow when they are summed."""

MAX_COUNTS_BYTES = 160 * 2**20
"""The largest array of counts by layer, source and expert; three or four of them live at once."""

MAX_WINDOWS = 16
"""Spans of time that a recording is told apart into."""

MAX_EXPERTS = 32_767
"""Expert ids are kept as int16."""


@dataclass(frozen=True)
class RawRouting:
    """The content of a routing file before it is matched with a model.

    At least one of `counts` and `trace` is set; with both the trace is a sample of the tokens that were counted.

    Attributes:
        counts: float64 [rows, sources, experts], finite and not negative.
        trace: int16 [rows, tokens, top_k] of expert ids, -1 where masked.
        layers: the layer of each row where the file states it.
        token_source: int64 [tokens], the source rank of each token, where the file states it.
        from_one: versions of the file's writer number layers from 1.
        experts: the number of experts where the file states it.
        listed: the file lists entries one by one, so that `counts` may be narrower than the model.
        windows: float64 [windows, rows, experts], the counts of all sources in consecutive spans of time; None where
            the file does not tell times apart.
        remarks: what the reader left out or had to assume, one sentence each, for the user.

    """

    counts: NDArray[np.float64] | None = None
    trace: NDArray[np.int16] | None = None
    layers: tuple[int, ...] | None = None
    token_source: NDArray[np.int64] | None = None
    experts: int | None = None
    listed: bool = False
    from_one: bool = False
    windows: NDArray[np.float64] | None = None
    remarks: tuple[str, ...] = ()


def refuse_huge(shape: tuple[int, ...], what: str) -> None:
    """Raise BadInput if an array of counts of this shape would be over `MAX_COUNTS_BYTES`."""
    size = 8
    for side in shape:
        size *= side
    if size > MAX_COUNTS_BYTES:
        raise BadInput(f"{what}: [layers, sources, experts] = {list(shape)} would take {size} bytes")


def one_line(value: object, limit: int = 100) -> str:
    """Return text from a file or an exception as one short line, fit for an error message."""
    text = " ".join(str(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def names_held(names: Iterable[object]) -> str:
    """Return the first names that a file holds, for the error about the one it lacks."""
    first = [one_line(name, 30) for name in itertools.islice(names, 8)]
    return ", ".join(first) or "none"


def decode(data: bytes, source: str) -> str:
    """Return UTF-8 text, with or without a byte order mark; raise BadInput on any other encoding."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{source}: not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x})") from error


def checked_counts(values: NDArray[Any], what: str) -> NDArray[np.float64]:
    """Return `values` as float64; raise BadInput naming the first entry that is not a finite number of at least 0."""
    if values.dtype.kind not in "iuf":
        raise BadInput(f"{what}: holds {values.dtype}, not numbers")
    if values.size == 0:
        raise BadInput(f"{what}: is empty, shape {list(values.shape)}")
    if values.dtype == np.longdouble:
        raise BadInput(f"{what}: holds {values.dtype}, wider than float64")
    counts = np.ascontiguousarray(values, dtype=np.float64)
    wrong = ~((counts >= 0) & (counts <= MAX_COUNT))  # NaN is neither
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise BadInput(f"{what}{list(at)} = {counts[at]:g}: a count is a finite number of at least 0")
    return counts


def from_steps(counts: NDArray[np.float64], what: str) -> RawRouting:
    """Return the routing of counts [layers, experts] or [steps, layers, experts], steps summed and kept as windows."""
    if counts.ndim == 2:
        return RawRouting(counts=counts[:, None, :])
    if counts.ndim != 3:
        raise BadInput(f"{what}: has {counts.ndim} dimensions, not [layers, experts] or [steps, layers, experts]")
    edges = np.linspace(0, len(counts), min(len(counts), MAX_WINDOWS) + 1).round().astype(int)
    windows = np.add.reduceat(counts, edges[:-1]) if len(counts) > 1 else None
    return RawRouting(counts=np.asarray(counts.sum(axis=0))[:, None, :], windows=windows)


def check_ids(ids: NDArray[Any], what: str, first: tuple[int, ...] = ()) -> None:
    """Raise BadInput where expert ids are no integers from -1 to MAX_EXPERTS; `first` is the place of the first."""
    if ids.dtype.kind not in "iu":
        raise BadInput(f"{what}: holds {ids.dtype}, not integer expert ids")
    low, high = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
    if low < -1 or high > MAX_EXPERTS:
        value = low if low < -1 else high
        at = [int(i) for i in np.argwhere(ids == value)[0]]
        place = [*first[:-1], first[-1] + at[0], *at[1:]] if first else at
        raise BadInput(f"{what}{place} = {value}: an expert id is at least 0 (-1 = masked) and at most {MAX_EXPERTS}")


def refuse_repeats(ids_TK: NDArray[Any], what: str, first: int = 0) -> None:
    """Raise BadInput where a token visits an expert twice; `first` is the number of the first token."""
    ordered = np.sort(ids_TK, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        token, k = (int(i) for i in np.argwhere(twice)[0])
        ids = ids_TK[token].tolist()
        raise BadInput(f"{what}: token {first + token} visits expert {ordered[token, k]} twice: {ids}")
