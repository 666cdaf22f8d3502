"""Per-token choices that lie in arrays: read in pieces, every token counted, and thinned evenly where there are many.

Shapes: L layers, T tokens, K top_k, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.readers.npy import ArrayFile
from planner.readers.raw import MAX_WINDOWS, RawRouting, check_ids, refuse_repeats
from planner.readers.tally import MAX_SAMPLED_BYTES, Tally
from topologies.errors import BadInput

Choice = Callable[[NDArray[Any], str], NDArray[Any]]
"""From a piece of a row's tokens [n, width] and its name to their expert ids [n, K]."""


def read_trace(
    layers: Sequence[tuple[ArrayFile, int]],
    choose: Choice,
    top_k: int,
    *,
    what: str,
    token_source: NDArray[np.int64] | None = None,
) -> RawRouting:
    """Return the routing of a trace.

    Args:
        layers: for each row an array, and where the row starts in it, in rows of its last side: one array [L, T, width]
            for all, or one [T, width] for each.
        choose: makes expert ids of a piece.
        top_k: K of what `choose` returns.
        what: the file and the array, to name in errors.
        token_source: the source rank of every token, where the file states it.

    The trace is whole where it fits in `MAX_SAMPLED_BYTES`, and then the counts are left to whoever counts it.
    """
    first, width = layers[0][0], layers[0][0].shape[-1]
    tokens = first.shape[-2]
    stride = max(1, -(-len(layers) * tokens * top_k * 2 // MAX_SAMPLED_BYTES))
    kept = np.empty((len(layers), -(-tokens // stride), top_k), dtype=np.int16)
    tally = Tally(what)
    for file in dict.fromkeys(array for array, _ in layers):
        rows = [(row, start) for row, (array, start) in enumerate(layers) if array is file]
        for at, piece in file.pieces(width):
            for row, start in rows:
                begin, end = max(at, start), min(at + len(piece), start + tokens)
                if begin < end:
                    ids_TK = choose(piece[begin - at : end - at], f"{what}[{row}]")
                    _take(tally, kept[row], ids_TK, (row, begin - start, stride, tokens), what, token_source)
    if not (kept >= 0).any() and stride == 1:
        raise BadInput(f"{what}: every entry is masked (-1)")
    if stride == 1:
        return RawRouting(trace=kept, token_source=token_source)
    counted = tally.result(stated=False)
    source = None if token_source is None else token_source[::stride]
    said = f"{what}: every token is counted; each {stride}th of {tokens} is kept as a token"
    return RawRouting(
        counts=counted.counts, trace=kept, token_source=source, listed=True, windows=counted.windows, remarks=(said,)
    )


def _take(
    tally: Tally,
    kept_TK: NDArray[np.int16],
    ids_TK: NDArray[Any],
    place: tuple[int, int, int, int],
    what: str,
    token_source: NDArray[np.int64] | None,
) -> None:
    """Check the ids of some tokens of a row, keep every `stride`th, and count them where not all are kept."""
    row, begin, stride, tokens = place
    check_ids(ids_TK, what, (row, begin))
    refuse_repeats(ids_TK, f"{what}[{row}]", begin)
    first = -begin % stride
    chosen = ids_TK[first::stride]
    at = (begin + first) // stride
    kept_TK[at : at + len(chosen)] = chosen
    if stride == 1:
        return
    cuts = np.unique(np.linspace(0, tokens, MAX_WINDOWS + 1).round().astype(int))
    for window in range(len(cuts) - 1):
        low, high = max(cuts[window] - begin, 0), min(cuts[window + 1] - begin, len(ids_TK))
        if low >= high:
            continue
        part = ids_TK[low:high]
        if token_source is None:
            tally.add_ids(row, 0, window, part)
            continue
        source_T = token_source[begin + low : begin + high]
        for source in np.unique(source_T).tolist():
            tally.add_ids(row, source, window, part[source_T == source])
