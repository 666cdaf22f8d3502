"""How all charts look: colours that the colour-blind can tell apart, on light paper and on dark.

Hues are those of Okabe and Ito (jfly.uni-koeln.de/color), whose lightness differs too; scales run from pale to strong
in one direction, or from blue over pale to vermillion where they have a middle. Paper is left to the theme of the page;
`in_ink` makes text dark on light paper and light on dark.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, GREY = "#56B4E9", "#CC79A7", "#8A939C"

PHASES = {"dispatch": BLUE, "compute": ORANGE, "combine": GREEN}
PLANS = {"linear": GREY, "round-robin": SKY, "eplb": PURPLE, "eplb-global": ORANGE, "this plan": VERMILLION}
SEVERAL = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY)
LINES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid")

AMOUNT = "Cividis"
"""Scale of amounts in heatmaps."""
BETTER_WORSE = ((0.0, BLUE), (0.5, "#E8E8E8"), (1.0, VERMILLION))
"""Scale of differences, with zero in its middle."""
USE = ((0.0, "#9DB2C4"), (0.3, "#3D8FDB"), (0.65, "#A95CC4"), (1.0, "#E4480C"))
"""Scale of a link's use, visible as a thin line on white and on black."""
BAND = "rgba(128,128,128,0.35)"
"""Guide lines."""
INK_ON_LIGHT, INK_ON_DARK = "#31333F", "#E8E8E8"


def figure(height: int, **layout: Any) -> go.Figure:
    """Return an empty figure with the margins, fonts and legend that all charts share."""
    drawn = go.Figure()
    drawn.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 40, "b": 8},
        font={"size": 13},
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1.0,
            "yanchor": "bottom",
            "xanchor": "left",
            "title": None,
            "traceorder": "normal",
        },
        hoverlabel={"namelength": -1},
        bargap=0.25,
    )
    drawn.update_xaxes(automargin=True)
    drawn.update_yaxes(automargin=True)
    drawn.update_layout(**layout)
    return drawn


def log_axis(low: float, high: float) -> dict[str, Any]:
    """Return a logarithmic axis from `low` to `high` with whole numbers for ticks: Plotly's own show bare digits."""
    below, above = low / 1.1, high * 1.1
    steps = (1, 2, 5) if above / below < 200 else (1,)
    powers = range(math.floor(math.log10(below)), math.ceil(math.log10(above)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps if below <= step * 10.0**power <= above]
    if len(ticks) < 2:
        ticks = [low, high]
    words = [f"{tick:,.0f}" if tick >= 10 else f"{tick:.3g}" for tick in ticks]
    return {"type": "log", "tickvals": ticks, "ticktext": words, "range": [math.log10(below), math.log10(above)]}


def in_ink(drawn: go.Figure, *, dark: bool) -> None:
    """Give all text outside of marks the colour that is read best on the paper, also from the back of a room."""
    ink = INK_ON_DARK if dark else INK_ON_LIGHT
    drawn.update_layout(font_color=ink, legend_font_color=ink)
    drawn.update_annotations(font_color=ink)
    for update in (drawn.update_xaxes, drawn.update_yaxes):
        update(tickfont_color=ink, title_font_color=ink)
    drawn.update_traces(textfont_color=ink, selector={"mode": "text"})
    bar = {"tickfont": {"color": ink}, "title": {"font": {"color": ink}}}
    drawn.update_traces(colorbar=bar, selector={"type": "heatmap"})
    drawn.update_traces(marker={"colorbar": bar}, selector={"mode": "markers", "marker.showscale": True})


def scale_bar(title: str) -> dict[str, Any]:
    """Return the legend of a colour scale."""
    return {"title": {"text": title, "side": "right"}, "thickness": 12, "outlinewidth": 0, "len": 1.0}


def use_colour(part: float) -> str:
    """Return the colour of a part between 0 and 1 on the scale of use."""
    part = min(max(part, 0.0), 1.0)
    for (low, a), (high, b) in pairwise(USE):
        if part <= high:
            weight = (part - low) / (high - low)
            mixed = (round((1 - weight) * int(a[i : i + 2], 16) + weight * int(b[i : i + 2], 16)) for i in (1, 3, 5))
            return "#" + "".join(f"{value:02x}" for value in mixed)
    return USE[-1][1]
