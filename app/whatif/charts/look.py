"""How all charts look: colours that the colour-blind can tell apart, on light paper and on dark.

Hues are those of Okabe and Ito (jfly.uni-koeln.de/color), whose lightness differs too; scales run from pale to strong
in one direction. Text and paper are left to the theme of the page.
"""

from __future__ import annotations

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
USE = ((0.0, "#9DB2C4"), (0.3, "#3D8FDB"), (0.65, "#A95CC4"), (1.0, "#E4480C"))
"""Scale of a link's use, visible as a thin line on white and on black."""
BAND = "rgba(128,128,128,0.35)"
"""Guide lines."""


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
