"""`epplan evaluate`: plans and baselines side by side on the same routing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import numpy as np

from app.console import messages, print_json, results
from app.inputs import load_inputs, workload_of_plan
from app.profile_option import profile_option
from app.tables import as_json, comparison, groups_note
from planner import (
    Plan,
    Prediction,
    TimingProfile,
    Workload,
    build_workload,
    load_plan,
    load_profile,
    slots_of_ranks,
)
from planner.baselines import BASELINES, baseline
from planner.coherent import predict_coherent
from planner.cost import step_cost
from planner.cover_rows import step_slots
from planner.placement import IntArray, Placement
from planner.predict import PlanCounts
from planner.request import default_slots_per_rank
from planner.timing import EXCHANGES, OVERLAPS, PLAN_EXCHANGES, Overlap, PlanExchange
from topologies import BadInput
from topologies.errors import unknown_name
from topologies.files import what_is_there


@click.command()
@click.argument("plans", nargs=-1, required=True, metavar="PLAN|BASELINE...")
@click.option("--routing", help="Routing statistics to evaluate on. [default: the bundled trace]")
@click.option("--model", help="As in `epplan plan`; needed where no plan is named.")
@click.option(
    "--cluster", help="As in `epplan plan`; needed where no plan is named, or the plan's cluster came from a file."
)
@click.option("--slots-per-rank", type=int, help="Slots that the baselines may use. [default: the plan's]")
@click.option("--tokens-per-rank", type=float, help="Tokens of a rank in a step. [default: the plan's]")
@click.option(
    "--exchange",
    type=click.Choice(["auto", *PLAN_EXCHANGES]),
    help="All-to-all algorithm for all rows, as in `epplan plan`. [default: the plan's, else auto: the fastest for "
    "each but coherent]",
)
@click.option("--overlap", type=click.Choice(OVERLAPS), help="As in `epplan plan`. [default: the plan's, else none]")
@profile_option
@click.option("--json", "json_", is_flag=True, help="Print every layer as JSON instead of a table.")
def evaluate(
    plans: tuple[str, ...],
    routing: str | None,
    model: str | None,
    cluster: str | None,
    slots_per_rank: int | None,
    tokens_per_rank: float | None,
    exchange: PlanExchange | Literal["auto"] | None,
    overlap: Overlap | None,
    profile: str,
    json_: bool,
) -> None:
    """Predict what plans and baselines cost on the same routing, side by side.

    Baselines by name: linear, round-robin, eplb (hierarchical where groups divide by hosts), eplb-global.

    \b
    epplan evaluate plan.json linear round-robin eplb eplb-global --routing loads.json
    """
    loaded = {name: _load(name) for name in plans if name not in BASELINES}
    setting = _setting(next(iter(loaded.values()), None), routing, model, cluster, slots_per_rank, tokens_per_rank)
    timing = load_profile(profile)
    of_plans: Overlap = next((plan.predicted.overlap for plan in loaded.values()), "none")
    rows = []
    for name in plans:
        if name in loaded:
            placements = setting.placements_of(loaded[name], name)
            use = exchange or loaded[name].exchange
        else:
            placements = baseline(name, setting.workload, setting.slots_R)
            use = exchange or setting.exchange
        rows.append(_fastest(name, placements, setting.workload, timing, use, overlap or of_plans))
    if json_:
        print_json(as_json(rows))
    else:
        results().print(comparison(rows, timing, note=groups_note(setting.workload.cluster)))
        for reason in dict.fromkeys(reason for row in rows for reason in row.reasons):
            results().print(f"extrapolated: {reason}")


def _load(name: str) -> Plan:
    """Load a plan; a word that names no file was meant as a baseline."""
    if not what_is_there(name) and not Path(name).suffix:
        raise unknown_name("baseline or plan file", name, BASELINES)
    return load_plan(name)


@dataclass(frozen=True)
class _Setting:
    """What all rows are evaluated on."""

    workload: Workload
    slots_R: IntArray
    exchange: PlanExchange | Literal["auto"]

    def placements_of(self, plan: Plan, name: str) -> list[Placement]:
        """Return a plan's placements, refused where it is for another model, cluster or set of layers."""
        if (plan.model.experts, plan.model.hidden) != (self.workload.model.experts, self.workload.model.hidden):
            raise BadInput(
                f"{name}: for {plan.model.experts} experts of {plan.model.name}, not {self.workload.model.experts} "
                f"of {self.workload.model.name}"
            )
        plan.check_cluster(self.workload.cluster)
        numbers = tuple(layer.layer for layer in plan.layers)
        if numbers != self.workload.layers:
            raise BadInput(
                f"{name}: has {len(numbers)} layers, the first plan and the routing {len(self.workload.layers)}"
            )
        return plan.placements()


def _setting(
    plan: Plan | None,
    routing: str | None,
    model: str | None,
    cluster: str | None,
    slots_per_rank: int | None,
    tokens_per_rank: float | None,
) -> _Setting:
    """Take what the user names, and the rest from the first plan."""
    if plan is None:
        inputs = load_inputs(model, cluster, routing)
        workload = build_workload(inputs.model, inputs.cluster, inputs.routing, tokens_per_rank)
        slots = default_slots_per_rank(inputs.model, inputs.cluster) if slots_per_rank is None else slots_per_rank
        return _Setting(workload, slots_of_ranks(inputs.model, inputs.cluster, slots, workload.num_layers), "auto")
    if model is not None:
        raise BadInput(
            f"--model {model}: the plan is for {plan.model.name} and brings its own model; leave --model out"
        )
    layers = [layer.layer for layer in plan.layers]
    workload = workload_of_plan(plan, layers, routing=routing, cluster=cluster, tokens_per_rank=tokens_per_rank)
    if plan.provenance.inputs.get("routing") != f"sha256:{workload.routing.sha256}":
        messages().print(
            "note: other statistics than the plan was made on; baselines are placed on these, the plan is not"
        )
    if slots_per_rank is None:
        return _Setting(workload, np.array(plan.workload.slots_per_rank), plan.exchange)
    slots_R = slots_of_ranks(plan.model, workload.cluster, slots_per_rank, workload.num_layers)
    return _Setting(workload, slots_R, plan.exchange)


def _fastest(
    name: str,
    placements: list[Placement],
    workload: Workload,
    profile: TimingProfile,
    exchange: PlanExchange | Literal["auto"],
    overlap: Overlap,
) -> Prediction:
    """Predict under one exchange, or under the fastest of those that carry layers one by one."""
    if exchange == "coherent":
        return predict_coherent(name, placements, workload, profile, overlap)
    names = EXCHANGES if exchange == "auto" else (exchange,)
    costs = (step_cost(workload, profile, one, overlap=overlap) for one in names)
    slots = step_slots(workload, placements)
    return min((PlanCounts(cost, slots).price(name) for cost in costs), key=lambda prediction: prediction.total_us)
