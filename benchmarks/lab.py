"""Predicted versus measured in the lab: three clusters, real routing, three exchanges, four plans.

    sudo python -m benchmarks.lab [--cluster 0 --trace bundled] [-o results.json]      prints Markdown tables

Needs root. The NICs run at `--nic-mbit`, everything else in the proportions of the graph; the experts are left out,
so that a layer is dispatch + combine, or with `--experts` emulated by a wait of what the `vendor` profile gives them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np

from benchmarks.lab_links import h100
from executor.lab import open_lab, scale_for_nic
from executor.launch import RankPool
from executor.step_ids import step_ids
from executor.validation.link_loads import Links
from executor.validation.report import ValidationReport
from executor.validation.timing import Setting
from executor.validation.validate import Candidate, Validation, make_report
from planner import (
    Cluster,
    Workload,
    build_workload,
    load_model,
    load_profile,
    load_routing,
    slots_of_ranks,
    solve,
)
from planner.baselines import baseline
from planner.timing import EXCHANGES

DATA = Path(os.environ.get("EPPLAN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
TRACES = ("bundled", "intent", "summary")
BASELINES = ("linear", "eplb", "eplb-global")


def clusters() -> list[Cluster]:
    """Return the three clusters: NVLink is nine times as fast as a NIC; the last one's spine is 2:1 oversubscribed."""
    return [h100(2, 4), h100(4, 4), h100(8, 2, kind="fat-tree", radix=8, oversubscription=2.0)]


def workload_of(trace: str, cluster: Cluster, tokens: int) -> Workload:
    """Return the most skewed layer of a trace as a step of a cluster."""
    if trace == "bundled":
        folder = files("planner") / "bundled" / "tiny_moe"
        model = load_model(str(folder / "config.json"))
        routing = load_routing(str(folder / "skewed.npz"), model)
    else:
        model = load_model("deepseek-v2-lite")
        routing = load_routing(DATA / "routing" / "esft_deepseek_v2_lite" / f"{trace}_topk.npz", model)
    skew_L = routing.expert_counts.max(axis=1) / routing.expert_counts.mean(axis=1)
    return build_workload(model, cluster, routing.select([routing.layers[int(skew_L.argmax())]]), tokens)


def candidates_of(workload: Workload, exchanges: list[str]) -> list[Candidate]:
    """Return the baselines and our plan under each exchange."""
    spare = workload.num_experts // workload.num_ranks + 1
    slots_R = slots_of_ranks(workload.model, workload.cluster, spare, 1)
    layer, found = workload.layers[0], []
    for exchange in EXCHANGES:
        if exchange not in exchanges:
            continue
        placed = {name: baseline(name, workload, slots_R)[0].without_duplicates() for name in BASELINES}
        found += [Candidate(name, exchange, {layer: placement}) for name, placement in placed.items()]
        solution = solve(workload, load_profile(), slots_R, exchange=exchange, workers=1)
        found.append(Candidate("ours", exchange, {layer: solution.placements[0]}))
    return found


def run(
    cluster: Cluster, trace: str, tokens: int, nic_mbit: float, exchanges: list[str], repeats: int, *, experts: bool
) -> ValidationReport:
    """Validate one trace on one cluster."""
    workload = workload_of(trace, cluster, tokens)
    candidates = candidates_of(workload, exchanges)
    scale = scale_for_nic(cluster, nic_mbit)
    domain_R, rail_R = tuple(cluster.domain_of_rank.tolist()), tuple(cluster.rail_of_rank.tolist())
    setting = Setting(workload.model.hidden, "bfloat16", repeats, 1, domain_R, rail_R)
    ids = step_ids(workload.model, workload.layers, workload.num_ranks, tokens, workload.routing)
    with open_lab(cluster, scale=scale) as lab, RankPool(cluster.num_ranks, places=lab.places) as pool:
        validation = Validation(
            pool, lab, Links(cluster), scale, workload, load_profile(), ids, setting, timeout_s=500.0, compute=experts
        )
        return make_report(validation, candidates, "lab", lambda line: print(line, file=sys.stderr, flush=True))


def table(report: ValidationReport) -> str:
    """Return the report as Markdown rows."""
    lines = []
    for case in report.cases:
        phases = {phase.phase: phase for phase in case.phases}
        links = [
            abs(link.predicted_bytes / link.counted_bytes - 1) for link in case.links if link.counted_bytes > 65536
        ]
        lines.append(
            f"| {report.cluster} | {report.routing} | {case.exchange} | {case.plan} "
            f"| {phases['dispatch'].predicted_us / 1e3:.0f} / {phases['dispatch'].measured_us / 1e3:.0f} "
            f"| {phases['combine'].predicted_us / 1e3:.0f} / {phases['combine'].measured_us / 1e3:.0f} "
            f"| {case.error:+.1%} | {case.total_us('predicted') / 1e3:.0f} / {case.total_us('measured') / 1e3:.0f} "
            f"| {max(links, default=np.nan):.1%} | {len(case.problems) or 'exact'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", type=int, action="append", choices=range(3))
    parser.add_argument("--trace", action="append", choices=TRACES)
    parser.add_argument("--exchange", action="append", choices=EXCHANGES)
    parser.add_argument("--nic-mbit", type=float, default=16.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--experts", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    reports = []
    times = ("dispatch ms, predicted / measured", "combine ms", "error", "layer ms")
    print("|", " | ".join(("cluster", "routing", "exchange", "plan", *times, "links off by", "rows")), "|")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for number in asked.cluster or range(3):
        for trace in asked.trace or TRACES:
            tokens = 1024 if trace == "bundled" else 64
            cluster = clusters()[number]
            report = run(
                cluster,
                trace,
                tokens,
                asked.nic_mbit,
                asked.exchange or list(EXCHANGES),
                asked.repeats,
                experts=asked.experts,
            )
            reports.append(report)
            print(table(report), flush=True)
            print(json.dumps(report.summary()), json.dumps(report.calibration.model_dump()), file=sys.stderr)
            if asked.output:
                asked.output.write_text(json.dumps([one.model_dump(mode="json") for one in reports]))


if __name__ == "__main__":
    main()
