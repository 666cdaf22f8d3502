"""What if: A is the setting of all pages, B the same with some knobs moved; what that does to time and to the plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app.whatif import work
from app.whatif.cases import Case, holding_all
from app.whatif.charts.plans import time_bars
from app.whatif.frame import current, footnote, show
from app.whatif.knobs import knobs
from app.whatif.panels import search_panel
from app.whatif.parts import chart, figures, table
from app.whatif.settings import Settings
from app.whatif.state import Session
from app.whatif.words import in_the_app, plain
from app.whatif.work import Planned
from planner import Prediction, Workload
from planner.migrate import pay_back_steps
from planner.provenance import weakest
from planner.survive import survivors_E
from topologies.errors import EpplanError


def page(mine: Session) -> None:
    """Show the knobs on the left and what they do on the right."""
    a = current(mine)
    left, right = st.columns([1, 2.6], gap="medium")
    with left.container(border=True):
        st.subheader("B: what if ...", anchor=False)
        knobs(mine, a)
    with right:
        changes = mine.settings.changes(mine.other or mine.settings)
        if not changes:
            st.info("B is A as long as no knob is moved. Try faster NICs, a lost host, or fewer tokens.",
                    icon=":material/tune:")  # fmt: skip
            bars = time_bars(_named({"A": a.prediction}), f"predicted, {a.prediction.provenance}", against_best=False)
            chart(bars, "what-if", "Time of A")
            return
        try:
            _compare(mine, a, work.case_of(mine, mine.other))
        except EpplanError as error:
            st.error(f"**B cannot be.** {plain(in_the_app(str(error)))}", icon=":material/error:")
    footnote(a)


def _compare(mine: Session, a: Planned, asked: Case) -> None:
    case, raised = holding_all(asked, mine.uploads)
    shown = {"A": a.prediction}
    columns = st.columns(3)
    _metric(columns[0], "A", a.prediction, a, None)
    if _same_shape(a.case, case):
        shown["A's plan in B"] = work.moved(a, case)
        _metric(columns[1], "A's plan in B", shown["A's plan in B"], a, case)
    else:
        columns[1].metric(
            "A's plan in B",
            "not possible",
            "other ranks or slots",
            delta_color="off",
            delta_arrow="off",
            help="B has other ranks, or too few slots.",
            border=True,
        )
    b = work.planned(mine, case)
    name = "B, searched" if b.found else "B, fast plan"
    shown[name] = b.prediction
    _metric(columns[2], name, b.prediction, a, case)
    if raised:
        st.info(plain(raised), icon=":material/info:")
    origin = f"predicted, {weakest(one.provenance for one in shown.values())}"
    chart(time_bars(_named(shown), origin, against_best=False), "what-if", "Time of a layer in A and in B, by phase")
    _verdict(shown, name)
    _moving(a, b, shown.get("A's plan in B"), origin)
    _differences(mine.settings, case.settings, a, b)
    search_panel(b, "B")
    if st.button("Make B the setting of all pages", icon=":material/check:", key="adopt", on_click=_adopt,
                 args=(mine, case.settings)):  # fmt: skip
        st.toast("B is now the setting of all pages.")


def _adopt(mine: Session, settings: Settings) -> None:
    mine.settings, mine.other = settings, None


def _same_shape(a: Case, b: Case) -> bool:
    """Return whether A's slots exist in B."""
    return (
        a.cluster.num_ranks == b.cluster.num_ranks
        and a.cluster.domain_of_rank.tolist() == b.cluster.domain_of_rank.tolist()
        and (a.model, a.routing.layers) == (b.model, b.routing.layers)
        and a.slots_per_rank <= b.slots_per_rank
    )


def _named(predictions: dict[str, Prediction]) -> list[Prediction]:
    return [replace(one, name=name) for name, one in predictions.items()]


def _metric(column: DeltaGenerator, name: str, one: Prediction, a: Planned, case: Case | None) -> None:
    """Show the time of a layer and how it differs from A's: per token of the group where the steps differ."""
    value = one.mean("layer_us")
    if case is None:
        column.metric(f"{name}, predicted", f"{value:,.1f} us", one.provenance, delta_color="off", delta_arrow="off",
                      help="A layer, mean of all.", border=True)  # fmt: skip
        return
    tokens, before = (_tokens(work.workload_of(each)) for each in (case, a.case))
    ratio = value / a.prediction.mean("layer_us") / (tokens / before)
    unit = "" if tokens == before else " per token"
    column.metric(
        f"{name}, predicted", f"{value:,.1f} us", f"{ratio - 1:+.1%}{unit} vs A", delta_color="inverse", border=True,
        help="A layer, mean of all." + (f" Steps are of {before:,.0f} (A) and {tokens:,.0f} tokens." if unit else ""),
    )  # fmt: skip


def _tokens(workload: Workload) -> float:
    """Return the tokens of a step on all ranks."""
    return workload.tokens_per_rank * workload.num_ranks


def _verdict(shown: dict[str, Prediction], name: str) -> None:
    """Say what a new plan is worth in B."""
    if "A's plan in B" not in shown:
        return
    kept_us, new_us = shown["A's plan in B"].mean("layer_us"), shown[name].mean("layer_us")
    gain = kept_us / new_us - 1
    if abs(gain) < 0.005:
        st.caption("A new plan changes nothing worth counting: A's plan is as good in B.")
    elif gain > 0:
        st.caption(f"A new plan for B is {gain:.1%} faster there than A's plan.")
    else:
        st.caption(f"A's plan is still {-gain:.1%} faster in B than the fast plan: search B, or keep A's plan.")


def _moving(a: Planned, b: Planned, kept: Prediction | None, origin: str) -> None:
    """Say what it takes to get from A's plan to B's: experts that travel, bytes, time, and when that pays back."""
    if (a.case.model, a.case.routing.layers) != (b.case.model, b.case.routing.layers):
        return
    found = work.migrated(a, b)
    steps = None if kept is None else pay_back_steps(found, kept.total_us, b.prediction.total_us)
    pays = "never" if kept is not None else "no choice" if found.lost else "-"
    figures(
        (
            "experts that move", f"{len(found.moves):,}", f"of {found.slots:,} slots",
            "Experts that a rank of B has to fetch, all layers; each from the nearest GPU that holds it under A's plan."
            + (f" {found.lost:,} come from the checkpoint, as no rank is left that holds them." if found.lost else ""),
        ),
        ("weights on the way", f"{found.total_bytes / 1e9:,.3g} GB", "exact", "Weights of the experts that move."),
        (
            "time to move", f"{found.time_us / 1e3:,.3g} ms", origin,
            "Layer after layer, all transfers of a layer at once"
            + ("; what comes from the checkpoint is not in it." if found.lost else "."),
        ),
        (
            "pays back after", pays if steps is None else f"{np.ceil(steps):,.0f} steps", origin,
            "Time to move over the time that B's plan saves in a step, beside A's plan in B.",
        ),
    )  # fmt: skip
    if found.lost == 0 and found.moves and not b.found:
        st.caption(
            "These are two plans made apart. `epplan plan --from` finds one that moves less for most of the gain."
        )


def _differences(a: Settings, b: Settings, plan_a: Planned, plan_b: Planned) -> None:
    rows = [
        {"what": name.replace("_", " "), "A": _shown(before), "B": _shown(after)}
        for name, (before, after) in a.changes(b).items()
        if name != "slots"
    ]
    for words, read in (
        ("ranks", lambda plan: f"{plan.case.cluster.num_ranks}"),
        ("tokens in a step, all ranks", lambda plan: f"{_tokens(plan.workload):,.0f}"),
        ("slots per rank", lambda plan: f"{plan.case.slots_per_rank}"),
        ("imbalance (predicted)", lambda plan: f"{plan.prediction.mean('imbalance'):.3f}"),
        ("exchange", lambda plan: plan.prediction.exchange),
        ("expert weights per rank, GB", lambda plan: f"{plan.prediction.memory_bytes / 1e9:,.3g}"),
        ("experts that survive the loss of any host", _survivors),
        ("slowest layer held up by", lambda plan: plan.prediction.bottleneck),
    ):
        rows.append({"what": words, "A": read(plan_a), "B": read(plan_b)})
    table(rows, "differences")


def _survivors(plan: Planned) -> str:
    """Return how many experts, all layers together, have copies on two hosts."""
    host_R = np.asarray(plan.case.cluster.host_of_rank)
    alive = sum(int(survivors_E(placement, host_R).sum()) for placement in plan.solution.placements)
    return f"{alive:,} of {plan.case.model.experts * plan.workload.num_layers:,}"


def _shown(value: object) -> str:
    if value is None:
        return "as described"
    if value == ():
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else f"{value}"


show(page)
