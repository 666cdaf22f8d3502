"""Predicted times of a whole plan: one row a layer, labelled with the profile that made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.cost import StepCost, step_cost
from planner.layer import layer_problem
from planner.placement import FloatArray, IntArray, Placement
from planner.timing import Exchange, TimingProfile
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

    """

    name: str
    exchange: Exchange
    layers: tuple[LayerPrediction, ...]
    memory_bytes: int

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
    cost: StepCost | None = None,
) -> Prediction:
    """Predict every layer of a plan; `cost` saves rebuilding the price list where the caller has it."""
    cost = cost or step_cost(workload, profile, exchange)
    every_slot_R = np.full(workload.num_ranks, workload.num_experts)
    layers = []
    for row, placement in enumerate(placements):
        priced = layer_problem(workload, cost, every_slot_R, row).evaluate(placement)
        layers.append(
            LayerPrediction(
                layer=workload.layers[row],
                imbalance=priced.imbalance,
                dispatch_us=priced.dispatch_us,
                compute_us=priced.compute_us,
                combine_us=priced.combine_us,
                layer_us=priced.layer_us,
                bottleneck=priced.bottleneck,
            )
        )
    memory_R: IntArray | FloatArray = sum((placement.slots_R for placement in placements), np.zeros(1, dtype=np.int64))
    return Prediction(name, exchange, tuple(layers), int(memory_R.max()) * workload.model.expert_bytes)
