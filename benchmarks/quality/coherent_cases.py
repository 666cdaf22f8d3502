"""The coherent exchange beside plain dispatch, on traces: planned on the first half, scored on both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.quality.scored import PROFILE, TRACES, Score, best_baseline, even_slots, halves, hosts_of_h100, score
from planner import Prediction, Routing, assemble_plan, build_workload, load_model, solve
from planner.coherent import predict_coherent
from planner.routing import count_trace
from planner.timing import plain
from planner.workload import Workload

Order = Literal["as listed", "shuffled", "top-1"]


@dataclass(frozen=True)
class Setting:
    """One case: a trace, ranks on hosts with their slots, tokens of a rank, and the order of a token's experts."""

    trace: str
    hosts: int
    ranks: int
    slots: int
    tokens: int
    order: Order

    @property
    def name(self) -> str:
        """Return the name of the case, less its first word."""
        return f"{self.trace}-{self.hosts}hosts-{self.ranks}ranks-{self.tokens}-{self.order.replace(' ', '-')}"

    def workloads(self) -> list[Workload]:
        """Return the step on the first half of the trace, and on the second."""
        model, cluster = load_model("deepseek-v2-lite"), hosts_of_h100(self.hosts, self.ranks)
        if self.order == "top-1":
            model = model.model_copy(update={"top_k": 1})
        return [build_workload(model, cluster, _ordered(half, self.order), self.tokens) for half in halves(self.trace)]


COHERENT = tuple(
    Setting(trace, hosts, ranks, slots, tokens, order)
    for trace in TRACES
    for hosts, ranks, slots in ((1, 8, 9), (2, 16, 5))
    for tokens, order in (
        (4096, "as listed"), (128, "as listed"), (4096, "shuffled"), (128, "shuffled"), (4096, "top-1"), (128, "top-1"),
    )
)  # fmt: skip


def _ordered(routing: Routing, order: Order) -> Routing:
    """Return a trace with the experts of a token in another order, or only the first of them."""
    assert routing.trace is not None
    if order == "as listed":
        return routing
    trace = np.random.default_rng(0).permuted(routing.trace, axis=2)[:, :, : 1 if order == "top-1" else None]
    return replace(routing, trace=trace, counts=count_trace(trace, routing.num_experts))


def coherent_case(setting: Setting, plan_path: Path, workers: int) -> dict[str, Any]:
    """Plan with and without the coherent exchange on the first half of a trace, and score both on both halves."""
    first, second = setting.workloads()
    slots_R = even_slots(first, setting.slots)
    without = solve(first, PROFILE, slots_R, workers=workers)
    coherent = solve(first, PROFILE, slots_R, exchange="coherent", workers=workers)
    made = assemble_plan(first, PROFILE, slots_R, coherent, seed=0, inputs={}, command="benchmarks/plan_quality.py")
    made.save(plan_path)
    kept: dict[str, Any] = {**vars(setting), "seconds": round(coherent.seconds, 2)}
    for part, workload in (("in", first), ("out", second)):
        ours = predict_coherent("ours", coherent.placements, workload, PROFILE)
        theirs = [predict_coherent(*one, workload, PROFILE) for one in coherent.baselines.items()]
        kept[part] = {
            "layers": workload.num_layers,
            "ours": {"layer_us": [round(one.layer_us, 3) for one in ours.layers], "total_us": ours.total_us},
            "best": _short(min(theirs, key=lambda one: one.total_us)),
            "plain": _short(score("plain plan", without.placements, workload, plain(without.exchange))),
            "best_plain": _short(best_baseline(without.baselines, workload)[0]),
        }
    return kept


def _short(one: Prediction | Score) -> dict[str, Any]:
    return {"name": one.name, "exchange": one.exchange, "total_us": one.total_us}
