"""Several statistics, or spans of one recording, as scenarios of one plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from app.console import messages
from app.inputs import Inputs
from app.room import Room
from planner import MoEModel, Routing, Solution, TimingProfile, Workload, build_workload, load_routing
from topologies import BadInput

if TYPE_CHECKING:
    from planner.robust import Risk
    from planner.solve.scenarios import RobustSolution


@dataclass(frozen=True, eq=False)
class Scenarios:
    """The statistics that a plan has to serve, and how they count: None where there is one alone."""

    routings: tuple[Routing, ...]
    digests: tuple[str, ...]
    risk: Risk | None

    @classmethod
    def load(cls, inputs: Inputs, more: Sequence[str], windows: int | None, robust: str | None) -> Scenarios:
        """Read the further files and cut recordings into windows; BadInput where one scenario is to be weighed."""
        model: MoEModel = inputs.model
        files = (inputs.routing, *(load_routing(name, model) for name in more))
        routings = files if windows is None else tuple(w for one in files for w in windows_of(one, windows))
        digests = tuple(one.sha256 for one in files)
        if len(routings) > 1:
            from planner.robust import parse_risk  # noqa: PLC0415 - few plans have several scenarios

            return cls(routings, digests, parse_risk(robust or "worst"))
        if robust is not None:
            raise BadInput("--robust needs several scenarios: name --routing more than once, or --windows N")
        return cls(routings, digests, None)

    @property
    def sources(self) -> dict[str, str]:
        """Return what plan.json says of the files beyond the first."""
        return {f"routing {number}": f"sha256:{digest}" for number, digest in enumerate(self.digests[1:], start=2)}

    def say(self) -> None:
        """Name the scenarios, where there are several."""
        if len(self.routings) > 1:
            messages().print(f"{len(self.routings)} scenarios: {', '.join(one.name for one in self.routings)}")

    def solved(
        self,
        workload: Workload,
        tokens: float | None,
        profile: TimingProfile,
        room: Room,
        asked: dict[str, Any],
    ) -> tuple[Workload, Solution, RobustSolution | None]:
        """Plan the one workload, or all scenarios; the workload that comes back is the one of the predictions.

        `tokens` a rank are the user's; without, traces are steps of their own and counts follow the first workload.
        """
        if self.risk is None:
            return workload, room.solved(workload, profile, asked), None
        from planner.solve.scenarios import solve_scenarios  # noqa: PLC0415 - solvers load only where one searches

        if tokens is None and not all(one.trace is not None for one in self.routings):
            tokens = workload.tokens_per_rank
        workloads = [
            build_workload(workload.model, workload.cluster, one, tokens, workload.seed) for one in self.routings
        ]
        found = solve_scenarios(workloads, profile, room.slots, self.risk, even=room.even, **asked)
        return found.workloads[found.worst], found.solution, found


def windows_of(routing: Routing, count: int) -> Iterable[Routing]:
    """Cut a recording into spans of even length, in order; raises BadInput where it does not tell times apart."""
    length = routing.num_tokens if routing.windows is None else len(routing.windows)
    if length is None:
        raise BadInput(f"{routing.name}: has neither a trace nor times, so that --windows {count} cannot cut it")
    if length < count:
        raise BadInput(f"{routing.name}: --windows {count} of a recording of {length} tokens or spans")
    edges = np.linspace(0, length, count + 1).round().astype(int).tolist()
    for number, (start, stop) in enumerate(pairwise(edges), start=1):
        name = f"{routing.name}, window {number} of {count}"
        if routing.windows is None:
            yield replace(routing.tokens(start, stop), name=name)
        else:
            counts = routing.windows[start:stop].sum(axis=0)[:, None]
            if not counts.any(axis=(1, 2)).all():
                raise BadInput(f"{name}: a layer without any token; take fewer windows")
            yield Routing(routing.layers, counts, name=name, sha256=routing.sha256)


def scenario_table(found: RobustSolution) -> Table:
    """Lay every plan beside every scenario: microseconds a layer."""
    layers = found.workloads[0].num_layers
    table = Table(
        title=f"Predicted layer us (mean of {layers}) in each scenario", title_justify="left", header_style="bold"
    )
    table.add_column("plan")
    for one in (*(workload.routing.name for workload in found.workloads), "mean", "worst"):
        table.add_column(one, justify="right", overflow="fold")
    for name, predictions in found.table.items():
        us = [prediction.total_us / layers for prediction in predictions]
        cells = [f"{value:,.1f}" for value in (*us, float(np.mean(us)), max(us))]
        table.add_row(name, *cells, style="bold" if name == "this plan" else None)
    return table


def scenarios_json(found: RobustSolution) -> dict[str, Any]:
    """Return every plan's time of a step in every scenario, microseconds."""
    names = [workload.routing.name for workload in found.workloads]
    return {
        "scenarios": [
            {"name": name, "total_us": {plan: row[index].total_us for plan, row in found.table.items()}}
            for index, name in enumerate(names)
        ],
        "worst_scenario": names[found.worst],
    }
