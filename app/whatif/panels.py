"""The panels of long tasks: start one, watch it, stop it, take what it found."""

from __future__ import annotations

import streamlit as st

from app.whatif.jobs import WORKERS, Job
from app.whatif.state import JobKind, session
from app.whatif.words import plain
from app.whatif.work import Planned
from app.whatif.worker import Search

EFFORTS: dict[str, float | None] = {
    "as long as it takes (reproducible)": None,
    "10 s": 10.0,
    "60 s": 60.0,
    "5 min": 300.0,
}
REFRESH_S = 0.7


def search_panel(plan: Planned, name: str = "A") -> None:
    """Offer a search for a case, or show the one under way."""
    mine = session()
    job = mine.jobs.get("search")
    if job is not None and not job.progress.over:
        watch("search")
        return
    if job is not None and job.progress.state == "failed":
        st.error(f"The search failed. {plain(job.progress.error)}", icon=":material/error:")
    if job is not None and job.progress.state == "cancelled":
        st.info("The search was stopped before it had anything to keep.", icon=":material/stop_circle:")
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    effort = left.selectbox("Search effort", list(EFFORTS), key=f"effort {name}")
    words = "Search for a better plan" if plan.found is None else "Search again"
    if right.button(words, type="primary", key=f"search {name}", width="stretch", icon=":material/search:"):
        limit = EFFORTS[effort]
        task = Search(plan.case, plan.workload, limit, WORKERS)
        mine.begin("search", Job(f"Searching a plan for {plan.case.cluster.name}", task, plan.case.key, limit))
        st.rerun()


@st.fragment(run_every=REFRESH_S)
def watch(kind: JobKind) -> None:
    """Show how far a job is, with a way to stop it; when it is over, run the page again."""
    mine = session()
    job = mine.jobs.get(kind)
    if job is None:
        return
    progress = job.progress
    if progress.over:
        st.rerun()
    words = "waiting for a free processor" if progress.state == "waiting" else f"{progress.seconds:,.0f} s"
    left, right = st.columns([4, 1], vertical_alignment="center")
    left.progress(
        min(progress.done / max(progress.total, 1), 1.0),
        f"{plain(job.title)}: {progress.done} of {progress.total}, {words}",
    )
    if right.button("Stop", key=f"stop {kind}", icon=":material/stop_circle:", width="stretch"):
        job.cancel()
