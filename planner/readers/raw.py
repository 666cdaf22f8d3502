"""What every reader returns, and the checks that every format shares."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topologies.errors import BadInput

MAX_ARRAY_BYTES = 4 * 2**30
"""The largest array, unpacked, that a reader builds."""

MAX_COUNT = 1e300
"""Larger counts would overflow when they are summed."""

MAX_COUNTS_BYTES = 2**30
"""The largest array of counts by layer, source and expert."""

MAX_EXPERTS = 32_767
"""Expert ids are kept as int16."""


@dataclass(frozen=True)
class RawRouting:
    """The content of a routing file before it is matched with a model.

    Exactly one of `counts` and `trace` is set.

    Attributes:
        counts: float64 [rows, sources, experts], finite and not negative.
        trace: int16 [rows, tokens, top_k] of expert ids, -1 where masked.
        layers: the layer of each row where the file states it.
        token_source: int64 [tokens], the source rank of each token, where the file states it.
        experts: the number of experts where the file states it.
        listed: the file lists entries one by one, so that `counts` may be narrower than the model.

    """

    counts: NDArray[np.float64] | None = None
    trace: NDArray[np.int16] | None = None
    layers: tuple[int, ...] | None = None
    token_source: NDArray[np.int64] | None = None
    experts: int | None = None
    listed: bool = False


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


def summed_steps(counts: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    """Return counts [layers, experts] of either [layers, experts] or [steps, layers, experts], steps summed."""
    if counts.ndim == 3:
        counts = np.asarray(counts.sum(axis=0))
    if counts.ndim != 2:
        raise BadInput(f"{what}: has {counts.ndim} dimensions, not [layers, experts] or [steps, layers, experts]")
    return counts


def checked_trace(ids: NDArray[Any], what: str) -> NDArray[np.int16]:
    """Return per-token expert ids [layers, tokens, top_k] as int16; raise BadInput for anything that is not a trace.

    Refused: other dimensions, no entries, non-integers, ids below -1 or above 32767, an expert twice in a token.
    """
    if ids.dtype.kind not in "iu":
        raise BadInput(f"{what}: holds {ids.dtype}, not integer expert ids")
    if ids.ndim != 3 or ids.size == 0:
        raise BadInput(f"{what}: shape {list(ids.shape)}, not [layers, tokens, top_k] with entries in it")
    low, high = int(ids.min()), int(ids.max())
    if low < -1 or high > MAX_EXPERTS:
        value = low if low < -1 else high
        at = [int(i) for i in np.argwhere(ids == value)[0]]
        raise BadInput(f"{what}{at} = {value}: an expert id is at least 0 (-1 = masked) and at most {MAX_EXPERTS}")
    if high < 0:
        raise BadInput(f"{what}: every entry is masked (-1)")
    trace = np.ascontiguousarray(ids, dtype=np.int16)
    for row, layer in enumerate(trace):
        _refuse_repeats(layer, f"{what}[{row}]")
    return trace


def _refuse_repeats(ids_TK: NDArray[np.int16], what: str) -> None:
    ordered = np.sort(ids_TK, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        token, k = (int(i) for i in np.argwhere(twice)[0])
        raise BadInput(f"{what}: token {token} visits expert {ordered[token, k]} twice: {ids_TK[token].tolist()}")
