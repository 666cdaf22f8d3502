"""Inputs: the cluster, the model, the routing, the step, and what they are."""

from __future__ import annotations

from contextlib import suppress

import streamlit as st

from app.whatif import choose, work
from app.whatif.cases import Case, load_model_of
from app.whatif.charts.inputs import load_curve
from app.whatif.frame import current, footnote, show
from app.whatif.parts import chart, image_choice, table
from app.whatif.state import Session
from app.whatif.words import plain
from planner import MoEModel
from topologies.errors import EpplanError


def page(mine: Session) -> None:
    """Let the user choose, and say what was chosen."""
    columns = st.columns(3, gap="small")
    choosers = {"Cluster": choose.cluster, "Model": choose.model, "Routing": choose.routing}
    for column, (title, choice) in zip(columns, choosers.items(), strict=True):
        with column.container(border=True, height="stretch"):
            st.subheader(title, anchor=False)
            choice(mine)
            if title == "Model":
                with suppress(EpplanError):  # said below, when all that can be chosen is there to mend it
                    _model_facts(load_model_of(mine.settings, mine.uploads))
    with st.container(border=True):
        st.subheader("Step and plan", anchor=False)
        choose.step(mine)
    plan = current(mine)
    left, right = st.columns(2, gap="small")
    with left.container(border=True, height="stretch"):
        st.subheader("The cluster", anchor=False)
        _cluster_facts(plan.case)
    with right.container(border=True, height="stretch"):
        st.subheader("The routing", anchor=False)
        _routing_facts(plan.case)
    image_choice()
    footnote(plan)


def _cluster_facts(case: Case) -> None:
    cluster, found = case.cluster, work.summary(case.cluster)
    kind = found["host_kinds"][0]["gpus"][0]
    rate, out = found["uniform_alltoall"]["gbps_per_gpu"], kind["scale_out_gbps"]
    sizes = (cluster.num_ranks, cluster.num_hosts, cluster.num_domains)
    weights = case.slots_per_rank * case.routing.num_layers * case.model.expert_bytes / 1e9
    memory = min(gpu.memory_bytes for gpu in cluster.gpus) / 1e9
    table(
        [
            {"figure": "ranks, hosts, domains", "value": ", ".join(map(str, sizes)), "is": "exact"},
            {"figure": "GPU", "value": ", ".join(gpu["name"] for gpu in found["gpus"]), "is": ""},
            {"figure": "scale-up per GPU, GB/s per direction", "value": f"{kind['scale_up_gbps']:g}", "is": "vendor"},
            {"figure": "NIC per GPU, GB/s per direction", "value": "?" if out is None else f"{out:g}", "is": "vendor"},
            {"figure": "bisection, GB/s", "value": f"{found['bisection_gbps']:,.0f}", "is": "computed"},
            {"figure": "uniform all-to-all, GB/s per GPU", "value": "-" if rate is None else f"{rate:,.3g}",
             "is": "computed"},
            {"figure": f"weights of {case.slots_per_rank} slots, of {memory:,.0f} GB", "value": f"{weights:,.3g}",
             "is": "exact"},
        ],
        "cluster-facts",
    )  # fmt: skip
    for note in case.notes:
        st.caption(plain(note))


def _model_facts(model: MoEModel) -> None:
    facts = {
        "MoE layers": f"{len(model.moe_layers)} of {model.num_layers}",
        "experts, top-k": f"{model.experts}, {model.top_k}",
        "hidden x intermediate": f"{model.hidden:,} x {model.intermediate:,}",
        "one expert": f"{model.expert_bytes / 1e6:,.2f} MB ({model.weight_dtype})",
        "a row out, back": f"{model.dispatch_row_bytes:,}, {model.combine_row_bytes:,} B",
    }
    st.dataframe(
        [{"figure": name, "value": value} for name, value in facts.items()], hide_index=True, key="model facts"
    )


def _routing_facts(case: Case) -> None:
    report = work.routing_report(case)
    chart(load_curve(case.routing), "load-curve", "Load of experts, sorted, over the mean")
    skew = report.mean("skew")
    said = [f"busiest expert {skew:.2f} x the mean (counted, mean of {len(report.layers)} layers)"] if skew else []
    for reason in (*said, *report.verdict.reasons, *case.routing.remarks):
        st.caption(plain(reason))


show(page, on_inputs=True)
