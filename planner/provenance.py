"""Where a predicted number comes from: the label that follows it down to every table.

vendor        data-sheet bandwidths times typical efficiencies; fitted to nothing
fitted        a model fitted to measurements of this kernel and GPU, asked within the range it was fitted on
extrapolated  asked outside that range, on another GPU, or of a kernel that the profile has no measurements of
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

Provenance = Literal["vendor", "fitted", "extrapolated"]
_WEAKEST_FIRST: tuple[Provenance, ...] = ("extrapolated", "vendor", "fitted")


def weakest(labels: Iterable[Provenance]) -> Provenance:
    """Return the label that a number made of several parts deserves: that of its weakest part."""
    found = set(labels)
    return next((label for label in _WEAKEST_FIRST if label in found), "vendor")


class Span(BaseModel):
    """The range of one quantity among the measurements behind a fit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float
    high: float

    def holds(self, value: float, slack: float = 1.0) -> bool:
        """Return whether a value lies in the range, widened by a factor on both ends."""
        return self.low / slack <= value <= self.high * slack


class FitReport(BaseModel):
    """Where a fit comes from and how well it describes the rows it was fitted to.

    Attributes:
        table, source, date: the file, where it came from, and when the fit was made.
        selection: the rows chosen by the user, as an expression; empty for all.
        rows: measurements fitted.
        mape, median, p95: of |predicted / measured - 1| on those rows, as fractions.

    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str
    source: str = ""
    date: str
    selection: str = ""
    rows: int
    mape: float
    median: float
    p95: float
