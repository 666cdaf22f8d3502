"""What a grid says: which points nothing beats, where a knob stops paying, and where it breaks even."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from app.whatif.sweeps import Knob, Row, planned

LEVEL = 0.02  # a step along a knob that gains less than this part is called level


def competing(rows: Sequence[Row], x: Knob, y: Knob | None) -> dict[str, list[Row]]:
    """Return the planned points in groups under the same load, which nobody chooses; "" names one group of all."""
    groups: dict[str, list[Row]] = {}
    for row in planned(rows):
        at = [(x, row.x), *([] if y is None or row.y is None else [(y, row.y)])]
        groups.setdefault(", ".join(knob.show(value) for knob, value in at if knob.given), []).append(row)
    return groups


def pareto(rows: Sequence[Row]) -> list[Row]:
    """Return the points that no other beats in both memory and time per token, by memory."""
    front: list[Row] = []
    for row in sorted(planned(rows), key=lambda row: (row.weights_gb, row.us_per_token)):
        if not front or row.us_per_token < front[-1].us_per_token:
            front.append(row)
    return front


def against_first(rows: Sequence[Row]) -> dict[tuple[float, float | None], float]:
    """Return by how many percent each point is slower per token than the first line's at the same x."""
    first = min((row.y for row in planned(rows) if row.y is not None), default=None)
    base = {row.x: row.us_per_token for row in planned(rows) if row.y == first}
    return {(row.x, row.y): 100 * (row.us_per_token / base[row.x] - 1) for row in planned(rows) if row.x in base}


def findings(rows: Sequence[Row], x: Knob, y: Knob | None) -> list[str]:
    """Say what a grid shows: where one knob stops paying; with two, from where on a line beats the first one."""
    lines: dict[float | None, list[Row]] = {}
    for row in sorted(planned(rows), key=lambda row: (row.y or 0.0, row.x)):
        lines.setdefault(row.y, []).append(row)
    if y is None:
        said = [say(line, x) for line in lines.values() for say in (_knee, _prices)]
    else:
        (first, base), *others = lines.items() if lines else [(None, [])]
        said = [_crossing(base, line, x, y.show(value or 0.0), y.show(first or 0.0)) for value, line in others]
    return [sentence for sentence in said if sentence]


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


def _prices(line: Sequence[Row], x: Knob) -> str:
    """Return what each step along a knob that costs money may cost: a token is dearer where ranks cost more than that.

    A rank gets through 1 / us_per_token tokens; its price per token is unchanged where its price grows as much.
    """
    if not x.dear or len(line) < 2:
        return ""
    steps = [
        f"{max(cheap.us_per_token / dear.us_per_token - 1, 0):.1%} for {x.show(dear.x)} in place of {x.show(cheap.x)}"
        for cheap, dear in pairwise(line[:: x.dear])
    ]
    return f"Break-even of {x.label}, MoE layers alone: a rank may cost more by up to {', '.join(steps)}."


def _crossing(base: Sequence[Row], line: Sequence[Row], x: Knob, name: str, base_name: str) -> str:
    """Return for which values of x a line is faster than the base line."""
    other = {row.x: row.us_per_token for row in base}
    ratio = [(row.x, row.us_per_token / other[row.x]) for row in line if row.x in other]
    if not ratio:
        return ""
    both = f"{name} against {base_name}"
    if all(value < 1 for _, value in ratio):
        return f"{both}: faster at every value tried, by {1 - max(v for _, v in ratio):.1%} at least."
    if all(value >= 1 for _, value in ratio):
        return f"{both}: never faster on the values tried."
    spans = [""] if ratio[0][1] < 1 else []
    for one, after in pairwise(ratio):
        if (one[1] < 1) != (after[1] < 1):
            where = _shown(_between(one, after, x), x)
            if after[1] < 1:
                spans.append(f"from {where}")
            else:
                spans[-1] = f"{spans[-1]} up to {where}".strip()
    spans[-1] += " on" if ratio[-1][1] < 1 else ""
    return f"Break-even, {both}: faster {' and '.join(spans)} (interpolated)."


def _between(one: tuple[float, float], after: tuple[float, float], x: Knob) -> float:
    """Return where a line between two points is at 1, drawn on the knob's axis."""
    part = (1 - one[1]) / (after[1] - one[1])
    if x.log:
        return math.exp(math.log(one[0]) + part * math.log(after[0] / one[0]))
    return one[0] + part * (after[0] - one[0])


def _shown(value: float, x: Knob) -> str:
    return f"{value:,.0f} {x.unit}" if value >= 100 else f"{value:.3g} {x.unit}"
