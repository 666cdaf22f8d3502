"""Sweeps: lines and heatmaps over knobs, and memory against time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go

from app.whatif.charts.look import AMOUNT, BETTER_WORSE, GREY, LINES, SEVERAL, VERMILLION, figure, log_axis
from app.whatif.findings import against_first, competing, pareto
from app.whatif.sweeps import Knob, Row, planned

AGAINST = "against"
ROOM_FOR_LINES = 64  # above the plot: a long legend under the buttons
METRICS = {
    "layer_us": ("time per layer, us", ",.1f"),
    "us_per_token": ("time of all MoE layers per token of a rank, us", ",.3f"),
    AGAINST: ("time per token against {first}, %", "+.2f"),
    "imbalance": ("imbalance, max / mean over ranks", ".3f"),
    "weights_gb": ("expert weights per rank, GB", ",.2f"),
}


def lines(rows: Sequence[Row], x: Knob, y: Knob | None, metric: str, origin: str) -> go.Figure:
    """Draw a metric over the first knob, a line for every value of the second."""
    title, digits = title_of(rows, y, metric), METRICS[metric][1]
    value_of = _reader(rows, metric)
    drawn = figure(400, margin_t=ROOM_FOR_LINES)
    values = sorted({row.y for row in planned(rows)}, key=lambda value: value or 0.0)
    for turn, value in enumerate(values):
        line = sorted((row for row in planned(rows) if row.y == value), key=lambda row: row.x)
        name = "best plan" if y is None or value is None else y.show(value)
        drawn.add_scatter(
            x=[row.x for row in line], y=[value_of(row) for row in line], name=name, mode="lines+markers",
            line={"color": SEVERAL[turn % len(SEVERAL)], "dash": LINES[turn % len(LINES)], "width": 2.5},
            marker={"size": 8}, text=[f"{row.ranks} ranks, {row.slots} slots, {row.exchange}" for row in line],
            hovertemplate=f"{name}<br>%{{x:,g}} {x.unit}: %{{y:{digits}}} ({origin})<br>%{{text}}<extra></extra>",
        )  # fmt: skip
    if y is None and metric == "layer_us":
        line = sorted(planned(rows), key=lambda row: row.x)
        drawn.add_scatter(
            x=[row.x for row in line], y=[row.best_baseline_us for row in line], name="best single baseline",
            mode="lines+markers", line={"color": GREY, "dash": "dot", "width": 2},
            hovertemplate=f"best single baseline<br>%{{x:,g}} {x.unit}: %{{y:{digits}}} ({origin})<extra></extra>",
        )  # fmt: skip
    ticks = sorted({row.x for row in planned(rows)})
    drawn.update_xaxes(title=f"{x.label} ({x.unit})", type="log" if x.log else "linear", tickvals=ticks,
                       ticktext=[f"{tick:,g}" for tick in ticks])  # fmt: skip
    drawn.update_yaxes(title=f"{title} ({origin})", rangemode="normal" if metric == AGAINST else "tozero")
    return drawn


def heat(rows: Sequence[Row], x: Knob, y: Knob, metric: str, origin: str) -> go.Figure:
    """Draw a metric over both knobs."""
    title, digits = title_of(rows, y, metric), METRICS[metric][1]
    value_of = _reader(rows, metric)
    xs, ys = sorted({row.x for row in rows}), sorted({row.y for row in rows if row.y is not None})
    z = np.full((len(ys), len(xs)), np.nan)
    for row in planned(rows):
        if row.y is not None:
            z[ys.index(row.y), xs.index(row.x)] = value_of(row)
    drawn = figure(150 + 46 * len(ys))
    drawn.add_heatmap(
        z=z, x=[x.show(value) for value in xs], y=[y.show(value) for value in ys], xgap=2, ygap=2,
        colorscale=BETTER_WORSE if metric == AGAINST else AMOUNT, zmid=0 if metric == AGAINST else None,
        texttemplate=f"%{{z:{digits}}}", hoverongaps=False, showscale=False,
        hovertemplate=f"%{{x}}, %{{y}}: %{{z:{digits}}} ({origin})<extra></extra>",
    )  # fmt: skip
    drawn.update_xaxes(type="category", title=f"{title} ({origin})", side="bottom")
    drawn.update_yaxes(type="category")
    return drawn


def title_of(rows: Sequence[Row], y: Knob | None, metric: str) -> str:
    """Return what a metric is called, with its unit."""
    first = min((row.y for row in planned(rows) if row.y is not None), default=0.0)
    return METRICS[metric][0].format(first="" if y is None else y.show(first))


def _reader(rows: Sequence[Row], metric: str) -> Callable[[Row], float]:
    """Return what reads a metric from a row."""
    if metric == AGAINST:
        found = against_first(rows)
        return lambda row: found.get((row.x, row.y), math.nan)
    return lambda row: float(getattr(row, metric))


def front(rows: Sequence[Row], x: Knob, y: Knob | None, origin: str) -> go.Figure:
    """Draw memory against time per token: all points, and of each load those that no other beats in both."""

    def words(row: Row) -> str:
        return x.show(row.x) + ("" if y is None or row.y is None else f", {y.show(row.y)}")

    drawn = figure(400, margin_t=ROOM_FOR_LINES)
    groups = competing(rows, x, y)
    for turn, (load, group) in enumerate(groups.items()):
        colour = SEVERAL[turn % len(SEVERAL)] if load else VERMILLION
        name = load or "Pareto front"
        for part, mode, fill in ((group, "markers", GREY), (pareto(group), "lines+markers", colour)):
            drawn.add_scatter(
                x=[row.weights_gb for row in part], y=[row.us_per_token for row in part], name=name, mode=mode,
                text=[words(row) for row in part], marker={"size": 9, "color": fill}, showlegend=mode != "markers",
                line={"color": colour, "dash": LINES[turn % len(LINES)], "shape": "hv", "width": 2},
                hovertemplate=f"%{{text}}<br>%{{x:,.2f}} GB, %{{y:,.3f}} us per token ({origin})<extra></extra>",
            )  # fmt: skip
    drawn.update_layout(showlegend=True)
    drawn.update_xaxes(title="expert weights per rank, GB (exact)")
    times_us = [row.us_per_token for row in planned(rows)]
    scale = log_axis(min(times_us), max(times_us)) if len(groups) > 1 else {}
    drawn.update_yaxes(title=f"us per token, all MoE layers ({origin})", **scale)
    return drawn
