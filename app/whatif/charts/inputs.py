"""What routing statistics look like."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from app.whatif.charts.look import BAND, BLUE, VERMILLION, figure
from planner import Routing


def load_curve(routing: Routing) -> go.Figure:
    """Draw the experts' loads over their mean, busiest first: the mean over layers, and the most skewed layer."""
    load_LE = -np.sort(-routing.expert_counts, axis=1)
    load_LE = load_LE / np.maximum(load_LE.mean(axis=1, keepdims=True), 1e-12)
    worst = int(load_LE[:, 0].argmax())
    drawn = figure(230)
    for name, load_E, colour, dash in (
        ("mean of layers", load_LE.mean(axis=0), BLUE, "solid"),
        (f"layer {routing.layers[worst]}, the most skewed", load_LE[worst], VERMILLION, "dash"),
    ):
        drawn.add_scatter(
            x=np.arange(1, len(load_E) + 1), y=load_E, name=name, mode="lines",
            line={"color": colour, "dash": dash, "width": 2.5},
            hovertemplate=f"{name}: expert of rank %{{x}} gets %{{y:.2f}} of the mean load (counted)<extra></extra>",
        )  # fmt: skip
    drawn.add_hline(y=1, line={"color": BAND, "width": 1})
    drawn.update_xaxes(title="experts, busiest first")
    drawn.update_yaxes(title="load / mean (counted)", rangemode="tozero")
    return drawn
