"""Cluster: the graph, how busy a layer keeps its links, and what the linter finds."""

from __future__ import annotations

import numpy as np
import streamlit as st

from app.whatif import work
from app.whatif.charts.cluster_map import cluster_map, hosts_shown
from app.whatif.frame import current, footnote, origin_of, show
from app.whatif.parts import chart, figures, layer_choice, plan_choice, table
from app.whatif.state import Session
from app.whatif.words import plain
from app.whatif.work import Planned
from topologies.graph import KIND_NAMES

BUSIEST = 15


def page(mine: Session) -> None:
    """Draw the cluster with one layer of one plan on it."""
    plan = current(mine)
    cluster = plan.case.cluster
    columns = st.columns([2, 2, 2], vertical_alignment="bottom")
    with columns[0]:
        name = plan_choice(plan, "cluster")
    with columns[1]:
        row = layer_choice(plan, "cluster")
    with st.spinner("Simulating ..."):
        done, use = work.simulation(plan, name, row), work.links(plan, name, row)
    hosts, first = hosts_shown(cluster), 0
    if len(hosts) < cluster.spec.num_hosts:
        last = cluster.spec.num_hosts - len(hosts)
        first = columns[2].number_input("First host shown", 0, last, 0, key="first host")
        hosts = hosts_shown(cluster, int(first))
    busiest = int(use.busy_us_N.argmax()) if use.busy_us_N.any() else None
    origin = origin_of(plan)
    figures(
        ("layer", f"{done.layer_us:,.1f} us", f"{origin}, simulated", "Messages share links fairly; see Timeline."),
        (
            "busiest link at work", "-" if busiest is None else f"{use.busy_us_N[busiest] / done.layer_us:.0%}",
            f"{origin}, of the layer's time", "" if busiest is None else _link(plan, busiest),
        ),
        ("bytes on all links", f"{(use.dispatch_bytes_N + use.combine_bytes_N).sum() / 1e9:,.3g} GB", origin,
         "Dispatch and combine; a byte counts on every link that it crosses."),
    )  # fmt: skip
    words = "Hosts, switches and cables; colour and width: part of the layer's time that a link is at work"
    chart(cluster_map(cluster, use, done.layer_us, hosts), "cluster", words)
    st.caption(words + f" ({origin}). Hover over a cable for its bytes and microseconds.")
    left, right = st.columns([5, 2], gap="medium")
    with left:
        st.subheader("Busiest links", anchor=False)
        _busiest(plan, name, row)
    with right:
        st.subheader("What the linter says", anchor=False)
        _findings(plan)
    footnote(plan)


def _link(plan: Planned, index: int) -> str:
    link = plan.case.cluster.links[index]
    return f"{KIND_NAMES[link.kind]}: {link.source} to {link.target}"


def _busiest(plan: Planned, name: str, row: int) -> None:
    use, layer_us = work.links(plan, name, row), work.simulation(plan, name, row).layer_us
    order = [int(i) for i in np.argsort(-use.busy_us_N, kind="stable")[:BUSIEST] if use.busy_us_N[i] > 0]
    if not order:
        st.info("No bytes cross a link in this layer.", icon=":material/info:")
        return
    table(
        [
            {
                "link": _link(plan, index),
                "GB/s, vendor": float(plan.case.cluster.link_gbps[index]),
                "dispatch MB, predicted": round(float(use.dispatch_bytes_N[index]) / 1e6, 3),
                "combine MB, predicted": round(float(use.combine_bytes_N[index]) / 1e6, 3),
                "at work us, predicted": round(float(use.busy_us_N[index]), 1),
                "% of layer": round(100 * float(use.busy_us_N[index]) / layer_us, 1),
            }
            for index in order
        ],
        "busiest-links",
    )


def _findings(plan: Planned) -> None:
    found = work.linted(plan.case.whole, plan.case.settings.system)
    if not found:
        st.success("Nothing to find fault with: hosts are even, every GPU has its NIC.", icon=":material/check_circle:")
    if lost := plan.case.settings.lost:
        st.info(f"That is of the whole cluster; lost are {plain(', '.join(lost))}.", icon=":material/link_off:")
    for finding in found:
        cost = "" if finding.cost_gbps is None else f" Costs {finding.cost_gbps:.3g} GB/s per GPU (computed)."
        st.warning(
            f"**{plain(finding.check)}** on {plain(finding.where)}: {plain(finding.message)}.{cost}\n\n"
            f"Fix: {plain(finding.fix)}",
            icon=":material/build:",
        )
    for note in (*plan.case.notes, *plan.case.cluster.spec.provenance):
        st.caption(plain(note))


show(page)
