"""Sweeps: lines and heatmaps over knobs, and memory against time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go

from app.whatif.charts.look import AMOUNT, GREY, LINES, SEVERAL, VERMILLION, figure
from app.whatif.sweeps import Knob, Row, against_first, pareto, planned

AGAINST = "against"
METRICS = {
    "layer_us": ("time per layer, us", ",.1f"),
    "us_per_token": ("time of all MoE layers per token of a rank, us", ",.3f"),
    AGAINST: ("time per token against the first line, %", "+.2f"),
    "imbalance": ("imbalance, max / mean over ranks", ".3f"),
    "weights_gb": ("expert weights per rank, GB", ",.2f"),
}


def lines(rows: Sequence[Row], x: Knob, y: Knob | None, metric: str, origin: str) -> go.Figure:
    """Draw a metric over the first knob, a line for every value of the second."""
    title, digits = METRICS[metric]
    value_of = _reader(rows, metric)
    drawn = figure(400)
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
    title, digits = METRICS[metric]
    value_of = _reader(rows, metric)
    xs, ys = sorted({row.x for row in rows}), sorted({row.y for row in rows if row.y is not None})
    z = np.full((len(ys), len(xs)), np.nan)
    for row in planned(rows):
        if row.y is not None:
            z[ys.index(row.y), xs.index(row.x)] = value_of(row)
    drawn = figure(150 + 46 * len(ys))
    drawn.add_heatmap(
        z=z, x=[x.show(value) for value in xs], y=[y.show(value) for value in ys], colorscale=AMOUNT, xgap=2, ygap=2,
        texttemplate=f"%{{z:{digits}}}", hoverongaps=False, showscale=False,
        hovertemplate=f"%{{x}}, %{{y}}: %{{z:{digits}}} ({origin})<extra></extra>",
    )  # fmt: skip
    drawn.update_xaxes(type="category", title=f"{title} ({origin})", side="bottom")
    drawn.update_yaxes(type="category")
    return drawn


def _reader(rows: Sequence[Row], metric: str) -> Callable[[Row], float]:
    """Return what reads a metric from a row."""
    if metric == AGAINST:
        found = against_first(rows)
        return lambda row: found.get((row.x, row.y), math.nan)
    return lambda row: float(getattr(row, metric))


def front(rows: Sequence[Row], x: Knob, y: Knob | None, origin: str) -> go.Figure:
    """Draw memory against time per token: all points, and those that no other beats in both."""

    def words(row: Row) -> str:
        return x.show(row.x) + ("" if y is None or row.y is None else f", {y.show(row.y)}")

    drawn = figure(400)
    best, everything = pareto(rows), planned(rows)
    for name, group, mode, colour in (
        ("points", everything, "markers", GREY),
        ("Pareto front", best, "lines+markers", VERMILLION),
    ):
        drawn.add_scatter(
            x=[row.weights_gb for row in group], y=[row.us_per_token for row in group], name=name, mode=mode,
            text=[words(row) for row in group], marker={"size": 9, "color": colour},
            line={"color": colour, "shape": "hv", "width": 2},
            hovertemplate=f"%{{text}}<br>%{{x:,.2f}} GB, %{{y:,.3f}} us per token ({origin})<extra></extra>",
        )  # fmt: skip
    drawn.update_xaxes(title="expert weights per rank, GB (exact)")
    drawn.update_yaxes(title=f"us per token, all MoE layers ({origin})")
    return drawn
