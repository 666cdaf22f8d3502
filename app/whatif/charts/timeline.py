"""The simulated layer: what every rank does when, and how busy the links are meanwhile."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from app.whatif.charts.look import AMOUNT, PHASES, VERMILLION, figure, scale_bar
from planner.placement import FloatArray
from planner.simulate import Simulation

BINS = 160
MAX_LINKS = 24


def rank_bars(simulation: Simulation, origin: str) -> go.Figure:
    """Draw a row for every rank: waiting for its tokens, its experts, waiting for results."""
    R = len(simulation.back_R)
    ranks = np.arange(R)
    drawn = figure(int(min(120 + 17 * R, 1500)), barmode="overlay", bargap=0.3)
    spans = {
        "dispatch": ("tokens come in", np.zeros(R), simulation.tokens_in_R),
        "compute": ("experts", simulation.experts_start_R, simulation.experts_done_R),
        "combine": ("results come back", simulation.experts_done_R, simulation.back_R),
    }
    for phase, (words, start_R, end_R) in spans.items():
        drawn.add_bar(
            y=ranks, x=end_R - start_R, base=start_R, orientation="h", name=f"{phase}: {words}",
            marker_color=PHASES[phase], customdata=np.stack([start_R, end_R], axis=1),
            hovertemplate="rank %{y}, " + words + ": %{customdata[0]:,.1f} to %{customdata[1]:,.1f} us ("
            + origin + ")<extra></extra>",
        )  # fmt: skip
    closed_us = simulation.closed_form.layer_us
    for colour, dash, width in (("white", "solid", 5.0), (VERMILLION, "dash", 3.0)):  # white sets it off from the bars
        drawn.add_scatter(
            x=[closed_us, closed_us], y=[-0.6, R - 0.4], mode="lines", name=f"closed form: {closed_us:,.1f} us",
            line={"color": colour, "dash": dash, "width": width}, hoverinfo="skip", showlegend=colour == VERMILLION,
        )  # fmt: skip
    drawn.update_xaxes(title=f"us from the start of the layer ({origin})", rangemode="tozero")
    drawn.update_yaxes(title="rank", range=[R - 0.4, -0.6], dtick=1 if R <= 40 else 8)
    return drawn


def link_heat(use_NB: FloatArray, edges_us: FloatArray, names: list[str], origin: str) -> go.Figure:
    """Draw the use of the busiest links over time."""
    drawn = figure(110 + 20 * len(names))
    drawn.add_heatmap(
        z=100 * use_NB, x=edges_us, y=names, colorscale=AMOUNT, zmin=0, zmax=100, ygap=1,
        colorbar=scale_bar("% of its speed"),
        hovertemplate="%{y}<br>at %{x:,.1f} us: %{z:.0f} % (" + origin + ")<extra></extra>",
    )  # fmt: skip
    drawn.update_xaxes(title=f"us from the start of the layer ({origin})")
    drawn.update_yaxes(autorange="reversed", type="category", tickfont={"size": 11})
    return drawn
