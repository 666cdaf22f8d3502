"""What a page shows in place of results that its settings cannot have: why, in one line, and the ways out."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app.whatif.bound import put
from app.whatif.settings import Settings
from app.whatif.state import Session
from app.whatif.words import in_the_app, plain
from topologies.errors import EpplanError, Infeasible


def show_refusal(mine: Session, error: EpplanError, *, on_inputs: bool) -> None:
    """Say why there is nothing to show, and offer to change what is in the way."""
    title = "This cannot be met" if isinstance(error, Infeasible) else "This does not fit together"
    st.error(f"**{title}.** {plain(in_the_app(str(error)))}", icon=":material/error:")
    with st.container(horizontal=True, vertical_alignment="center"):
        if not on_inputs:
            st.page_link("views/inputs.py", label="Change the inputs", icon=":material/tune:", width="content")
        for name, changes in ways_out(mine.settings).items():
            st.button(name, key=f"way out {name}", on_click=put, args=(changes,), icon=":material/build:")
        st.button("Back to the defaults", key="defaults", on_click=_reset, args=(mine,), icon=":material/restart_alt:")
    st.caption("Uploads are kept whatever is changed.")


def ways_out(chosen: Settings) -> dict[str, dict[str, Any]]:
    """Return what takes back the settings that often make a case impossible."""
    found = dict[str, dict[str, Any]]()
    if chosen.slots is not None or chosen.weights_gb is not None:
        found["As many slots as experts need, and one spare"] = {"slots": None, "weights_gb": None}
    if chosen.lost:
        found["With the lost parts back"] = {"lost": ()}
    if chosen.slow_rank is not None:
        found["Without the slow GPU"] = {"slow_rank": None}
    return found


def _reset(mine: Session) -> None:
    mine.settings, mine.other = Settings(), None
