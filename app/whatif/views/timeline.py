"""Timeline: one layer simulated message by message, per rank and per link."""

from __future__ import annotations

import json

import numpy as np
import streamlit as st

from app.whatif import work
from app.whatif.charts.timeline import BINS, MAX_LINKS, link_heat, rank_bars
from app.whatif.frame import current, footnote, origin_of, show
from app.whatif.parts import chart, figures, layer_choice, plan_choice, table
from app.whatif.state import Session
from app.whatif.work import Planned
from planner.link_use import use_over_time
from planner.simulate import Simulation
from planner.trace import busiest_link, chrome_trace


def page(mine: Session) -> None:
    """Show one layer of one plan over time."""
    plan = current(mine)
    columns = st.columns([2, 2, 1.4], vertical_alignment="bottom")
    with columns[0]:
        name = plan_choice(plan, "timeline")
    with columns[1]:
        row = layer_choice(plan, "timeline")
    barriers = columns[2].toggle("Phases wait for each other", key="barriers", help="As the closed form assumes.")
    with st.spinner("Simulating ..."):
        done = work.simulation(plan, name, row, barriers=barriers)
    origin = f"{origin_of(plan)}, simulated"
    closed, (link, part) = done.closed_form, busiest_link(done)
    figures(
        ("layer", f"{done.layer_us:,.1f} us", origin, "Until the last result is back."),
        ("layer by the closed form", f"{closed.layer_us:,.1f} us", origin_of(plan), "Busiest link of each phase."),
        ("messages", f"{len(done.timeline.finish_F):,}", origin, "Flows that share links fairly."),
        ("busiest link at work", f"{part:.0%}", origin, link or "No bytes cross a link."),
    )
    if plan.solution.exchange == "two-level":
        st.caption(
            "Here messages are forwarded whole, one tier after the other; the closed form lets both tiers overlap. "
            "`epplan simulate --pieces 8` shows what lies between."
        )
    st.subheader("Ranks", anchor=False)
    chart(rank_bars(done, origin), "ranks", "What every rank does over the time of the layer")
    st.subheader("Links", anchor=False)
    _links(done, origin)
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    with left:
        st.subheader("Moments", anchor=False)
    right.download_button(
        "trace.json for Perfetto", json.dumps(chrome_trace(done), separators=(",", ":")), "trace.json",
        "application/json", icon=":material/download:", key="trace", on_click="ignore", width="stretch",
    )  # fmt: skip
    _moments(done, plan)
    footnote(plan)


def _links(done: Simulation, origin: str) -> None:
    use_NB, edges_us = use_over_time(done, BINS)
    order = [int(i) for i in np.argsort(-use_NB.sum(axis=1), kind="stable")[:MAX_LINKS] if use_NB[i].any()]
    if not order:
        st.info("No bytes cross a link in this layer.", icon=":material/info:")
        return
    chart(link_heat(use_NB[order], edges_us, [done.link_names[i] for i in order], origin), "links",
          "Use of the busiest links over time")  # fmt: skip
    st.caption(f"The {len(order)} busiest of {len(done.link_names)} links; all of them are in trace.json.")


def _moments(done: Simulation, plan: Planned) -> None:
    table(
        [
            {
                "rank": rank,
                "host": int(plan.case.cluster.host_of_rank[rank]),
                "tokens in us, predicted": round(float(done.tokens_in_R[rank]), 1),
                "experts done us, predicted": round(float(done.experts_done_R[rank]), 1),
                "results back us, predicted": round(float(done.back_R[rank]), 1),
                "token-expert pairs, predicted": round(float(done.closed_form.load_R[rank]), 1),
            }
            for rank in range(len(done.back_R))
        ],
        "moments",
    )


show(page)
