"""Short questions to the planner, which the processes of `app.whatif.pool` answer: each knows all that it asks about.

A workload with its sampled tokens is too long to send along every time: a question names it by `case.sample_key`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from app.in_force import on_ranks, same_gpus
from app.whatif.cases import Case
from planner import Placement, Prediction, Solution, Workload, predict
from planner.migrate import Migration, migration
from planner.routing_report import RoutingReport, report
from planner.simulate import Simulation, simulate_layer
from planner.timing import Exchange
from topologies import Cluster


class Question(Protocol):
    """Something that is answered in well under a second."""

    @property
    def case(self) -> Case:
        """Return what it is about."""

    def answer(self, case: Case, workload: Workload) -> Any:
        """Work it out; `case` and `workload` equal its own, with what is already known of them."""


@dataclass(frozen=True)
class FastPlan:
    """Asks for the best baseline of every layer."""

    case: Case

    def answer(self, case: Case, workload: Workload) -> Solution:
        """Place and price the baselines."""
        return case.fast_plan(workload)


@dataclass(frozen=True)
class Predicted:
    """Asks what a step costs under some placements."""

    name: str
    case: Case
    placements: list[Placement]
    exchange: Exchange

    def answer(self, case: Case, workload: Workload) -> Prediction:
        """Predict every layer."""
        overlap = case.settings.overlap
        return predict(self.name, self.placements, workload, case.profile, self.exchange, overlap=overlap)


@dataclass(frozen=True)
class Simulated:
    """Asks what happens in one layer, message by message."""

    case: Case
    placement: Placement
    row: int
    exchange: Exchange
    barriers: bool

    def answer(self, case: Case, workload: Workload) -> Simulation:
        """Simulate it."""
        return simulate_layer(workload, self.placement, self.row, case.profile, self.exchange, barriers=self.barriers)


@dataclass(frozen=True)
class Migrated:
    """Asks what it takes to get from the plan of another cluster's ranks to placements on those of the case."""

    case: Case
    before: Cluster
    old: list[Placement]
    new: list[Placement]

    def answer(self, case: Case, workload: Workload) -> Migration:
        """Find a holder for every expert that a rank has to fetch."""
        cluster = case.cluster
        held = on_ranks(self.old, same_gpus(self.before, cluster), cluster.num_domains)
        return migration(held, self.new, workload.layers, cluster, case.model, case.profile)


@dataclass(frozen=True)
class Reported:
    """Asks what the statistics say before any plan."""

    case: Case

    def answer(self, case: Case, workload: Workload) -> RoutingReport:  # noqa: ARG002 - every question is asked alike
        """Examine them for as many ranks as the cluster has, where these divide the experts."""
        ranks = case.cluster.num_ranks
        return report(case.routing, None if case.model.experts % ranks else ranks)
