"""`epplan evaluate`: plans and baselines side by side on the same routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import click

from app.console import messages, print_json, results
from app.inputs import BUNDLED, load_inputs
from app.tables import as_json, comparison
from planner import (
    Cluster,
    MoEModel,
    Plan,
    Prediction,
    Routing,
    TimingProfile,
    Workload,
    build_workload,
    load_cluster,
    load_plan,
    load_profile,
    load_routing,
    predict,
    slots_of_ranks,
)
from planner.baselines import BASELINES, baseline
from planner.placement import IntArray, Placement
from planner.request import default_slots_per_rank
from planner.timing import EXCHANGES, OVERLAPS, Exchange, Overlap
from topologies import BadInput


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
    type=click.Choice(["auto", *EXCHANGES]),
    help="All-to-all algorithm for all rows. [default: the plan's, else auto: the fastest for each]",
)
@click.option("--overlap", type=click.Choice(OVERLAPS), help="As in `epplan plan`. [default: the plan's, else none]")
@click.option("--profile", default="vendor", show_default=True, help="Timing profile: a shipped name or a YAML file.")
@click.option("--json", "json_", is_flag=True, help="Print every layer as JSON instead of a table.")
def evaluate(
    plans: tuple[str, ...],
    routing: str | None,
    model: str | None,
    cluster: str | None,
    slots_per_rank: int | None,
    tokens_per_rank: float | None,
    exchange: Exchange | Literal["auto"] | None,
    overlap: Overlap | None,
    profile: str,
    json_: bool,
) -> None:
    """Predict what plans and baselines cost on the same routing, side by side.

    Baselines by name: linear, round-robin, eplb (hierarchical where groups divide by hosts), eplb-global.

    \b
    epplan evaluate plan.json linear round-robin eplb eplb-global --routing loads.json
    """
    loaded = {name: load_plan(name) for name in plans if name not in BASELINES}
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
        results().print(comparison(rows, timing))
        for reason in dict.fromkeys(reason for row in rows for reason in row.reasons):
            results().print(f"extrapolated: {reason}")


@dataclass(frozen=True)
class _Setting:
    """What all rows are evaluated on."""

    workload: Workload
    slots_R: IntArray
    exchange: Exchange | Literal["auto"]

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
    of_model: MoEModel = plan.model
    of_cluster = _cluster_of(plan, cluster)
    statistics = load_routing(routing or str(BUNDLED / "skewed.npz"), of_model)
    statistics = _layers_of(plan, statistics)
    workload = build_workload(
        of_model, of_cluster, statistics, tokens_per_rank or plan.workload.tokens_per_rank, plan.workload.seed
    )
    slots = max(plan.workload.slots_per_rank) if slots_per_rank is None else slots_per_rank
    return _Setting(workload, slots_of_ranks(of_model, of_cluster, slots, workload.num_layers), plan.exchange)


def _cluster_of(plan: Plan, cluster: str | None) -> Cluster:
    try:
        return load_cluster(cluster or plan.cluster.name)
    except BadInput as error:
        if cluster is not None:
            raise
        raise BadInput(
            f"the plan's cluster {plan.cluster.name!r} is not in the catalog; name its file with --cluster"
        ) from error


def _layers_of(plan: Plan, routing: Routing) -> Routing:
    numbers = [layer.layer for layer in plan.layers]
    missing = sorted(set(numbers) - set(routing.layers))
    if missing:
        raise BadInput(
            f"{routing.name}: no statistics for layer {missing[0]} of the plan ({len(missing)} layers missing)"
        )
    if len(routing.layers) > len(numbers):
        messages().print(
            f"note: {routing.name} has {len(routing.layers)} layers, the plan {len(numbers)}: using the plan's"
        )
    return routing.select(numbers)


def _fastest(
    name: str,
    placements: list[Placement],
    workload: Workload,
    profile: TimingProfile,
    exchange: Exchange | Literal["auto"],
    overlap: Overlap,
) -> Prediction:
    """Predict under one exchange, or under the fastest of all."""
    names = EXCHANGES if exchange == "auto" else (exchange,)
    return min(
        (predict(name, placements, workload, profile, one, overlap=overlap) for one in names),
        key=lambda prediction: prediction.total_us,
    )
