"""What pages ask for, kept by content: the same question is worked out once, whoever asks it, in another process.

Every key is a digest of the content itself (see `app.whatif.cases`). Values are never changed once made, so sessions
may share them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st

from app.whatif.cases import Case, make_case
from app.whatif.pool import pool
from app.whatif.questions import FastPlan, Migrated, Predicted, Question, Reported, Simulated
from app.whatif.settings import Settings
from app.whatif.state import Found, Session
from planner import Placement, Prediction, Solution, Workload
from planner.cover_rows import step_slots
from planner.link_use import LinkUse, link_use
from planner.migrate import Migration
from planner.placement import FloatArray
from planner.routing_report import RoutingReport
from planner.simulate import Simulation
from planner.timing import plain
from topologies import Cluster
from topologies.catalog import load_system
from topologies.lint import Finding, lint
from topologies.spec import ClusterSpec
from topologies.summary import summarise

ENTRIES, AN_HOUR = 64, 3600.0
THIS_PLAN = "this plan"


@dataclass(frozen=True, eq=False)
class Planned:
    """A case with the best plan that the session has for it.

    Attributes:
        found: the search that it comes from; None for the best baseline of every layer.

    """

    case: Case
    workload: Workload
    solution: Solution
    found: Found | None = None

    @property
    def key(self) -> str:
        """Return what tells it from other plans, those of other searches of the same case among them."""
        return f"{self.case.key} {self.solution.seconds if self.found else 'fast'}"

    @property
    def prediction(self) -> Prediction:
        """Return the prediction of the plan."""
        return self.solution.predictions[-1]

    @property
    def names(self) -> list[str]:
        """Return the baselines and, last, the plan."""
        return [*self.solution.baselines, THIS_PLAN]

    def placements(self, name: str) -> list[Placement]:
        """Return the placements of a baseline, or of the plan."""
        return self.solution.placements if name == THIS_PLAN else self.solution.baselines[name]


def case_of(mine: Session, settings: Settings | None = None) -> Case:
    """Return the case of the session's settings, or of others on its uploads; raises BadInput."""
    return make_case(settings or mine.settings, mine.uploads)


def planned(mine: Session, case: Case) -> Planned:
    """Return the best plan at hand: what a search of this session found, else the fast one."""
    case.slots_R()  # what cannot be is said even where a cache holds something
    if case.key in mine.found:
        found = mine.found[case.key]
        return Planned(case, workload_of(case), found.solution, found)
    return Planned(case, workload_of(case), fast_plan(case))


kept = st.cache_resource(
    max_entries=ENTRIES,
    ttl=AN_HOUR,
    show_spinner=False,
    hash_funcs={
        Case: lambda case: case.key,
        Planned: lambda plan: plan.key,
        Cluster: lambda cluster: (cluster.spec.model_dump_json(), cluster.name, cluster.ranks),
        ClusterSpec: lambda spec: spec.model_dump_json(),
    },
)


@st.cache_resource(max_entries=8, ttl=AN_HOUR, show_spinner=False, hash_funcs={Case: lambda case: case.sample_key})
def sampled(case: Case) -> Workload:
    """Return a workload whose sampled tokens serve every case on the same statistics."""
    return case.workload()


@st.cache_resource(max_entries=ENTRIES, ttl=AN_HOUR, show_spinner=False, hash_funcs={Case: lambda c: c.workload_key})
def workload_of(case: Case) -> Workload:
    """Return the workload of a case."""
    return case.workload(sampled(case))


@kept
def fast_plan(case: Case) -> Solution:
    """Return the best baseline of every layer."""
    found: Solution = _asked(FastPlan(case))
    return found


@kept
def moved(plan: Planned, case: Case) -> Prediction:
    """Predict a plan, as it is, under another case with the same ranks and experts."""
    asked = Predicted("A's plan, as it is", case, plan.solution.placements, plain(plan.solution.exchange))
    prediction: Prediction = _asked(asked)
    return prediction


@kept
def migrated(plan: Planned, other: Planned) -> Migration:
    """Return what it takes to put another plan of the same model into the place of a plan."""
    asked = Migrated(other.case, plan.case.cluster, plan.solution.placements, other.solution.placements)
    found: Migration = _asked(asked)
    return found


@kept
def simulation(plan: Planned, name: str, row: int, *, barriers: bool = False) -> Simulation:
    """Return the simulation of one layer under the plan or a baseline."""
    exchange = plain(plan.solution.exchange)
    done: Simulation = _asked(Simulated(plan.case, plan.placements(name)[row], row, exchange, barriers))
    return done


@kept
def links(plan: Planned, name: str, row: int) -> LinkUse:
    """Return what one layer puts on every link."""
    return link_use(simulation(plan, name, row), plan.case.cluster)


@kept
def loads_LR(plan: Planned, name: str) -> FloatArray:
    """Return the token-expert pairs of every rank in every layer."""
    slots = step_slots(plan.workload, plan.placements(name))
    loads: FloatArray = np.einsum("lcr,c->lr", slots.pairs_LCR, plan.workload.class_size_C)
    return loads


@kept
def summary(cluster: Cluster) -> dict[str, Any]:
    """Return the figures of a cluster."""
    return summarise(cluster)


@kept
def linted(spec: ClusterSpec, system: str | None) -> list[Finding]:
    """Return what is wrong with a cluster, held against a catalog system where one is named."""
    return lint(spec, None if system is None else load_system(system))


@st.cache_resource(
    max_entries=ENTRIES, ttl=AN_HOUR, show_spinner=False, hash_funcs={Case: lambda case: case.sample_key}
)
def routing_report(case: Case) -> RoutingReport:
    """Return what the statistics say before any plan."""
    found: RoutingReport = _asked(Reported(case))
    return found


def _asked(question: Question) -> Any:
    return pool().ask(question, lambda: _drawn(question.case))


def _drawn(case: Case) -> Workload:
    """Return the workload that others on the same statistics start from, its tokens drawn before it is sent around."""
    workload = sampled(case)
    _ = workload.tokens_LPK
    return workload
