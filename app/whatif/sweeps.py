"""Grids over one or two knobs: their points, and what each point's plan costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.whatif.cases import Case, holding_all, make_case
from app.whatif.settings import Settings
from app.whatif.uploads import Uploads
from planner import Workload
from planner.provenance import Provenance
from topologies import EpplanError

MAX_POINTS = 100


@dataclass(frozen=True)
class Knob:
    """A field of the settings that a grid can run over.

    Attributes:
        field: of `Settings`.
        label, unit: for people, who name values in this unit.
        values: offered at first.
        log: drawn on a logarithmic axis.
        per_unit: of the field in one unit.
        given: nobody chooses it; points with other values of it do not compete.
        dear: 1 where more of it costs money, -1 where less of it does, 0 where the rows say what it costs.

    """

    field: str
    label: str
    unit: str
    values: tuple[float, ...]
    log: bool = False
    per_unit: float = 1.0
    given: bool = False
    dear: int = 0

    def show(self, value: float) -> str:
        """Return a value with its unit.

        >>> KNOBS["tokens"].show(4096)
        '4,096 tokens'
        """
        return f"{value:,g} {self.unit}" if value < 1e6 else f"{value:,.0f} {self.unit}"


KNOBS: Mapping[str, Knob] = {
    knob.field: knob
    for knob in (
        Knob("slots", "Slots per rank", "slots", ()),
        Knob("nic_gbps", "NIC speed", "Gb/s", (100, 200, 400, 800, 1600), log=True, per_unit=1 / 8, dear=1),
        Knob("scale_up", "NVLink / xGMI speed", "x", (0.5, 1, 2, 4), log=True, dear=1),
        Knob("hosts", "Hosts (EP size)", "hosts", ()),
        Knob("tokens", "Tokens per rank", "tokens", (32, 128, 512, 2048, 8192), log=True, given=True),
        Knob("power", "Skew of the loads", "power", (0, 0.5, 1, 1.5, 2), given=True),
        Knob("oversubscription", "Oversubscription", ": 1", (1, 2, 4, 8), log=True, dear=-1),
    )
}
WHOLE = ("slots", "hosts")


@dataclass(frozen=True)
class Point:
    """One point of a grid: the knobs' values, and its case or what is wrong with it."""

    x: float
    y: float | None
    case: Case | None
    note: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Row:
    """What the plan of a point is predicted to cost.

    Attributes:
        layer_us, dispatch_us, compute_us, combine_us: means over layers.
        best_baseline_us: of linear, round-robin and both EPLBs.
        weights_gb: of experts, on the fullest rank.
        us_per_token: of all MoE layers, for each token of a rank: comparable where tokens or ranks differ.
        provenance: of the times.
        note: what was changed to make it feasible; problem: why there is no plan.

    """

    x: float
    y: float | None
    ranks: int = 0
    slots: int = 0
    exchange: str = ""
    layer_us: float = float("nan")
    dispatch_us: float = float("nan")
    compute_us: float = float("nan")
    combine_us: float = float("nan")
    best_baseline_us: float = float("nan")
    imbalance: float = float("nan")
    weights_gb: float = float("nan")
    us_per_token: float = float("nan")
    provenance: Provenance = "vendor"
    note: str = ""
    problem: str = ""


def make_points(
    base: Settings, uploads: Uploads, x: Knob, xs: Sequence[float], y: Knob | None, ys: Sequence[float]
) -> tuple[Point, ...]:
    """Return the points of a grid, x running fastest; those whose inputs cannot be are kept with the reason."""
    points = []
    for y_value in ys if y is not None else (None,):
        for x_value in xs:
            changes: dict[str, Any] = {x.field: _typed(x, x_value)}
            if y is not None and y_value is not None:
                changes[y.field] = _typed(y, y_value)
            if "slots" in changes:
                changes["weights_gb"] = None
            try:
                case, note = holding_all(make_case(base.but(**changes), uploads), uploads)
                points.append(Point(x_value, y_value, case, note))
            except EpplanError as error:
                points.append(Point(x_value, y_value, None, problem=str(error)))
    return tuple(points)


def _typed(knob: Knob, value: float) -> float | int:
    return int(value) if knob.field in WHOLE else value * knob.per_unit


def point_row(point: Point, time_limit_s: float, drawn: dict[str, Workload]) -> Row:
    """Plan one point; `drawn` keeps workloads whose sampled tokens serve other points too."""
    if point.case is None:
        return Row(point.x, point.y, problem=point.problem)
    try:
        case = point.case
        workload = case.workload(drawn.get(case.sample_key))
        drawn.setdefault(case.sample_key, workload)
        solution = case.search(workload, time_limit_s=time_limit_s)
    except EpplanError as error:
        return Row(point.x, point.y, problem=str(error))
    found = solution.predictions[-1]
    return Row(
        x=point.x,
        y=point.y,
        ranks=case.cluster.num_ranks,
        slots=case.slots_per_rank,
        exchange=solution.exchange,
        layer_us=found.mean("layer_us"),
        dispatch_us=found.mean("dispatch_us"),
        compute_us=found.mean("compute_us"),
        combine_us=found.mean("combine_us"),
        best_baseline_us=solution.to_beat.mean("layer_us"),
        imbalance=found.mean("imbalance"),
        weights_gb=found.memory_bytes / 1e9,
        us_per_token=found.total_us / workload.tokens_per_rank,
        provenance=found.provenance,
        note=point.note,
    )


def planned(rows: Sequence[Row]) -> list[Row]:
    """Return the points that have a plan."""
    return [row for row in rows if not row.problem]
