"""What surrounds every page: the line that says what it is about, and what is shown when something is wrong."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

import streamlit as st

from app.whatif.janitor import watch_over
from app.whatif.refused import show_refusal
from app.whatif.settings import UPLOAD
from app.whatif.state import Session, session, show_link
from app.whatif.words import plain
from app.whatif.work import Planned, case_of, planned
from planner import MoEModel, Routing
from topologies.errors import EpplanError

log = logging.getLogger("epplan.app")

STYLE = """<style>
[data-testid="stMainBlockContainer"] {padding: 4.2rem 2rem 1.5rem 2rem}
[data-testid="stMainBlockContainer"] h1 {font-size: 1.7rem; padding: 0.3rem 0}
[data-testid="stMainBlockContainer"] h3 {font-size: 1.2rem; padding: 0.2rem 0}
[data-testid="stMetricValue"] {font-size: 1.7rem}
[data-testid="stCaptionContainer"] code {color: inherit; font-size: inherit}
</style>"""


def show(page: Callable[[Session], None], *, on_inputs: bool = False) -> None:
    """Run a page; what the user can mend is one line on it, what is our fault a reference to the server's log."""
    mine = session()
    watch_over(mine)
    mine.collect()
    show_link()
    st.html(STYLE)
    if mine.complaint:
        st.warning(mine.complaint, icon=":material/warning:")
        mine.complaint = ""
    try:
        page(mine)
    except EpplanError as error:
        show_refusal(mine, error, on_inputs=on_inputs)
    except Exception:
        reference = secrets.token_hex(4)
        log.exception("page failed, reference %s", reference)
        st.error(
            f"This page failed, which is a fault of epplan, not yours. The server's log has the details under "
            f"reference {reference}.",
            icon=":material/bug_report:",
        )


def current(mine: Session) -> Planned:
    """Return the best plan for the session's settings, with the line that says what the page is about above it."""
    with st.spinner("Planning ..."):
        plan = planned(mine, case_of(mine))
    setting_line(plan)
    return plan


def setting_line(plan: Planned) -> None:
    """Say in one line what all numbers below it are about."""
    case, workload, prediction = plan.case, plan.workload, plan.prediction
    facts = (
        f"**{plain(case.cluster.name)}**",
        f"{case.cluster.num_ranks} ranks x {case.slots_per_rank} slots",
        f"**{plain(case.model.name)}**, {workload.num_layers} layers x {case.model.experts} experts, "
        f"top-{case.model.top_k}",
        plain(shown_routing(case.routing)),
        f"{workload.tokens_per_rank:,.4g} tokens per rank" if workload.tokens_per_rank < 1e4
        else f"{workload.tokens_per_rank:,.0f} tokens per rank",
        f"exchange {prediction.exchange}",
        f"profile {plain(case.profile.name)}",
    )  # fmt: skip
    origin = {"vendor": "orange", "fitted": "green", "extrapolated": "red"}[prediction.provenance]
    st.markdown(" · ".join(facts) + f" :{origin}-badge[times: predicted, {prediction.provenance}]")


def shown_routing(routing: Routing) -> str:
    """Return the name of statistics."""
    return routing.name or "statistics"


def origin_of(plan: Planned) -> str:
    """Return the label of every predicted number: where it comes from."""
    return f"predicted, {plan.prediction.provenance}"


def footnote(plan: Planned) -> None:
    """Say what the label on the times means."""
    words = {
        "vendor": plan.case.profile.note,
        "fitted": f"models fitted to measurements (profile {plan.case.profile.name}), asked within their range",
        "extrapolated": "fitted models asked beyond what was measured: " + "; ".join(plan.prediction.reasons),
    }
    st.caption(f"Times are predicted: {plain(words[plan.prediction.provenance])}")


def is_upload(reference: str) -> bool:
    """Return whether a field of the settings names an uploaded file."""
    return reference.startswith(UPLOAD)


def shown_model(model: MoEModel) -> str:
    """Return a model in one line."""
    return f"{model.name}: {len(model.moe_layers)} MoE layers, {model.experts} experts, top-{model.top_k}"
