"""Grids over one or two knobs: their points, what each point's plan costs, and what the grid says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from app.whatif.cases import Case, holding_all, make_case
from app.whatif.settings import Settings
from app.whatif.uploads import Uploads
from planner import Workload
from planner.provenance import Provenance
from topologies import EpplanError

MAX_POINTS = 100
LEVEL = 0.02  # a step along a knob that gains less than this part is called level


@dataclass(frozen=True)
class Knob:
    """A field of the settings that a grid can run over.

    Attributes:
        field: of `Settings`.
        label, unit: for people.
        values: offered at first.
        log: drawn on a logarithmic axis.

    """

    field: str
    label: str
    unit: str
    values: tuple[float, ...]
    log: bool = False

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
        Knob("nic_gbps", "NIC speed", "GB/s", (12.5, 25, 50, 100, 200), log=True),
        Knob("scale_up", "NVLink / xGMI speed", "x", (0.5, 1, 2, 4), log=True),
        Knob("hosts", "Hosts (EP size)", "hosts", ()),
        Knob("tokens", "Tokens per rank", "tokens", (32, 128, 512, 2048, 8192), log=True),
        Knob("power", "Skew of the loads", "power", (0, 0.5, 1, 1.5, 2)),
        Knob("oversubscription", "Oversubscription", ": 1", (1, 2, 4, 8), log=True),
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
    return int(value) if knob.field in WHOLE else value


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
        best_baseline_us=min(one.mean("layer_us") for one in solution.predictions[:-1]),
        imbalance=found.mean("imbalance"),
        weights_gb=found.memory_bytes / 1e9,
        us_per_token=found.total_us / workload.tokens_per_rank,
        provenance=found.provenance,
        note=point.note,
    )


def planned(rows: Sequence[Row]) -> list[Row]:
    """Return the points that have a plan."""
    return [row for row in rows if not row.problem]


def pareto(rows: Sequence[Row]) -> list[Row]:
    """Return the points that no other beats in both memory and time per token, by memory."""
    front: list[Row] = []
    for row in sorted(planned(rows), key=lambda row: (row.weights_gb, row.us_per_token)):
        if not front or row.us_per_token < front[-1].us_per_token:
            front.append(row)
    return front


def findings(rows: Sequence[Row], x: Knob, y: Knob | None) -> list[str]:
    """Say what a grid shows: where one knob stops paying; with two, from where on a line beats the first one."""
    lines: dict[float | None, list[Row]] = {}
    for row in planned(rows):
        lines.setdefault(row.y, []).append(row)
    if y is None:
        said = [_knee(sorted(line, key=lambda row: row.x), x) for line in lines.values()]
    else:
        (first, base), *others = lines.items() if lines else [(None, [])]
        said = [_crossing(base, line, x, y.show(value or 0.0), y.show(first or 0.0)) for value, line in others]
    return [sentence for sentence in said if sentence]


def against_first(rows: Sequence[Row]) -> dict[tuple[float, float | None], float]:
    """Return by how many percent each point is slower per token than the first line's at the same x."""
    first = min((row.y for row in planned(rows) if row.y is not None), default=None)
    base = {row.x: row.us_per_token for row in planned(rows) if row.y == first}
    return {(row.x, row.y): 100 * (row.us_per_token / base[row.x] - 1) for row in planned(rows) if row.x in base}


def _knee(line: Sequence[Row], x: Knob) -> str:
    """Return where along a line another step no longer gains `LEVEL`."""
    if len(line) < 2:
        return ""
    best = min(line, key=lambda row: row.us_per_token)
    level = next(
        (
            row
            for row in line
            if min(later.us_per_token for later in line if later.x >= row.x) > (1 - LEVEL) * row.us_per_token
        ),
        line[-1],
    )
    gain = line[0].us_per_token / best.us_per_token - 1
    if gain < LEVEL:
        return f"{x.label}: no value gains {LEVEL:.0%} over {x.show(line[0].x)}."
    beyond = "the largest value tried still gains" if level is line[-1] else f"level from {x.show(level.x)} on"
    return f"{x.label}: best at {x.show(best.x)}, {gain:.1%} faster per token than {x.show(line[0].x)}; {beyond}."


def _crossing(base: Sequence[Row], line: Sequence[Row], x: Knob, name: str, base_name: str) -> str:
    """Return from which value of x on a line is faster than the base line."""
    other = {row.x: row.us_per_token for row in base}
    ratio = sorted((row.x, row.us_per_token / other[row.x]) for row in line if row.x in other)
    if not ratio:
        return ""
    if all(value < 1 for _, value in ratio):
        return f"{name} beats {base_name} at every value tried, by {1 - max(v for _, v in ratio):.1%} at least."
    if all(value >= 1 for _, value in ratio):
        return f"{name} never beats {base_name} on the values tried."
    for (x0, before), (x1, after) in pairwise(ratio):
        if (before < 1) != (after < 1):
            at = x0 + (x1 - x0) * (1 - before) / (after - before)
            where = f"{at:,.0f} {x.unit} (interpolated)" if at >= 100 else f"{at:.3g} {x.unit} (interpolated)"
            return f"Break-even: {name} beats {base_name} " + (f"from {where} on." if after < 1 else f"up to {where}.")
    return ""
