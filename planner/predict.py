"""Predicted times of a whole plan: one row a layer, labelled with the profile that made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.cost import Phase, StepCost, is_slack, step_cost
from planner.layer import LayerCost, layer_problem
from planner.placement import FloatArray, Placement
from planner.provenance import Provenance
from planner.step_rows import MOST_TARGETS, StepSlots
from planner.timing import Exchange, Overlap, TimingProfile
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
    exchange: Exchange
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
    slots = StepSlots(workload, placements)
    rows = _rows_of_legs(cost, workload, placements, slots)
    load_LR = np.einsum("lcr,c->lr", rows["rank", False], workload.class_size_C)
    compute_us_LR = cost.slot_us_R * slots.active_LR() + cost.row_us_R * load_LR
    dispatch_us_LN, combine_us_LN = (
        _phase_us_LN(phase, rows, len(placements)) for phase in (cost.dispatch, cost.combine)
    )
    layers = []
    for row, number in enumerate(workload.layers):
        priced = LayerCost(cost, load_LR[row], dispatch_us_LN[row], compute_us_LR[row], combine_us_LN[row], {})
        layers.append(
            LayerPrediction(
                layer=number,
                imbalance=priced.imbalance,
                dispatch_us=priced.dispatch_us,
                compute_us=priced.compute_us,
                combine_us=priced.combine_us,
                layer_us=priced.layer_us,
                bottleneck=priced.bottleneck,
            )
        )
    slots_R = np.bincount(slots.rank_S, minlength=workload.num_ranks)
    memory_bytes = int(slots_R.max()) * workload.model.expert_bytes
    return Prediction(name, exchange, tuple(layers), memory_bytes, cost.overlap, cost.label, cost.reasons)


def _rows_of_legs(
    cost: StepCost, workload: Workload, placements: Sequence[Placement], slots: StepSlots
) -> dict[tuple[str, bool], FloatArray]:
    """Return the rows [L, C, T] of every kind that the legs count."""
    rows: dict[tuple[str, bool], FloatArray] = {("rank", False): slots.pairs_LCR()}
    ranks = np.arange(workload.num_ranks)
    target_of = {
        "rank": (ranks, workload.num_ranks),
        "domain": (np.asarray(workload.cluster.domain_of_rank), workload.num_domains),
    }
    for target in sorted({leg.target for leg in cost.dispatch.legs if leg.distinct}):
        if target == "rank" and ("domain", True) in rows:
            rows[target, True] = rows["rank", False]
            phases = (cost.dispatch, cost.combine)
            if all(is_slack(phase, _phase_us_LN(phase, rows, len(placements))) for phase in phases):
                continue
        target_R, count = target_of[target]
        if count <= MOST_TARGETS:
            rows[target, True] = slots.distinct_LCT(target_R, count)
            continue
        every_slot_R = np.full(workload.num_ranks, workload.num_experts)
        problems = (layer_problem(workload, cost, every_slot_R, row) for row in range(len(placements)))
        priced = [problem.evaluate(p, every_link=True) for problem, p in zip(problems, placements, strict=True)]
        rows[target, True] = np.stack([one.counted[target].rows_CT for one in priced])
    return rows


def _phase_us_LN(phase: Phase, rows: dict[tuple[str, bool], FloatArray], num_layers: int) -> FloatArray:
    """Return microseconds on each of a phase's links in every layer, without start-up time."""
    us_LN = np.zeros((num_layers, len(phase.link_names)))
    for leg in phase.legs:
        us_LN += (leg.us_XN.T @ rows[leg.target, leg.distinct].reshape(num_layers, -1).T).T
    return us_LN
