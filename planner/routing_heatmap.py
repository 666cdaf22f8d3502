"""Routing statistics as a picture: layers down, experts across, dark where tokens go; beside it the imbalance of ranks.

Shapes: L layers, E experts.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from planner.placement import FloatArray
from planner.routing import Routing
from planner.routing_report import RoutingReport
from topologies.svg import FAINT, Canvas

WIDTH, LEFT, TOP = 1240.0, 64.0, 96.0
RIGHT_BAR, GAP = 150.0, 34.0
# load over the mean up to which a colour holds: below the mean pale, above it from yellow to purple
STEPS = (
    (0.0, "#ffffff"), (0.25, "#eef2f7"), (0.5, "#dbe5f0"), (0.8, "#c3d5e8"), (1.25, "#a9c6de"), (2.0, "#fde68a"),
    (3.0, "#fbbf24"), (5.0, "#f97316"), (8.0, "#dc2626"), (math.inf, "#701a75"),
)  # fmt: skip
TITLED = 2.0  # loads from which a cell tells its number when the mouse rests on it
NAMES = ("0", "< 1/4", "< 1/2", "< 0.8", "< 1.25", "< 2", "< 3", "< 5", "< 8", "more")


def heatmap(routing: Routing, report: RoutingReport) -> str:
    """Return an SVG document of the load of every expert over the mean of its layer."""
    load_LE = routing.expert_counts / routing.expert_counts.mean(axis=1, keepdims=True)
    rows, experts = load_LE.shape
    cell_w = (WIDTH - LEFT - RIGHT_BAR - GAP) / experts
    cell_h = min(22.0, max(6.0, 620.0 / rows))
    canvas = Canvas()
    _title(canvas, report)
    _cells(canvas, routing, load_LE, cell_w, cell_h)
    _bars(canvas, report, LEFT + experts * cell_w + GAP, cell_h)
    bottom = TOP + rows * cell_h
    step = next(size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if experts / size <= 16)
    for expert in range(0, experts, step):
        canvas.text(LEFT + (expert + 0.5) * cell_w, bottom + 15, str(expert), size=10, fill=FAINT)
    canvas.text(LEFT + experts * cell_w / 2, bottom + 32, "expert", size=11, fill=FAINT)
    _legend(canvas, bottom + 52)
    return canvas.render(WIDTH, bottom + 92, f"Expert load of {report.name}")


def _title(canvas: Canvas, report: RoutingReport) -> None:
    words = f"{report.name}: load of each expert over its layer's mean"
    canvas.text(LEFT, 30, words, size=16, anchor="start", bold=True)
    skew, drift, pairs = (report.mean(field) for field in ("skew", "drift", "co_activation"))
    facts = [f"{len(report.layers)} layers x {report.experts} experts", f"busiest expert {skew:.1f}x the mean"]
    facts += [] if drift is None else [f"drift {drift:.1%} between {report.windows} windows"]
    facts += [] if pairs is None else [f"co-activation {pairs:.1%}"]
    canvas.text(LEFT, 52, "; ".join(facts) + " (means over layers)", size=12, anchor="start", fill=FAINT)


def _cells(canvas: Canvas, routing: Routing, load_LE: FloatArray, cell_w: float, cell_h: float) -> None:
    """Draw runs of equal colour as one box each: 60 x 256 cells would be a picture of megabytes."""
    every = max(1, math.ceil(11 / cell_h))
    for row, layer in enumerate(routing.layers):
        y = TOP + row * cell_h
        if row % every == 0:
            canvas.text(LEFT - 8, y + cell_h / 2 + 3.5, str(layer), size=10, anchor="end", fill=FAINT)
        shade_E = np.searchsorted([limit for limit, _ in STEPS], load_LE[row])
        edges = [0, *(np.flatnonzero(np.diff(shade_E)) + 1).tolist(), len(shade_E)]
        for first, end in itertools.pairwise(edges):
            fill = STEPS[int(shade_E[first])][1]
            what = f"layer {layer}, expert {first}" + ("" if end == first + 1 else f" to {end - 1}")
            load = load_LE[row, first:end].mean()
            title = f"{what}: {load:.2f}x the mean" if load >= TITLED else ""
            canvas.box(
                LEFT + first * cell_w, y, (end - first) * cell_w, cell_h, fill=fill, edge=fill, title=title, radius=0
            )
    canvas.text(LEFT - 8, TOP - 10, "layer", size=11, anchor="end", fill=FAINT)


def _bars(canvas: Canvas, report: RoutingReport, x: float, cell_h: float) -> None:
    """Draw the imbalance of the busiest of R ranks beside each layer: in blocks, packed, replicated."""
    longest = max(layer.linear for layer in report.layers)
    scale = (RIGHT_BAR - 24) / max(longest - 1, 1e-9)
    canvas.text(x, TOP - 24, f"imbalance on {report.ranks} ranks", size=11, anchor="start", fill=FAINT)
    canvas.text(x, TOP - 10, "blocks", size=10, anchor="start", fill="#f97316")
    canvas.text(x + 44, TOP - 10, "packed", size=10, anchor="start", fill="#2563eb")
    canvas.text(x + 90, TOP - 10, f"max {longest:.2f}", size=10, anchor="start", fill=FAINT)
    for row, layer in enumerate(report.layers):
        y, height = TOP + row * cell_h, max(cell_h - 2, 2.0)
        title = (
            f"layer {layer.layer}: imbalance {layer.linear:.3f} in blocks, {layer.packed:.3f} packed, "
            f"{layer.replicated:.3f} with a spare slot a rank"
        )
        for value, fill in ((layer.linear, "#fdba74"), (layer.packed, "#2563eb")):
            canvas.box(x, y + 1, max((value - 1) * scale, 1.0), height, fill=fill, edge=fill, title=title, radius=0)


def _legend(canvas: Canvas, y: float) -> None:
    canvas.text(LEFT, y + 12, "x mean", size=11, anchor="start", fill=FAINT)
    for place, ((_, fill), name) in enumerate(zip(STEPS, NAMES, strict=True)):
        x = LEFT + 60 + place * 86
        canvas.box(x, y, 22, 14, fill=fill, edge="#9ca3af", radius=2)
        canvas.text(x + 28, y + 11.5, name, size=10, anchor="start", fill=FAINT)
