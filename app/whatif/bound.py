"""Widgets tied to fields of the settings: the settings are the truth, a widget shows them and changes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from app.whatif.settings import Settings
from app.whatif.state import session
from topologies.errors import EpplanError


def bound(
    field: str,
    show: Callable[[Any], Any] = lambda value: value,
    take: Callable[[Any], Any] = lambda value: value,
    *,
    other: bool = False,
    also: dict[str, Any] | None = None,
    name: str = "",
) -> dict[str, Any]:
    """Return `key` and `on_change` for a widget of one field of A's settings, or of B's with `other`.

    `show` and `take` translate between the field and the widget; `also` are fields that change with it, and
    `name` tells a second widget of the same field from the first.
    """
    key = f"{'B' if other else 'A'} {name or field}"
    st.session_state[key] = show(getattr(_current(other), field))

    def taken() -> None:
        put({field: take(st.session_state[key]), **(also or {})}, other=other)

    return {"key": key, "on_change": taken}


def put(changes: Mapping[str, Any], *, other: bool = False) -> None:
    """Change A's settings, or B's; what is refused is said on the page."""
    mine = session()
    try:
        changed = _current(other).but(**changes)
    except EpplanError as error:
        mine.complaint = str(error)
        return
    if other:
        mine.other = changed
    else:
        mine.settings = changed


def _current(other: bool) -> Settings:
    mine = session()
    return (mine.other or mine.settings) if other else mine.settings
