"""Plan: ours beside what people use today, layer by layer, rank by rank; where replicas sit; how good it is proven."""

from __future__ import annotations

import numpy as np
import streamlit as st

from app.whatif import work
from app.whatif.charts.plans import layer_strip, rank_load, replicas, time_bars, traffic
from app.whatif.frame import current, footnote, origin_of, show
from app.whatif.panels import search_panel
from app.whatif.parts import chart, figures, layer_choice, plan_choice, table
from app.whatif.state import Session
from app.whatif.work import THIS_PLAN, Planned
from planner.assemble import GAP_TARGET
from planner.link_use import traffic_RR
from planner.plan import finite_gap
from planner.simulate import Phase


def page(mine: Session) -> None:
    """Show the best plan at hand."""
    plan = current(mine)
    _headline(plan)
    with st.container(border=True):
        _status(plan)
        search_panel(plan)
    predictions, origin = plan.solution.predictions, origin_of(plan)
    left, right = st.columns([1, 1], gap="medium")
    with left:
        st.subheader("Time of a layer", anchor=False)
        words = "Dispatch, compute and combine of every plan, mean over layers"
        chart(time_bars(predictions, origin), "time", words)
    with right:
        heading, choice = st.columns([3, 2])
        heading.subheader("Load of the ranks", anchor=False)
        best = min(predictions[:-1], key=lambda one: one.total_us).name
        others = [name for name in plan.names if name != THIS_PLAN]
        other = choice.selectbox("This plan beside", others, others.index(best), key="load beside",
                                 format_func=lambda name: f"beside {name}", label_visibility="collapsed")  # fmt: skip
        loads = {name: work.loads_LR(plan, name).mean(axis=0) for name in (other, THIS_PLAN)}
        chart(rank_load(loads, origin), "load", "Token-expert pairs of every rank over the mean")
    st.subheader("Every layer", anchor=False)
    chart(layer_strip(predictions, origin), "layers", "Time of every layer under every plan")
    st.subheader("One layer", anchor=False)
    _one_layer(plan)
    st.subheader(f"All figures ({origin})", anchor=False)
    _comparison(plan)
    footnote(plan)


def _headline(plan: Planned) -> None:
    found, origin = plan.prediction, origin_of(plan)
    best = plan.solution.to_beat
    objective = sum(layer.objective for layer in plan.solution.layers)
    bound = sum(layer.bound for layer in plan.solution.layers)
    gap = finite_gap(objective, bound)
    mean_bound = bound / len(plan.solution.layers)
    shown_bound = f"{mean_bound:,.1f} us" if plan.solution.objective == "time" else f"imbalance {mean_bound:.3f}"
    proof = f"{gap:.2%}" if gap <= GAP_TARGET else f"<= {gap:.0%}" if gap < 1e3 else "not known"
    figures(
        ("layer, mean of all", f"{found.mean('layer_us'):,.1f} us", origin, "Dispatch, experts and combine."),
        (f"speed over {best.name}", f"{best.total_us / found.total_us:.3f} x", origin, "Over the best baseline."),
        ("imbalance", f"{found.mean('imbalance'):.3f}", origin, "Max over ranks / mean of token-expert pairs."),
        ("expert weights per rank", f"{found.memory_bytes / 1e9:,.3g} GB", "exact", "On the fullest rank."),
        (
            "gap to the bound", proof, f"bound {shown_bound}, predicted",
            "Objective over the proven lower bound (here the mean of all layers) - 1. Above 5 % the plan is not proven "
            "good: the bound may be loose.",
        ),
    )  # fmt: skip


def _status(plan: Planned) -> None:
    if plan.found is None:
        st.markdown(
            "**Fast plan**: the best baseline of every layer, double replicas merged. A search usually finds better."
        )
        return
    limit = plan.found.time_limit_s
    effort = "a fixed amount of work" if limit is None else f"a limit of {limit:g} s"
    early = "" if plan.solution.complete else ", stopped early: some layers hold their start"
    st.markdown(
        f"**Searched plan**: {plan.solution.seconds:,.1f} s (measured) with {effort}{early}; {plan.solution.solver}."
    )


def _one_layer(plan: Planned) -> None:
    case, origin = plan.case, origin_of(plan)
    left, right = st.columns(2, gap="medium")
    with left:
        name = plan_choice(plan, "plan")
    with right:
        row = layer_choice(plan, "plan")
    placement = plan.placements(name)[row]
    with st.spinner("Simulating ..."):
        done = work.simulation(plan, name, row)
    host_R = np.asarray(case.cluster.host_of_rank)
    left, right = st.columns(2, gap="medium")
    with left:
        phases: list[Phase] = ["dispatch", "combine"]
        phase = st.segmented_control("Traffic from rank to rank", phases, default=phases[0], required=True, key="phase")
        words = f"Bytes of the {phase} from every rank to every other, on all hops"
        chart(traffic(traffic_RR(done, phase), host_R, origin), "traffic", words)
    with right:
        several = int((placement.copies_E > 1).sum())
        st.markdown(
            f"**{several} of {case.model.experts} experts have copies**, {len(placement.expert_S)} slots in use"
        )
        if several:
            load_E = plan.workload.load_LE[row]
            chart(replicas(placement, load_E, host_R), "replicas", "Which ranks hold copies, by the share they serve")
        else:
            st.info("Every expert sits on one rank alone in this layer.", icon=":material/info:")


def _comparison(plan: Planned) -> None:
    best = min(one.total_us for one in plan.solution.predictions)
    table(
        [
            {
                "plan": one.name,
                "imbalance": round(one.mean("imbalance"), 3),
                "worst": round(one.worst_imbalance, 3),
                **{f"{phase} us, predicted": round(one.mean(f"{phase}_us"), 1)
                   for phase in ("dispatch", "compute", "combine", "layer")},
                "over the best": round(one.total_us / best, 3),
                "GB per rank": round(one.memory_bytes / 1e9, 3),
                "exchange": one.exchange,
                "slowest layer held up by": one.bottleneck,
            }
            for one in plan.solution.predictions
        ],
        "comparison", said="predicted",
    )  # fmt: skip
    st.caption("Times: means over layers. Imbalance, mean and worst layer: max over ranks / mean. GB: expert weights.")


show(page)
