"""Plans side by side: time, load of ranks, layers, traffic, and where replicas sit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from app.whatif.charts.look import AMOUNT, BAND, PHASES, PLANS, SEVERAL, figure, scale_bar
from planner import Placement, Prediction
from planner.placement import FloatArray, IntArray

MAX_REPLICATED = 40  # rows of the picture of replicas
LETTER_PX = 7  # a digit in the charts' font


def time_bars(predictions: Sequence[Prediction], origin: str, *, against_best: bool = True) -> go.Figure:
    """Stack dispatch, compute and combine of every plan, means over layers; with how many times the best's they are."""
    names = [one.name for one in predictions]
    drawn = figure(110 + 42 * len(names), barmode="stack")
    for phase, colour in PHASES.items():
        times = [one.mean(f"{phase}_us") for one in predictions]
        drawn.add_bar(
            y=names, x=times, name=phase, orientation="h", marker_color=colour,
            hovertemplate="%{y}: " + phase + f" %{{x:,.1f}} us ({origin})<extra></extra>",
        )  # fmt: skip
    total = [sum(one.mean(f"{phase}_us") for phase in PHASES) for one in predictions]
    best = min(one.total_us for one in predictions)
    factors = [f"  ({one.total_us / best:.2f}x)" if against_best else "" for one in predictions]
    labels = [f" {one.mean('layer_us'):,.0f} us{factor}" for one, factor in zip(predictions, factors, strict=True)]
    drawn.add_scatter(
        y=names, x=total, text=labels, mode="text", textposition="middle right", showlegend=False, hoverinfo="skip",
        cliponaxis=False,
    )  # fmt: skip
    drawn.update_yaxes(autorange="reversed")
    drawn.update_xaxes(title=f"time per layer, mean of all, us ({origin})", range=[0, max(total) * 1.02])
    drawn.update_layout(margin_r=LETTER_PX * max(map(len, labels)))  # room of the same width on every screen
    return drawn


def rank_load(load_R_of: Mapping[str, FloatArray], origin: str) -> go.Figure:
    """Draw each rank's token-expert pairs over the mean, for a few plans."""
    drawn = figure(330)
    for name, load_R in load_R_of.items():
        drawn.add_bar(
            x=np.arange(len(load_R)), y=load_R / max(load_R.mean(), 1e-12), name=name, customdata=load_R,
            marker_color=PLANS.get(name, SEVERAL[0]),
            hovertemplate=f"{name}, rank %{{x}}: %{{customdata:,.0f}} pairs, %{{y:.3f}} of the mean<extra></extra>",
        )  # fmt: skip
    drawn.add_hline(y=1, line={"color": BAND, "width": 1})
    drawn.update_xaxes(title="rank (mean of all layers)")
    drawn.update_yaxes(title=f"token-expert pairs / mean ({origin})", rangemode="tozero")
    return drawn


def layer_strip(predictions: Sequence[Prediction], origin: str) -> go.Figure:
    """Draw the time of every layer under every plan, as one strip a plan."""
    layers = [str(layer.layer) for layer in predictions[0].layers]
    drawn = figure(90 + 34 * len(predictions))
    drawn.add_heatmap(
        z=[[layer.layer_us for layer in one.layers] for one in predictions],
        x=layers,
        y=[one.name for one in predictions],
        customdata=[[(layer.bottleneck, layer.imbalance) for layer in one.layers] for one in predictions],
        colorscale=AMOUNT, xgap=1, ygap=2, colorbar=scale_bar("us"),
        hovertemplate="%{y}, layer %{x}: %{z:,.1f} us (" + origin + ")<br>imbalance %{customdata[1]:.3f}"
        "<br>held up by %{customdata[0]}<extra></extra>",
    )  # fmt: skip
    drawn.update_xaxes(title=f"layer of the model; colour: time of the layer, us ({origin})", type="category")
    drawn.update_yaxes(autorange="reversed", type="category")
    return drawn


def traffic(bytes_RR: FloatArray, host_R: IntArray, origin: str) -> go.Figure:
    """Draw the bytes from every rank to every other, with lines between hosts."""
    R = len(bytes_RR)
    drawn = figure(430)
    drawn.add_heatmap(
        z=np.where(np.eye(R, dtype=bool), np.nan, bytes_RR / 1e6),
        colorscale=AMOUNT, colorbar=scale_bar("MB"), hoverongaps=False,
        hovertemplate="rank %{y} to rank %{x}: %{z:,.3f} MB (" + origin + ")<extra></extra>",
    )  # fmt: skip
    for edge in np.flatnonzero(np.diff(host_R)) + 0.5:
        drawn.add_hline(y=edge, line={"color": BAND, "width": 1})
        drawn.add_vline(x=edge, line={"color": BAND, "width": 1})
    drawn.update_xaxes(title="to rank", constrain="domain", showgrid=False)
    drawn.update_yaxes(title="from rank", autorange="reversed", scaleanchor="x", constrain="domain", showgrid=False)
    return drawn


def replicas(placement: Placement, load_E: FloatArray, host_R: IntArray) -> go.Figure:
    """Draw which ranks hold copies of the experts with several, the busiest experts first, by the share of each."""
    several = np.flatnonzero(placement.copies_E > 1)
    shown = several[np.argsort(-load_E[several], kind="stable")][:MAX_REPLICATED]
    drawn = figure(90 + max(15 * len(shown), 320))
    row_of = {int(expert): row for row, expert in enumerate(shown)}
    share = np.full((len(shown), placement.num_ranks), np.nan)
    for expert, rank, part_D in zip(placement.expert_S, placement.rank_S, placement.share_DS.T, strict=True):
        if int(expert) in row_of:
            share[row_of[int(expert)], rank] = np.nansum([share[row_of[int(expert)], rank], part_D.mean()])
    drawn.add_heatmap(
        z=share, y=[f"expert {expert}" for expert in shown], colorscale=AMOUNT, zmin=0, zmax=1, hoverongaps=False,
        colorbar=scale_bar("share"), xgap=1, ygap=1,
        hovertemplate="%{y} on rank %{x}: serves %{z:.1%} of its tokens<extra></extra>",
    )  # fmt: skip
    for edge in np.flatnonzero(np.diff(host_R)) + 0.5:
        drawn.add_vline(x=edge, line={"color": BAND, "width": 1})
    drawn.update_xaxes(title="rank (lines between hosts)", range=[-0.5, placement.num_ranks - 0.5], showgrid=False)
    drawn.update_yaxes(autorange="reversed", type="category", showgrid=False, dtick=1, tickfont_size=11)
    return drawn
