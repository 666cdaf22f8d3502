"""Balancers of other projects beside ours, where they are installed: time and worst imbalance on the same statistics.

    python -m benchmarks.peers [--repeats 5]        prints a Markdown table; times are measured

All run in this process, in turn, on 58 layers of DeepSeek-V3 for 32 ranks x 9 slots on 4 hosts. Those who are looked
for all offer DeepSeek's `rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus)`; who is not
installed has a line that says so. Needs the statistics that `plans.py` needs.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.plans import path_of
from planner import load_model, load_routing
from planner.baselines import eplb
from planner.placement import FloatArray, IntArray

RANKS, SLOTS, GROUPS, HOSTS = 32, 9, 8, 4
PEERS = {  # who, and the modules that have held its function, newest first
    "DeepSeek eplb": ("eplb",),
    "vLLM": ("vllm.distributed.eplb.policy.default", "vllm.distributed.eplb.rebalance_algo"),
    "SGLang": ("sglang.srt.eplb.eplb_algorithms.deepseek", "sglang.srt.managers.eplb_algorithms.deepseek"),
}
Balancer = Callable[[FloatArray, bool], IntArray]


def peer(modules: tuple[str, ...]) -> Balancer | None:
    """Return a peer's balancer as (counts [L, E], whether hierarchical) -> experts of all slots [L, S], or None."""
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        found = getattr(module, "rebalance_experts", None)
        if found is not None:
            return lambda load_LE, hosts: _call(found, load_LE, hosts)
    return None


def _call(rebalance: Callable[..., Any], load_LE: FloatArray, hierarchical: bool) -> IntArray:
    import torch  # noqa: PLC0415  # the peers speak tensors

    groups, hosts = (GROUPS, HOSTS) if hierarchical else (1, 1)
    slots_LS = rebalance(torch.from_numpy(load_LE), RANKS * SLOTS, groups, hosts, RANKS)
    return np.asarray(slots_LS[0] if isinstance(slots_LS, tuple) else slots_LS)


def ours(load_LE: FloatArray, hierarchical: bool) -> IntArray:
    """Return what our baseline of the same name gives."""
    groups, hosts = (GROUPS, HOSTS) if hierarchical else (1, 1)
    return eplb(load_LE, RANKS * SLOTS, groups, hosts, RANKS)[0]


def worst_imbalance(load_LE: FloatArray, expert_LS: IntArray) -> float:
    """Return the largest max / mean of the ranks' loads over layers; copies share an expert's load evenly."""
    worst = 0.0
    for load_E, expert_S in zip(load_LE, expert_LS, strict=True):
        copies_E = np.bincount(expert_S, minlength=len(load_E))
        rank_R = (load_E[expert_S] / copies_E[expert_S]).reshape(RANKS, SLOTS).sum(axis=1)
        worst = max(worst, float(rank_R.max() / rank_R.mean()))
    return worst


def compare(load_LE: FloatArray, repeats: int) -> list[list[str]]:
    """Return the rows of the table: who, variant, median ms, worst imbalance, whether the slots equal ours."""
    balancers = {"epplan": ours, **{name: peer(modules) for name, modules in PEERS.items()}}
    rows = []
    for hierarchical in (True, False):
        variant, wanted_LS = "hierarchical" if hierarchical else "global", ours(load_LE, hierarchical)
        present = {name: balancer for name, balancer in balancers.items() if balancer is not None}
        times_ms: dict[str, list[float]] = {name: [] for name in present}
        for _ in range(repeats + 1):
            for name, balancer in present.items():
                started_s = time.perf_counter()
                balancer(load_LE, hierarchical)
                times_ms[name].append(1e3 * (time.perf_counter() - started_s))
        for name in balancers:
            if name not in present:
                rows.append([name, variant, "not installed", "", ""])
                continue
            slots_LS = present[name](load_LE, hierarchical)
            same = "yes" if np.array_equal(slots_LS, wanted_LS) else "no"
            median_ms = statistics.median(times_ms[name][1:])
            rows.append([name, variant, f"{median_ms:.1f}", f"{worst_imbalance(load_LE, slots_LS):.4f}", same])
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    model = load_model("deepseek-v3")
    load_LE = load_routing(str(path_of("prefill_in1024")), model).expert_counts.astype(np.float64)
    print("| balancer | variant | median ms | worst imbalance | same slots as ours |")
    print("|---|---|---|---|---|")
    for row in compare(load_LE, repeats):
        print("|", " | ".join(row), "|")


if __name__ == "__main__":
    main()
