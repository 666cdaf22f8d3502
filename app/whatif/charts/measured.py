"""Predicted beside measured: times by phase, and bytes by link."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from app.whatif.charts.look import BAND, BLUE, GREY, PHASES, SEVERAL, VERMILLION, figure, log_axis
from app.whatif.reports import PhaseRow, Report


def phase_bars(report: Report) -> go.Figure:
    """Draw the mean of every phase, predicted and measured, with the spread of the measurement."""
    phases = list(dict.fromkeys(row.phase for row in report.phases))
    groups = [[row for row in report.phases if row.phase == phase] for phase in phases]
    measured = [float(np.mean([row.measured_us for row in group])) for group in groups]
    low, high = (
        [abs(float(np.mean([getattr(row, name) - row.measured_us for row in group]))) for group in groups]
        for name in ("low_us", "high_us")
    )
    drawn = figure(380, barmode="group")
    for name, values, colour, bars in (
        ("predicted", [_mean([row.predicted_us for row in group]) for group in groups], BLUE, None),
        (
            "measured",
            measured,
            VERMILLION,
            {"type": "data", "array": high, "arrayminus": low, "color": GREY, "thickness": 2},
        ),
    ):
        drawn.add_bar(x=phases, y=values, name=name, marker_color=colour, error_y=bars,
                      hovertemplate="%{x}: %{y:,.1f} us (" + name + ")<extra></extra>")  # fmt: skip
    drawn.update_yaxes(title="mean time of a phase, us")
    return drawn


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def scatter(report: Report) -> go.Figure:
    """Draw every measured phase against its prediction, with a band of 10 %."""
    drawn = figure(380)
    rows = [row for row in report.phases if row.predicted_us and row.measured_us > 0]
    for turn, phase in enumerate(dict.fromkeys(row.phase for row in rows)):
        mine = [row for row in rows if row.phase == phase]
        drawn.add_scatter(
            x=[row.measured_us for row in mine], y=[row.predicted_us for row in mine], name=phase, mode="markers",
            marker={"size": 9, "color": PHASES.get(phase, SEVERAL[turn % len(SEVERAL)]),
                    "symbol": ("circle", "square", "diamond", "cross", "x")[turn % 5]},
            text=[_name(row) for row in mine],
            hovertemplate="%{text}<br>measured %{x:,.1f} us, predicted %{y:,.1f} us<extra></extra>",
        )  # fmt: skip
    ends = [min(row.measured_us for row in rows), max(row.measured_us for row in rows)] if rows else [1.0, 10.0]
    for factor, dash in ((1.0, "solid"), (1.1, "dot"), (0.9, "dot")):
        drawn.add_scatter(x=ends, y=[factor * end for end in ends], mode="lines", showlegend=False, hoverinfo="skip",
                          line={"color": BAND, "dash": dash})  # fmt: skip
    axis = log_axis(0.9 * ends[0], 1.1 * ends[1])
    drawn.update_xaxes(title="measured, us", **axis)
    drawn.update_yaxes(title="predicted, us (dotted: 10 % off)", **axis)
    return drawn


def _name(row: PhaseRow) -> str:
    return f"{row.plan}, {row.exchange}" + ("" if row.layer is None else f", layer {row.layer}")
