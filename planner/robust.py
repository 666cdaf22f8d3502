"""What a plan is worth that has to serve several scenarios: the mean of its worst ones.

One number covers it (conditional value at risk, Rockafellar and Uryasev 2000): with S scenarios, the mean of the worst
(1 - level) * S of them. Level 0 is the mean of all; from 1 - 1/S on it is the worst.

Shapes: S scenarios, X anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from planner.layer import LayerCost, LayerProblem
from planner.placement import FloatArray, IntArray, Placement
from topologies import BadInput


@dataclass(frozen=True)
class Risk:
    """How scenarios count: `level` from 0 (their mean) to 1 (the worst of them)."""

    level: float

    def tail(self, scenarios: int) -> float:
        """Return how many of the worst scenarios count, at least one."""
        return max((1.0 - self.level) * scenarios, 1.0)

    def of(self, value_SX: FloatArray) -> FloatArray:
        """Return the mean of the worst scenarios, for each X; the last of them may count in part."""
        tail = self.tail(len(value_SX))
        weight_S = np.clip(tail - np.arange(len(value_SX)), 0.0, 1.0) / tail
        weight_S = weight_S[weight_S > 0]  # of the worst alone: a cost may be infinite
        worst_first_SX = -np.sort(-value_SX, axis=0)[: len(weight_S)]
        mean_X: FloatArray = np.tensordot(weight_S, worst_first_SX, axes=1)
        return mean_X


def parse_risk(text: str) -> Risk:
    """Read `worst`, `mean` or `cvar:Q` with Q in [0, 1); raises BadInput for anything else."""
    if text in ("worst", "mean"):
        return Risk(1.0 if text == "worst" else 0.0)
    match = re.fullmatch(r"cvar:(0(?:\.[0-9]{1,9})?|\.[0-9]{1,9})", text, re.ASCII)
    if match is None:
        raise BadInput(f"--robust is {text[:40]!r}, must be worst, mean or cvar:Q with Q from 0 to below 1 (cvar:0.8)")
    return Risk(float(match[1]))


@dataclass(frozen=True, eq=False)
class RobustCost:
    """What a placement costs in every scenario, and what that is worth."""

    costs: tuple[LayerCost, ...]
    risk: Risk

    @property
    def layer_us(self) -> float:
        """The mean of the worst scenarios."""
        return float(self.risk.of(np.array([cost.layer_us for cost in self.costs])))


@dataclass(frozen=True, eq=False)
class RobustProblem:
    """One layer under several scenarios: the same ranks, slots and price list, other rows."""

    scenarios: tuple[LayerProblem, ...]
    risk: Risk
    backups: None = field(default=None, init=False)  # hosts are not lost in a scenario

    def evaluate(self, placement: Placement, *, near: RobustCost | None = None) -> RobustCost:
        """Price a placement in every scenario, from the cost of one that is `near` where there is one."""
        known = [None] * len(self.scenarios) if near is None else near.costs
        costs = (one.evaluate(placement, near=cost) for one, cost in zip(self.scenarios, known, strict=True))
        return RobustCost(tuple(costs), self.risk)

    @property
    def even(self) -> bool:
        """Whether every slot has to be in use and copies serve equal shares."""
        return self.scenarios[0].even

    def fitted(self, placement: Placement) -> Placement:
        """Return the placement as this layer may hold it; the busiest experts are those of the first scenario."""
        return self.scenarios[0].fitted(placement)

    @property
    def domain_R(self) -> IntArray:
        """Domain of each rank."""
        return self.scenarios[0].domain_R

    @property
    def slots_R(self) -> IntArray:
        """Slots of each rank."""
        return self.scenarios[0].slots_R

    @property
    def num_experts(self) -> int:
        """E."""
        return self.scenarios[0].num_experts

    @property
    def num_domains(self) -> int:
        """D."""
        return self.scenarios[0].num_domains


Problem = LayerProblem | RobustProblem


def scenarios_of(problem: Problem) -> Sequence[LayerProblem]:
    """Return the scenarios of a problem; a plain layer is its own only one."""
    return problem.scenarios if isinstance(problem, RobustProblem) else (problem,)


def costs_of(cost: LayerCost | RobustCost) -> Sequence[LayerCost]:
    """Return the costs in every scenario."""
    return cost.costs if isinstance(cost, RobustCost) else (cost,)


def evaluate_near(problem: Problem, placement: Placement, cost: LayerCost | RobustCost) -> LayerCost | RobustCost:
    """Price a placement that differs little from one whose cost is known."""
    if isinstance(problem, RobustProblem):
        return problem.evaluate(placement, near=cost if isinstance(cost, RobustCost) else None)
    return problem.evaluate(placement, near=cost if isinstance(cost, LayerCost) else None)
