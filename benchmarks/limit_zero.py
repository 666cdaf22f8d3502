"""A plan at `--time-limit 0` beside our EPLB baseline: wall-clock and processor times, measured on this machine.

    python -m benchmarks.limit_zero [--exchange auto] [--repeats 7]       prints two Markdown tables

As commands, run in turn: `epplan plan --time-limit 0 -o plan.json`, which places and prices four baselines, bounds
every layer and writes a plan, and `epplan evaluate eplb`, which places and prices one. Then inside one process, without
start-up, loading, sampling and writing. Processor time (user + system) is what to trust where other programs run. Needs
the statistics that `plans.py` needs, and the command `epplan`.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.plans import CLUSTERS, STEPS, path_of, workload_of
from planner import load_profile, slots_of_ranks, solve
from planner.baselines import BASELINES, baseline
from planner.cost import step_cost
from planner.predict import PlanCounts
from planner.step_rows import StepSlots
from planner.timing import EXCHANGES

CASES = [(cluster, slots, file, tokens) for file, tokens in STEPS[:2] for cluster, slots in CLUSTERS]


def cpu_s() -> float:
    """Return the processor time, user and system, that this process and its ended children have taken."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def medians_ms(actions: list[Callable[[], object]], repeats: int) -> tuple[list[float], list[float]]:
    """Return the median wall-clock and processor milliseconds of each call; they take turns, to meet the same load."""
    times_ms = np.empty((repeats, 2, len(actions)))
    for turn in range(-1, repeats):  # the first round warms up, and is written over by the last
        for number, action in enumerate(actions):
            started, used = time.perf_counter(), cpu_s()
            action()
            times_ms[turn, :, number] = 1e3 * (time.perf_counter() - started), 1e3 * (cpu_s() - used)
    wall, cpu = np.median(times_ms, axis=0).tolist()
    return wall, cpu


def command_row(cluster: str, slots: int, file: str, tokens: int, *, exchange: str, repeats: int) -> str:
    """Time both commands."""
    epplan = [str(Path(sys.executable).with_name("epplan"))]
    named = {
        "--model": "deepseek-v3", "--cluster": cluster, "--routing": str(path_of(file)),
        "--slots-per-rank": str(slots), "--tokens-per-rank": str(tokens), "--exchange": exchange,
    }  # fmt: skip
    options = [part for pair in named.items() for part in pair]
    with tempfile.TemporaryDirectory() as folder:
        plan = [*epplan, "plan", "--time-limit", "0", "-o", f"{folder}/plan.json", *options]
        evaluate = [*epplan, "evaluate", "eplb", *options]
        wall, cpu = medians_ms(
            [lambda: subprocess.run(plan, check=True, capture_output=True),
             lambda: subprocess.run(evaluate, check=True, capture_output=True)], repeats,
        )  # fmt: skip
    cells = " | ".join(f"{ours:.0f} | {theirs:.0f} | {ours / theirs:.2f}" for ours, theirs in (wall, cpu))
    return f"| {cluster} x {slots} | {file}, {tokens} | {cells} |"


def process_row(cluster: str, slots: int, file: str, tokens: int, *, exchange: str, repeats: int) -> str:
    """Time the plan, and placing and pricing EPLB and all baselines, in this process."""
    workload, profile = workload_of(file, cluster, tokens), load_profile()
    slots_R = slots_of_ranks(workload.model, workload.cluster, slots, workload.num_layers)
    names = EXCHANGES if exchange == "auto" else (exchange,)

    def place_and_price(*baselines: str) -> None:
        for name in baselines:
            rows = StepSlots(workload, baseline(name, workload, slots_R))
            for one in names:
                PlanCounts(step_cost(workload, profile, one), rows).price(name)

    values, _ = medians_ms(
        [
            lambda: solve(workload, profile, slots_R, exchange=exchange, time_limit_s=0),
            lambda: place_and_price(*BASELINES),
            lambda: place_and_price("eplb"),
            lambda: baseline("eplb", workload, slots_R),
        ],
        repeats,
    )
    return f"| {cluster} x {slots} | {file}, {tokens} | {' | '.join(f'{value:.1f}' for value in values)} |"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchange", default="auto", choices=["auto", *EXCHANGES])
    parser.add_argument("--repeats", type=int, default=7)
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"Measured milliseconds, medians of {chosen.repeats}, --exchange {chosen.exchange}; load {load:.1f}\n")
    print("| cluster x slots | routing, tokens per rank | wall: plan, limit 0 | wall: evaluate eplb | ratio ", end="")
    print("| processor: plan, limit 0 | processor: evaluate eplb | ratio |\n|---|---|---|---|---|---|---|---|")
    for case in CASES:
        print(command_row(*case, exchange=chosen.exchange, repeats=chosen.repeats), flush=True)
    print("\n| cluster x slots | routing, tokens per rank | solve, limit 0 | place + price 4 baselines ", end="")
    print("| place + price eplb | place eplb |\n|---|---|---|---|---|---|")
    for case in CASES:
        print(process_row(*case, exchange=chosen.exchange, repeats=chosen.repeats), flush=True)


if __name__ == "__main__":
    main()
