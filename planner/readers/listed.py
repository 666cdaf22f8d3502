"""Counts that are listed one by one (CSV, Parquet), added up in pieces; each combination of indices may come once.

Within a piece rows come in any order; from piece to piece steps ascend, so that only the combinations of one step have
to be remembered to find what comes twice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.readers.raw import MAX_EXPERTS, RawRouting
from planner.readers.tally import Tally
from topologies.errors import BadInput

REQUIRED = ("layer", "expert", "count")
OPTIONAL = ("source", "step")
LIMITS = {"layer": 99_999, "expert": MAX_EXPERTS, "source": 99_999, "step": 2**31 - 1}
"""The largest value of each column of indices."""
PIECE_ROWS = 50_000

IntArray = NDArray[np.int64]


class Listed:
    """The rows so far.

    Attributes:
        source: the file to name in errors.
        names: of the columns of indices, for errors.

    """

    def __init__(self, source: str, names: list[str]) -> None:
        self.source, self.names = source, names
        self._tally = Tally(source)
        self._step = 0
        self._seen: dict[tuple[int, int], NDArray[np.bool_]] = {}  # (layer, source) -> experts met in this step
        self._rows = 0

    def add(self, column: dict[str, IntArray], count_N: NDArray[np.float64], number_N: IntArray) -> None:
        """Add a piece: indices by name, counts, and the number of each row in the file."""
        zero_N = np.zeros(len(number_N), dtype=np.int64)
        step_N, source_N = column.get("step", zero_N), column.get("source", zero_N)
        layer_N, expert_N = column["layer"], column["expert"]
        if int(step_N.min()) < self._step:
            row = number_N[np.argmin(step_N)]
            raise BadInput(
                f"{self.source}: line {row}: step {step_N.min()} after step {self._step}; sort the file by step"
            )
        order = np.lexsort((source_N, layer_N, step_N))
        ends = (np.diff(group[order]) != 0 for group in (step_N, layer_N, source_N))
        cuts = np.flatnonzero(np.any(list(ends), axis=0)) + 1
        for part in np.split(order, cuts):
            step, layer, source = (int(group[part[0]]) for group in (step_N, layer_N, source_N))
            self._refuse_repeats(step, layer, source, expert_N[part], number_N[part])
            self._tally.add(layer, source, step, np.bincount(expert_N[part], count_N[part]))
        self._rows += len(number_N)

    def _refuse_repeats(self, step: int, layer: int, source: int, expert_N: IntArray, number_N: IntArray) -> None:
        if step != self._step:
            self._step, self._seen = step, {}
        width = int(expert_N.max()) + 1
        seen_E = self._seen.get((layer, source), np.zeros(0, dtype=bool))
        seen_E = np.pad(seen_E, (0, max(width - len(seen_E), 0)))
        again_N = seen_E[expert_N]
        again_N[np.setdiff1d(np.arange(len(expert_N)), np.unique(expert_N, return_index=True)[1])] = True
        if again_N.any():
            at = int(np.argmax(again_N))
            values = {"layer": layer, "source": source, "expert": int(expert_N[at]), "step": step}
            named = ", ".join(f"{name} {values[name]}" for name in self.names)
            raise BadInput(f"{self.source}: line {number_N[at]}: {named} comes twice")
        seen_E[expert_N] = True
        self._seen[layer, source] = seen_E

    def result(self) -> RawRouting:
        """Return the routing of all rows."""
        if not self._rows:
            raise BadInput(f"{self.source}: a header and no counts")
        return self._tally.result()
