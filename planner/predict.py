"""Predicted times of a whole plan: one row a layer, labelled with the profile that made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.cost import Phase, StepCost, slack_L, step_cost
from planner.cover_rows import step_slots
from planner.layer import bottleneck
from planner.placement import FloatArray, Placement
from planner.provenance import Provenance
from planner.step_rows import StepSlots
from planner.timing import Exchange, Overlap, PlanExchange, TimingProfile
from planner.workload import Workload


@dataclass(frozen=True)
class LayerPrediction:
    """Predicted cost of one layer; times in microseconds, imbalance = max / mean over ranks of token-expert pairs."""

    layer: int
    imbalance: float
    dispatch_us: float
    compute_us: float
    combine_us: float
    layer_us: float
    bottleneck: str


@dataclass(frozen=True)
class Prediction:
    """Predicted cost of one plan or baseline on one workload.

    Attributes:
        name: of the plan or baseline.
        exchange: the algorithm that carries it.
        layers: one prediction a layer.
        memory_bytes: weights of the experts on the fullest rank, all layers together.
        overlap: how the phases of a layer share the time. With `two-batches` the phases' times are those of one of the
            two micro-batches; `layer_us` is always that of the whole step.
        provenance, reasons: where the numbers come from, and why they are not `fitted`.

    """

    name: str
    exchange: PlanExchange
    layers: tuple[LayerPrediction, ...]
    memory_bytes: int
    overlap: Overlap = "none"
    provenance: Provenance = "vendor"
    reasons: tuple[str, ...] = ()

    @property
    def total_us(self) -> float:
        """Sum of all layers."""
        return sum(layer.layer_us for layer in self.layers)

    def mean(self, field: str) -> float:
        """Return the mean over layers of a numeric field."""
        return float(np.mean([getattr(layer, field) for layer in self.layers]))

    @property
    def worst_imbalance(self) -> float:
        """Largest imbalance of a layer."""
        return max(layer.imbalance for layer in self.layers)

    @property
    def bottleneck(self) -> str:
        """What holds up the slowest layer."""
        return max(self.layers, key=lambda layer: layer.layer_us).bottleneck


def predict(
    name: str,
    placements: Sequence[Placement],
    workload: Workload,
    profile: TimingProfile,
    exchange: Exchange,
    *,
    overlap: Overlap = "none",
    cost: StepCost | None = None,
) -> Prediction:
    """Predict every layer of a plan; `cost` is the price list to use instead of the profile's for this step."""
    cost = cost or step_cost(workload, profile, exchange, overlap=overlap)
    return PlanCounts(cost, step_slots(workload, placements)).price(name)


class PlanCounts:
    """The rows of a plan on every leg of an exchange, and what they cost."""

    def __init__(self, cost: StepCost, slots: StepSlots) -> None:
        """Count the rows of a plan under a price list."""
        self._cost, self._slots = cost, slots
        rows = _rows_of_legs(cost, slots)
        self._load_LR: FloatArray = np.einsum("lcr,c->lr", slots.pairs_LCR, slots.workload.class_size_C)
        self._dispatch_us_LN = _phase_us_LN(cost.dispatch, rows)
        self._combine_us_LN = _phase_us_LN(cost.combine, rows)

    def price(self, name: str, *, merged: bool = False) -> Prediction:
        """Predict the plan; with `merged`, as if the slots of one expert on one rank were one, which moves no row."""
        cost, slots, workload = self._cost, self._slots, self._slots.workload
        chosen_S = slots.merged_S if merged else np.ones(len(slots.rank_S), dtype=bool)
        compute_us_LR = cost.slot_us_R * slots.active_LR(chosen_S) + cost.row_us_R * self._load_LR
        layers = tuple(map(LayerPrediction, workload.layers, *self._per_layer(compute_us_LR)))
        slots_R = np.bincount(slots.rank_S[chosen_S], minlength=workload.num_ranks)
        memory_bytes = int(slots_R.max()) * workload.model.expert_bytes
        return Prediction(name, cost.exchange, layers, memory_bytes, cost.overlap, cost.label, cost.reasons)

    def _per_layer(self, compute_us_LR: FloatArray) -> tuple[list[float] | list[str], ...]:
        """Return the fields of `LayerPrediction` after the first, each for all layers: `LayerCost`, all at once."""
        cost, load_LR = self._cost, self._load_LR
        loads = (self._dispatch_us_LN, compute_us_LR, self._combine_us_LN)
        fixed_us = (cost.dispatch.alpha_us, cost.launch_us, cost.combine.alpha_us)
        times_3L = np.stack([us + us_LN.max(axis=1, initial=0.0) for us, us_LN in zip(fixed_us, loads, strict=True)])
        busiest_3L = np.stack([us_LN.argmax(axis=1) if us_LN.size else np.zeros(len(us_LN), int) for us_LN in loads])
        imbalance_L = load_LR.max(axis=1) / np.maximum(load_LR.mean(axis=1), np.finfo(float).tiny)
        held_up_by = [
            bottleneck(cost, times, busiest)
            for times, busiest in zip(times_3L.T.tolist(), busiest_3L.T.tolist(), strict=True)
        ]
        columns = (imbalance_L, *times_3L, cost.layer_us(*times_3L))
        return (*(column.tolist() for column in columns), held_up_by)


def _rows_of_legs(cost: StepCost, slots: StepSlots) -> dict[tuple[str, bool], FloatArray]:
    """Return the rows [L, C, T] of every kind that the legs count; layer by layer as `LayerProblem.evaluate` does."""
    rows: dict[tuple[str, bool], FloatArray] = {("rank", False): slots.pairs_LCR}
    targets = {leg.target for leg in cost.dispatch.legs if leg.distinct}
    if "domain" in targets:
        rows["domain", True] = slots.by_domain_LCD
        rows["rank", True] = slots.pairs_LCR
        slack = np.all([slack_L(phase, _phase_us_LN(phase, rows)) for phase in (cost.dispatch, cost.combine)], axis=0)
        if not slack.all():
            rows["rank", True] = np.where(slack[:, None, None], slots.pairs_LCR, slots.by_rank_LCR)
    elif "rank" in targets:
        rows["rank", True] = slots.by_rank_LCR
    return rows


def _phase_us_LN(phase: Phase, rows: dict[tuple[str, bool], FloatArray]) -> FloatArray:
    """Return microseconds on each of a phase's links in every layer, without start-up time."""
    num_layers = len(rows["rank", False])
    us_LN = np.zeros((num_layers, len(phase.link_names)))
    for leg in phase.legs:
        us_LN += (leg.us_XN.T @ rows[leg.target, leg.distinct].reshape(num_layers, -1).T).T
    return us_LN
