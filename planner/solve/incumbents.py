"""What is known before any search: the baselines of every layer, what they cost, and how good any plan could be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from planner.baselines import BASELINES, baseline
from planner.cost import StepCost, step_cost
from planner.even import evened
from planner.layer import LayerProblem, layer_problem
from planner.placement import FloatArray, IntArray, Placement
from planner.predict import PlanCounts, Prediction
from planner.solve.bounds import BoundedLayers, imbalance_bounds, lower_bound, lower_bounds
from planner.solve.solution import LayerSolution, Objective
from planner.step_rows import StepSlots
from planner.survive import Backups
from planner.timing import Exchange, Overlap, TimingProfile
from planner.workload import Workload
from topologies import Infeasible


@dataclass(frozen=True, eq=False)
class Incumbents:
    """The baselines of a workload, under any exchange.

    Attributes:
        slots: of each rank [R], or of each rank in each layer [L, R].
        objective, overlap: what is minimised, and how the phases of a layer share the time.
        baselines: their placements as they are, by name.
        backups: for each layer, the experts that have to survive the loss of a host.
        even: whether every slot has to be in use and copies serve equal shares.

    """

    workload: Workload
    profile: TimingProfile
    slots: IntArray
    objective: Objective
    overlap: Overlap
    baselines: Mapping[str, list[Placement]]
    backups: Sequence[Backups] | None = None
    even: bool = False

    @cached_property
    def slots_LR(self) -> IntArray:
        """Return the slots of each rank in each layer."""
        return slots_of_layers(self.slots, self.workload)

    def start(self, name: str, row: int) -> Placement:
        """Return a baseline's placement of a layer with duplicate replicas merged, evened where that is asked."""
        merged = self.baselines[name][row].without_duplicates()
        return evened(merged, int(self.slots_LR[row, 0]), self.workload.load_LE[row]) if self.even else merged

    def starts(self, row: int) -> list[Placement]:
        """Return the start that every baseline gives for a layer."""
        return [self.start(name, row) for name in self.baselines]

    @cached_property
    def _slots(self) -> dict[str, StepSlots]:
        return {name: StepSlots(self.workload, placements) for name, placements in self.baselines.items()}

    @cached_property
    def _counted(self) -> dict[Exchange, dict[str, PlanCounts]]:
        return {}

    def _counts(self, exchange: Exchange) -> dict[str, PlanCounts]:
        if exchange not in self._counted:
            cost = self._cost(exchange)
            self._counted[exchange] = {name: PlanCounts(cost, slots) for name, slots in self._slots.items()}
        return self._counted[exchange]

    @cached_property
    def _predicted(self) -> dict[Exchange, list[Prediction]]:
        return {}

    def predicted(self, exchange: Exchange) -> list[Prediction]:
        """Return the prediction of every baseline's starts under an exchange."""
        if exchange not in self._predicted:
            self._predicted[exchange] = (
                [PlanCounts(self._cost(exchange), slots).price(name) for name, slots in self._evened_slots.items()]
                if self.even
                else [self._merged(exchange, one) for one in self.baselines_predicted(exchange)]
            )
        return self._predicted[exchange]

    def _merged(self, exchange: Exchange, as_it_is: Prediction) -> Prediction:
        """Return the prediction of a baseline whose duplicate replicas are merged: another only where there are any."""
        name = as_it_is.name
        if self._slots[name].merged_S.all():
            return as_it_is
        return self._counts(exchange)[name].price(name, merged=True)

    @cached_property
    def _evened_slots(self) -> dict[str, StepSlots]:
        rows = range(self.workload.num_layers)
        return {name: StepSlots(self.workload, [self.start(name, row) for row in rows]) for name in self.baselines}

    @cached_property
    def _predicted_as_they_are(self) -> dict[Exchange, list[Prediction]]:
        return {}

    def baselines_predicted(self, exchange: Exchange) -> list[Prediction]:
        """Return the prediction of every baseline as it is under an exchange."""
        known = self._predicted_as_they_are
        if exchange not in known:
            known[exchange] = [counts.price(name) for name, counts in self._counts(exchange).items()]
        return known[exchange]

    def rival(self, exchanges: Iterable[Exchange]) -> Prediction:
        """Return the fastest baseline as it is, each under the exchange that suits it best."""
        predictions = (one for exchange in exchanges for one in self.baselines_predicted(exchange))
        return min(predictions, key=lambda prediction: prediction.total_us)

    def predict(self, placements: Sequence[Placement], exchange: Exchange) -> Prediction:
        """Predict a plan of all layers under an exchange."""
        return PlanCounts(self._cost(exchange), StepSlots(self.workload, placements)).price("this plan")

    def start_us(self, exchange: Exchange) -> float:
        """Return the total of each layer's best start: no baseline under this exchange is better."""
        return float(self._values_BL(exchange, "layer_us").min(axis=0).sum())

    def starts_L(self, exchange: Exchange) -> FloatArray:
        """Return what the best start of each layer costs [L], in the objective's unit."""
        best_L: FloatArray = self._start_values_BL(exchange).min(axis=0)
        return best_L

    def problem(self, exchange: Exchange, row: int) -> LayerProblem:
        """Return a layer's problem under an exchange."""
        problem = layer_problem(self.workload, self._cost(exchange), self.slots_LR[row], row)
        problem = problem.for_balance() if self.objective == "balance" else problem
        return replace(problem, backups=None if self.backups is None else self.backups[row], even=self.even)

    def bounds(self, exchange: Exchange, *, thorough: bool = False) -> FloatArray:
        """Return a proven lower bound of every layer [L] in the objective's unit.

        The quick ones are for the most slots of any layer; the `thorough` ones take a tenth of a second a layer.
        """
        if thorough and self.objective == "time":
            problems = (self.problem(exchange, row) for row in range(self.workload.num_layers))
            return np.array([lower_bound(problem, thorough=True) for problem in problems])
        slots_R = self.slots_LR.max(axis=0)
        if self.objective == "balance":
            return imbalance_bounds(self.workload.load_LE, slots_R)
        return lower_bounds(BoundedLayers.of_workload(self.workload, self._cost(exchange), slots_R))

    def layers(self, exchange: Exchange) -> list[LayerSolution]:
        """Return the best start of every layer."""
        values_BL = self._start_values_BL(exchange)
        names = list(self.baselines)
        best_L, bound_L = values_BL.argmin(axis=0).tolist(), self.bounds(exchange).tolist()
        return [
            LayerSolution(self.start(names[best], row), float(values_BL[best, row]), bound, 0.0)
            for row, (best, bound) in enumerate(zip(best_L, bound_L, strict=True))
        ]

    def _cost(self, exchange: Exchange) -> StepCost:
        return step_cost(self.workload, self.profile, exchange, overlap=self.overlap)

    def _start_values_BL(self, exchange: Exchange) -> FloatArray:
        return self._values_BL(exchange, "layer_us" if self.objective == "time" else "imbalance")

    def _values_BL(self, exchange: Exchange, field: str) -> FloatArray:
        """Return a predicted field of every start B in every layer."""
        return np.array([[getattr(layer, field) for layer in one.layers] for one in self.predicted(exchange)])


def slots_of_layers(slots: IntArray, workload: Workload) -> IntArray:
    """Return the slots of each rank in each layer [L, R], from those or from the slots of each rank [R]."""
    return np.broadcast_to(slots, (workload.num_layers, workload.num_ranks))


def place_baselines(workload: Workload, slots: IntArray) -> dict[str, list[Placement]]:
    """Return the placements of every baseline that fits the slots; where none does, experts in order of slots.

    `slots` are those of each rank [R], or of each rank in each layer [L, R].
    """
    alike_XR, alike_L = np.unique(slots_of_layers(slots, workload), axis=0, return_inverse=True)
    fitting = [_fitting(workload, slots_R) for slots_R in alike_XR]
    names = [name for name in BASELINES if all(name in found for found in fitting)] or ["in-order"]
    return {name: [fitting[x][name][row] for row, x in enumerate(alike_L.ravel().tolist())] for name in names}


def _fitting(workload: Workload, slots_R: IntArray) -> dict[str, list[Placement]]:
    placements = {}
    for name in BASELINES:
        with suppress(Infeasible):
            placements[name] = baseline(name, workload, slots_R)
    return placements if len(placements) == len(BASELINES) else {"in-order": _in_order(workload, slots_R)} | placements


def _in_order(workload: Workload, slots_R: IntArray) -> list[Placement]:
    """Fill the slots in order, each rank in proportion to what it has: for slots too uneven for any baseline."""
    E, ends_R = workload.num_experts, np.cumsum(slots_R)
    if ends_R[-1] < E:
        raise Infeasible(f"slots ({ends_R[-1]}) < experts ({E})")
    rank_E = np.searchsorted(ends_R, np.arange(E) * ends_R[-1] // E, side="right")
    return [Placement.of_slots(np.arange(E), rank_E, E, len(slots_R), workload.num_domains)] * workload.num_layers
