"""Export: plan.json and the files of engines, the commands that print the same numbers, a link to these settings."""

from __future__ import annotations

import re
import shlex
from urllib.parse import urlencode, urlsplit

import streamlit as st

from app.whatif.frame import current, footnote, is_upload, show
from app.whatif.parts import figures
from app.whatif.reproduce import CLUSTER_FILE, PLAN_FILE, Reproduction, reproduce
from app.whatif.state import Session
from app.whatif.words import in_the_app, plain
from app.whatif.work import Planned
from planner.exporters import TARGETS, export_plan
from topologies.cluster_file import dump_spec
from topologies.errors import BadInput


def page(mine: Session) -> None:
    """Offer everything that leaves the app."""
    plan = current(mine)
    made = reproduce(plan, mine.uploads)
    predicted = made.document.predicted
    sizes = (len(made.document.layers), made.document.num_ranks, plan.case.slots_per_rank)
    figures(
        ("layers, ranks, slots", ", ".join(map(str, sizes)), "exact", "Slots per rank."),
        ("all MoE layers", f"{predicted.total_us:,.1f} us", f"predicted, {predicted.provenance}",
         "What plan.json says, and `epplan evaluate` prints as the sum of its layers."),
        ("plan", "fast" if plan.found is None else "searched", made.document.exchange, "Search on the page Plan."),
    )  # fmt: skip
    left, right = st.columns(2, gap="medium")
    with left.container(border=True, height="stretch"):
        _files(plan, made)
    with right.container(border=True, height="stretch"):
        _engines(plan, made)
    with st.container(border=True):
        _commands(made)
    with st.container(border=True):
        _link(mine)
    footnote(plan)


def _files(plan: Planned, made: Reproduction) -> None:
    st.subheader("Files", anchor=False)
    files = {PLAN_FILE: made.document.to_json(), CLUSTER_FILE: dump_spec(plan.case.whole), **made.files}
    words = {PLAN_FILE: "the plan, with its predictions and its proof", CLUSTER_FILE: "the whole cluster"}
    for name, text in files.items():
        kind = "text/yaml" if name.endswith("yaml") else "application/json"
        st.download_button(
            f"{name}: {words.get(name, 'as the commands below read it')} ({len(text) / 1e3:,.0f} kB)", text, name, kind,
            icon=":material/download:", key=f"download {name}", on_click="ignore", width="stretch",
            type="primary" if name == PLAN_FILE else "secondary",
        )  # fmt: skip


def _engines(plan: Planned, made: Reproduction) -> None:
    st.subheader("For engines", anchor=False)
    target = st.selectbox(
        "Engine",
        list(TARGETS),
        list(TARGETS).index("sglang"),
        key="engine",
        format_func=lambda name: f"{name}: {TARGETS[name].summary}",
    )
    lossy = st.toggle("Leave out what it cannot hold", key="lossy", help="The predicted cost of that is shown.")
    try:
        exported = export_plan(
            made.document, target, lossy=(plan.workload, plan.case.profile) if lossy else None, name="This plan"
        )
    except BadInput as error:
        st.warning(plain(in_the_app(str(error))), icon=":material/block:")
        if "--engine-compatible" in str(error):
            st.caption(
                "`--engine-compatible` goes with the command below: every serving engine loads such a plan as it is."
            )
        return
    name = f"epplan-{target}{_ending(TARGETS[target].summary)}"
    st.download_button(f"{name} ({len(exported.data) / 1e3:,.0f} kB)", exported.data, name, key="download engine",
                       icon=":material/download:", on_click="ignore", width="stretch")  # fmt: skip
    if (beside := exported.beside()) is not None:
        second = name.rpartition(".")[0] + beside[0]
        st.download_button(second, beside[1], second, key="download beside", icon=":material/download:",
                           on_click="ignore", width="stretch")  # fmt: skip
    if exported.loss is not None:
        for what in exported.loss.what:
            st.caption(f":material/warning: left out: {plain(what)}")
        part = exported.loss.cost_us / exported.loss.before.total_us
        st.caption(f"Predicted cost: {exported.loss.cost_us:+,.1f} us over all layers ({part:+.2%}).")
    st.code(exported.hint(name), language="bash", wrap_lines=True)


def _ending(summary: str) -> str:
    """Return the ending of a target's file, which its summary names where it is not JSON."""
    found = re.search(r"\.(npz|npy|pth|pt)\b", summary)
    return found[0] if found else ".yaml" if "YAML" in summary else ".json"


def _commands(made: Reproduction) -> None:
    st.subheader("The same numbers on the command line", anchor=False)
    st.code(f"{shlex.join(made.plan)}\n{shlex.join(made.evaluate)}", language="bash", wrap_lines=True)
    needed = [*(f"**{plain(name)}** (yours)" for name in made.own), *(f"**{name}** (above)" for name in made.files)]
    if needed:
        st.caption("They read " + ", ".join(needed) + ".")


def _link(mine: Session) -> None:
    st.subheader("A link to these settings", anchor=False)
    at = urlsplit(st.context.url or "")
    query = urlencode(mine.settings.query())
    st.code(f"{at.scheme}://{at.netloc}/plan" + (f"?{query}" if query else ""), language=None, wrap_lines=True)
    private = [name for name in ("cluster", "model", "routing", "profile") if is_upload(getattr(mine.settings, name))]
    if private:
        st.caption(
            f":material/lock: The uploaded {' and '.join(private)} stays in this session; whoever opens the link is "
            "asked for it."
        )


show(page)
