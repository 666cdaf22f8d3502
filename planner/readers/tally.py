"""Counts and sampled tokens gathered from a recording of any length, in memory that does not grow with it.

Shapes: L layers, S sources, E experts, T tokens, K top_k, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.readers.raw import MAX_COUNTS_BYTES, MAX_WINDOWS, RawRouting, refuse_huge
from topologies.errors import BadInput

MAX_SAMPLED_BYTES = 128 * 2**20
"""Tokens kept of a recording; a longer one is thinned evenly."""


@dataclass
class Windows:
    """Counts in windows of equally many steps, at most `MAX_WINDOWS` of them: they grow together when time goes on."""

    nbytes: int = 0
    _first: int | None = None
    _span: int = 1
    _counts: dict[tuple[int, int], NDArray[np.float64]] = field(default_factory=dict)

    def add(self, layer: int, step: int, count_E: NDArray[Any]) -> None:
        """Count pairs [experts] of a layer in a step; `nbytes` is what all of them take."""
        self._first = step if self._first is None else self._first
        while max(step - self._first, 0) // self._span >= MAX_WINDOWS:
            self._double()
        key = (max(step - self._first, 0) // self._span, layer)
        before = self._counts.get(key)
        self._counts[key] = _joined(before, count_E)
        self.nbytes += self._counts[key].nbytes - (0 if before is None else before.nbytes)

    def _double(self) -> None:
        self._span *= 2
        old, self._counts = self._counts, {}
        for (window, layer), count_E in old.items():
            key = (window // 2, layer)
            self._counts[key] = _joined(self._counts.get(key), count_E)
        self.nbytes = sum(count_E.nbytes for count_E in self._counts.values())

    def table(self, layers: list[int], width: int) -> NDArray[np.float64] | None:
        """Return [W, L, E], windows without counts left out; None where there is but one."""
        used = sorted({window for window, _ in self._counts})
        if len(used) < 2:
            return None
        table = np.zeros((len(used), len(layers), width))
        for (window, layer), count_E in self._counts.items():
            table[used.index(window), layers.index(layer), : len(count_E)] = count_E
        return table


def _joined(total: NDArray[np.float64] | None, more: NDArray[Any]) -> NDArray[np.float64]:
    if total is None or len(total) < len(more):
        total = np.pad(np.zeros(0) if total is None else total, (0, len(more) - (0 if total is None else len(total))))
    total[: len(more)] += more
    return total


@dataclass
class TokenSample:
    """An even sample of the tokens that pass, the same ones in every layer.

    A block is what one rank sends through all layers in one step; blocks whose layers do not match those of the first
    are not kept.
    """

    seen: int = 0
    _stride: int = 1
    _blocks: list[tuple[int, dict[int, NDArray[np.int16]]]] = field(default_factory=list)
    _bytes: int = 0
    _layers: tuple[int, ...] | None = None
    _top_k: int | None = None
    _odd: int = 0

    def add(self, source: int, ids: dict[int, NDArray[Any]]) -> None:
        """Keep some tokens of a block: ids [T, K] by layer."""
        shapes = {block.shape for block in ids.values()}
        layers = tuple(sorted(ids))
        self._layers = self._layers or layers
        (tokens, top_k) = next(iter(shapes)) if len(shapes) == 1 else (0, 0)
        self._top_k = self._top_k or top_k
        if layers != self._layers or not tokens or top_k != self._top_k:
            self._odd += 1
            return
        first = -self.seen % self._stride
        self.seen += tokens
        kept = {layer: np.array(block[first :: self._stride], dtype=np.int16) for layer, block in ids.items()}
        if len(kept[layers[0]]):
            self._blocks.append((source, kept))
            self._bytes += sum(block.nbytes for block in kept.values())
        while self._bytes > MAX_SAMPLED_BYTES and self._stride < 2**40:
            self._thin()

    def _thin(self) -> None:
        """Keep every second token."""
        self._stride *= 2
        place, blocks, self._bytes = 0, [], 0
        for source, block in self._blocks:
            tokens = len(next(iter(block.values())))
            kept = {layer: ids[place % 2 :: 2].copy() for layer, ids in block.items()}
            place += tokens
            if len(next(iter(kept.values()))):
                blocks.append((source, kept))
                self._bytes += sum(ids.nbytes for ids in kept.values())
        self._blocks = blocks

    def trace(self, layers: list[int]) -> NDArray[np.int16] | None:
        """Return [L, T, K]; None where no tokens were kept, or not in all of the layers."""
        if not self._blocks or self._layers != tuple(layers) or self._odd > len(self._blocks):
            return None
        tokens = sum(len(block[layers[0]]) for _, block in self._blocks)
        trace = np.empty((len(layers), tokens, self._top_k or 0), dtype=np.int16)
        for row, layer in enumerate(layers):
            np.concatenate([block[layer] for _, block in self._blocks], out=trace[row])
        return trace

    def sources(self) -> NDArray[np.int64]:
        """Return the source rank of every token kept."""
        counts = [len(next(iter(block.values()))) for _, block in self._blocks]
        return np.repeat([source for source, _ in self._blocks], counts).astype(np.int64)

    def remarks(self, source: str) -> tuple[str, ...]:
        """Say what was left out of the sample."""
        said = []
        if self._stride > 1:
            said.append(f"{source}: every token is counted; each {self._stride}th of {self.seen} is kept as a token")
        if self._odd:
            said.append(f"{source}: {self._odd} blocks of tokens do not run through the same layers; counted, not kept")
        return tuple(said)


@dataclass
class Tally:
    """What was counted so far.

    Attributes:
        source: the file to name in errors.
        tokens: the sample of tokens, where the recording has them.

    """

    source: str
    tokens: TokenSample = field(default_factory=TokenSample)
    _counts: dict[tuple[int, int], NDArray[np.float64]] = field(default_factory=dict)
    _windows: Windows = field(default_factory=Windows)
    _bytes: int = 0

    def add(self, layer: int, source: int, step: int, count_E: NDArray[Any]) -> None:
        """Count pairs [experts] of a layer that came from a source rank in a step."""
        self._counts[layer, source] = self._sum(self._counts.get((layer, source)), count_E)
        self._windows.add(layer, step, count_E)
        if self._bytes + self._windows.nbytes > MAX_COUNTS_BYTES:
            raise BadInput(f"{self.source}: counts by layer, source and expert take over {MAX_COUNTS_BYTES} bytes")

    def add_ids(self, layer: int, source: int, step: int, ids: NDArray[Any]) -> None:
        """Count expert ids of any shape; -1 is masked. They were checked by `check_ids`."""
        self.add(layer, source, step, np.bincount(ids.astype(np.int64).ravel() + 1)[1:])

    def _sum(self, total: NDArray[np.float64] | None, more: NDArray[Any]) -> NDArray[np.float64]:
        if total is not None and len(total) >= len(more):
            total[: len(more)] += more
            return total
        grown = more.astype(np.float64)
        if total is not None:
            grown[: len(total)] += total
        self._bytes += 8 * (len(grown) - (0 if total is None else len(total)))
        return grown

    def result(self, *, experts: int | None = None, stated: bool = True, remarks: tuple[str, ...] = ()) -> RawRouting:
        """Return the routing of all that was added; raise BadInput where that is nothing.

        Args:
            experts: as the recording states them; None to leave it to the model.
            stated: the numbers of the layers are those of the model; else they are row numbers.
            remarks: for the user.

        """
        if not self._counts:
            raise BadInput(f"{self.source}: holds no counts")
        layers = sorted({layer for layer, _ in self._counts})
        sources = max(source for _, source in self._counts) + 1
        width = max(map(len, self._counts.values()), default=0) or 1
        if not stated:
            layers = list(range(layers[-1] + 1))
        refuse_huge((len(layers), sources, width), f"{self.source}: counts")
        counts = np.zeros((len(layers), sources, width))
        for (layer, source), count_E in self._counts.items():
            counts[layers.index(layer), source, : len(count_E)] = count_E
        trace = self.tokens.trace(layers)
        return RawRouting(
            counts=counts,
            trace=trace,
            token_source=None if trace is None or sources == 1 else self.tokens.sources(),
            layers=tuple(layers) if stated else None,
            experts=experts,
            listed=experts is None,
            windows=self._windows.table(layers, width),
            remarks=remarks + self.tokens.remarks(self.source),
        )
