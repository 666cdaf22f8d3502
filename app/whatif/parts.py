"""Pieces that pages are made of: figures with their unit and origin, charts and tables that can be downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app.whatif.charts.look import in_ink
from app.whatif.state import session
from app.whatif.work import Planned


def figures(*entries: tuple[str, str, str, str]) -> None:
    """Show a row of figures: (what, value with its unit, where it comes from, help)."""
    for column, (label, value, origin, words) in zip(st.columns(len(entries)), entries, strict=True):
        column.metric(label, value, origin, delta_color="off", delta_arrow="off", help=words or None, border=True)


def chart(drawn: go.Figure, name: str, words: str) -> None:
    """Show a chart; its menu downloads it in the format that the session chose. `words` describe it to a reader."""
    config = {
        "displaylogo": False,
        "displayModeBar": True,
        "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
        "toImageButtonOptions": {"format": session().image, "filename": f"epplan-{name}", "scale": 2},
    }
    in_ink(drawn, dark=st.context.theme.type == "dark")
    st.plotly_chart(drawn, key=f"chart {name}", config=config, alt=words)


def table(rows: Sequence[dict[str, Any]], name: str, said: str = "") -> None:
    """Show a table, and a button that downloads it as CSV.

    `said` is what the page says above the table of all columns that end in it: on the page, not in the CSV, they go
    without, so that a wide table fits.
    """
    frame = pd.DataFrame(rows)
    numbers = set(frame.select_dtypes("number"))
    shown = {}
    for column in frame:
        label = str(column).removesuffix(f", {said}")
        number = st.column_config.NumberColumn(label, format="localized")
        shown[str(column)] = number if column in numbers else st.column_config.Column(label)
    st.dataframe(frame, hide_index=True, key=f"table {name}", column_config=shown)
    st.download_button(
        "CSV",
        frame.to_csv(index=False),
        f"epplan-{name}.csv",
        "text/csv",
        icon=":material/download:",
        key=f"csv {name}",
        type="tertiary",
        on_click="ignore",
    )


def image_choice() -> None:
    """Let the user choose the format in which charts are downloaded."""
    mine = session()
    chosen = st.segmented_control(
        "Charts download as", ["svg", "png"], default=mine.image, key="image", help="The camera above each chart."
    )
    mine.image = "png" if chosen == "png" else "svg"


def plan_choice(plan: Planned, page: str) -> str:
    """Let the user choose the plan or a baseline."""
    names = plan.names[::-1]
    return st.selectbox("Plan shown", names, key=f"shown {page}")


def layer_choice(plan: Planned, page: str) -> int:
    """Let the user choose a layer, at first the slowest; return its row."""
    layers = [layer.layer for layer in plan.prediction.layers]
    slowest = max(plan.prediction.layers, key=lambda layer: layer.layer_us).layer
    if len(layers) == 1:
        return 0
    key = f"layer {page}"
    if st.session_state.get(key) not in layers:
        st.session_state[key] = slowest
    return layers.index(st.select_slider(f"Layer of the model (slowest: {slowest})", layers, key=key))
