"""The knobs of the page What if: each moves one field of B's settings."""

from __future__ import annotations

import streamlit as st

from app.whatif.bound import bound
from app.whatif.state import Session
from app.whatif.work import Planned

NIC_GBIT = (100, 200, 400, 800, 1600)
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
OVER = (1.0, 2.0, 4.0, 8.0)
AS_IT_IS = "as it is"


def knobs(mine: Session, a: Planned) -> None:
    """Show all knobs, and a button that sets B back to A."""
    if mine.other is None:
        mine.other = mine.settings
    _network(mine)
    _size(mine, a)
    _faults(mine, a)
    st.button("Set B back to A", on_click=_back, args=(mine,), key="reset B", icon=":material/undo:", width="stretch")


def _back(mine: Session) -> None:
    mine.other = mine.settings


def _network(mine: Session) -> None:
    chosen = mine.other or mine.settings
    speeds = sorted({*NIC_GBIT, *([] if chosen.nic_gbps is None else [round(8 * chosen.nic_gbps, 6)])})
    st.select_slider(
        "NIC speed, Gb/s per direction", [AS_IT_IS, *speeds],
        **bound(
            "nic_gbps", lambda value: AS_IT_IS if value is None else round(8 * value, 6),
            lambda value: None if value == AS_IT_IS else value / 8, other=True,
        ),
        help="PCIe links that would be slower than the NIC are raised to its speed.",
    )  # fmt: skip
    st.select_slider(
        "NVLink / xGMI speed, factor", sorted({*FACTORS, chosen.scale_up}), **bound("scale_up", other=True)
    )
    over = sorted({*OVER, *([] if chosen.oversubscription is None else [chosen.oversubscription])})
    st.select_slider(
        "Oversubscription of the fabric, to 1", [AS_IT_IS, *over],
        **bound("oversubscription", lambda value: AS_IT_IS if value is None else value,
                lambda value: None if value == AS_IT_IS else value, other=True),
    )  # fmt: skip


def _size(mine: Session, a: Planned) -> None:
    chosen = mine.other or mine.settings
    hosts = a.case.whole.num_hosts
    now = chosen.hosts or hosts
    per_host = sum(len(paths.gpus) for paths in a.case.cluster.wiring.paths) / len(a.case.cluster.wiring.paths)
    st.number_input(
        f"Hosts (EP size {now * per_host:,.0f} before losses)", 1, 288,
        **bound("hosts", lambda value: value or hosts, lambda value: None if value == hosts else value, other=True,
                also={"lost": ()}),
    )  # fmt: skip
    tokens = a.workload.tokens_per_rank
    st.number_input(
        "Tokens per rank in a step", 1.0, 1e7, step=128.0, format="%g",
        **bound("tokens", lambda value: value or tokens,
                lambda value: mine.settings.tokens if value == tokens else value, other=True),
    )  # fmt: skip
    slots = a.case.slots_per_rank
    st.number_input(
        "Expert slots per rank", 1, 4096,
        **bound("slots", lambda value: value or slots,
                lambda value: mine.settings.slots if value == slots else value, other=True, also={"weights_gb": None}),
    )  # fmt: skip
    st.select_slider(
        "Skew: loads to the power", sorted({*POWERS, chosen.power}), **bound("power", other=True),
        help="0: even loads; 1: as they are; above: more skewed. Tokens of a trace cannot follow: loads alone count.",
    )  # fmt: skip


def _faults(mine: Session, a: Planned) -> None:
    chosen = mine.other or mine.settings
    hosts = chosen.hosts or a.case.whole.num_hosts
    options = dict.fromkeys([*(f"host{host}" for host in range(hosts)), *chosen.lost])
    st.multiselect(
        "Lost parts", list(options), **bound("lost", list, tuple, other=True), accept_new_options=True,
        placeholder="none", help="Hosts, or type a GPU or a NIC: host1/gpu2, host0/nic4.",
    )  # fmt: skip
    st.toggle(
        "Survive the loss of a host", **bound("survive", other=True),
        help="As many experts as the slots allow get copies on two hosts; the difference to A is what that costs.",
    )  # fmt: skip
    slow = st.toggle(
        "A slow GPU", **bound("slow_rank", lambda value: value is not None, lambda on: 0 if on else None, other=True)
    )
    if slow:
        left, right = st.columns(2)
        left.number_input(
            "Rank", 0, 100_000,
            **bound("slow_rank", lambda value: value or 0, other=True, name="number of the slow rank"),
        )  # fmt: skip
        right.select_slider(
            "Speed", sorted({0.25, 0.5, 0.75, 0.9, chosen.slow_speed}), **bound("slow_speed", other=True),
            format_func=lambda part: f"{part:.0%}",
        )  # fmt: skip
