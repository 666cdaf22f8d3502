"""Plans of DeepSeek-V3 on real expert loads: how they compare with the baselines, how long they take, what is proven.

    python benchmarks/plans.py [--exchange auto]       prints a Markdown table; all times in it are predicted

Needs the routing statistics of `EPPLAN_DATA` (default ../shared/data beside the repository). Two parts: objective
`time` at prefill and decode on three clusters, and objective `balance` on all six files. Plans at `--time-limit 0` are
timed by `limit_zero.py`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from planner import build_workload, load_cluster, load_model, load_profile, load_routing, predict, slots_of_ranks, solve
from planner.workload import Workload

DATA = Path(os.environ.get("EPPLAN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
FILES = (
    "prefill_in512",
    "prefill_in1024",
    "prefill_in2048",
    "prefill_in1000out1000",
    "decode_in1000out1000",
    "decode_in2000out100",
)
CLUSTERS = (("hgx-h100:4", 9), ("hgx-h100:8", 5), ("gb200-nvl72:1", 4))
STEPS = (("prefill_in1024", 4096), ("decode_in1000out1000", 128), ("decode_in2000out100", 128))


def path_of(file: str) -> Path:
    """Return where a file of statistics lies."""
    return DATA / "routing" / "sglang_deepseek_r1" / f"{file}.json"


def workload_of(file: str, cluster: str, tokens: float) -> Workload:
    """Load a file of DeepSeek-V3 statistics for a cluster."""
    model = load_model("deepseek-v3")
    routing = load_routing(path_of(file), model)
    return build_workload(model, load_cluster(cluster), routing, tokens)


def time_row(cluster: str, slots: int, file: str, tokens: int, exchange: str) -> str:
    """Plan for time; compare with every baseline, layer by layer, under the plan's exchange."""
    workload, profile = workload_of(file, cluster, tokens), load_profile()
    slots_R = slots_of_ranks(workload.model, workload.cluster, slots, workload.num_layers)
    solution = solve(workload, profile, slots_R, exchange=exchange)
    *theirs, ours = solution.predictions
    ours_us = np.array([layer.layer_us for layer in ours.layers])
    best_us = np.array([[layer.layer_us for layer in one.layers] for one in theirs]).min(axis=0)
    assert (ours_us <= best_us * (1 + 1e-12)).all(), "worse than a baseline on some layer"
    best = min(theirs, key=lambda one: one.total_us)
    gap = sum(layer.objective for layer in solution.layers) / sum(layer.bound for layer in solution.layers) - 1
    return (
        f"| {cluster} x {slots} | {file}, {tokens} | {solution.exchange} | {best.mean('layer_us'):,.0f} ({best.name}) "
        f"| {ours.mean('layer_us'):,.0f} | {np.exp(np.log(ours_us / best_us).mean()):.3f} "
        f"| {(ours_us / best_us).max():.3f} | {ours.mean('imbalance'):.3f} | {gap:.1%} | {solution.seconds:.0f} |"
    )


def balance_row(file: str) -> str:
    """Plan for load balance alone."""
    workload, profile = workload_of(file, "hgx-h100:4", 4096), load_profile()
    slots_R = slots_of_ranks(workload.model, workload.cluster, 9, workload.num_layers)
    solution = solve(workload, profile, slots_R, objective="balance", exchange="pairwise")
    worst = {
        name: predict(name, rows, workload, profile, "pairwise").worst_imbalance
        for name, rows in {**solution.baselines, "plan": solution.placements}.items()
    }
    gap = max(layer.gap for layer in solution.layers)
    cells = [f"{worst['eplb']:.3f}", f"{worst['eplb-global']:.3f}", f"{worst['plan']:.4f}", f"{gap:.2%}"]
    return f"| {file} | {' | '.join(cells)} | {solution.seconds:.1f} |"


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchange", default="auto")
    exchange = parser.parse_args().exchange
    print("| cluster x slots | routing, tokens per rank | exchange | best baseline us | plan us ", end="")
    print("| ratio (geometric mean) | worst layer's ratio | imbalance | gap | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for file, tokens in STEPS:
        for cluster, slots in CLUSTERS:
            print(time_row(cluster, slots, file, tokens, exchange), flush=True)
    print("\n| file | worst layer: eplb | eplb-global | plan | worst gap | seconds |\n|---|---|---|---|---|---|")
    for file in FILES:
        print(balance_row(file), flush=True)


if __name__ == "__main__":
    main()
