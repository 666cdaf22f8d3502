"""What a search returns: a placement with its objective and bound for every layer, and what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from planner.placement import Placement
from planner.predict import Prediction
from planner.timing import PlanExchange

Objective = Literal["time", "balance"]
OBJECTIVES: tuple[Objective, ...] = ("time", "balance")


@dataclass(frozen=True, eq=False)
class LayerSolution:
    """The best placement found, its objective, and a proven lower bound (both in the problem's unit)."""

    placement: Placement
    objective: float
    bound: float
    seconds: float

    @property
    def gap(self) -> float:
        """Relative distance of the objective from the bound."""
        return max(self.objective / self.bound - 1.0, 0.0) if self.bound > 0 else float("inf")


@dataclass(frozen=True, eq=False)
class Solution:
    """Placements of all layers and how good they are proven to be.

    Attributes:
        exchange: the exchange algorithm that the placements are made for.
        layers: one solution a layer; objective and bound in microseconds (`time`) or as imbalance (`balance`).
        baselines: what people use today on the same workload and slots, for comparison.
        predictions: of every baseline and, last, of the placements, all under `exchange`; with `coherent`, before it,
            of the best plan for plain exchanges, under its own.
        rival: the fastest baseline under the exchange that suits it best, of those that were asked for.
        complete: False where the search was interrupted and some layers hold their best start.
        seconds: wall-clock time of the whole search.
        solver: what searched, with versions.
        even: every rank has as many slots, all in use, and copies serve equal shares.

    """

    objective: Objective
    exchange: PlanExchange
    layers: tuple[LayerSolution, ...]
    baselines: Mapping[str, list[Placement]]
    predictions: tuple[Prediction, ...]
    rival: Prediction
    complete: bool
    seconds: float
    solver: str
    even: bool = False

    @property
    def placements(self) -> list[Placement]:
        """Return the placement of every layer."""
        return [layer.placement for layer in self.layers]

    @property
    def to_beat(self) -> Prediction:
        """Return the fastest of what the placements are compared with, under whatever exchange."""
        return min((*self.predictions[:-1], self.rival), key=lambda prediction: prediction.total_us)
