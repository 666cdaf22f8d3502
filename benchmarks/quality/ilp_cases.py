"""Published integer programs beside our plans: the same input, the same solver, their own objective."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.ilp_baselines import affine_parts, balanced_clusters, crossings, deviation, transitions
from benchmarks.quality.scored import PROFILE, even_slots, halves, statistics
from planner import build_workload, load_cluster, load_model, solve
from planner.solve.affinity import follow

LIMIT_S = 60.0  # of each program, as ExFlow has it and as MoETuner was reproduced
LAYERS = (2, 20, 50)  # rows of the statistics; 60 s each
EXFLOW_RANKS = 8


def moetuner_case(file: str, hosts: int) -> dict[str, Any]:
    """Balance the experts of a few layers without copies: sum of deviations from the mean load, all layers together."""
    model, routing = load_model("deepseek-v3"), statistics(file)
    routing = routing.select(routing.layers[row] for row in LAYERS)
    workload = build_workload(model, load_cluster(f"hgx-h100:{hosts}"), routing, 4096)
    ranks = workload.num_ranks
    slots_R = even_slots(workload, model.experts // ranks)
    solution = solve(workload, PROFILE, slots_R, objective="balance", exchange="pairwise", workers=1)
    theirs, ours, seconds = 0.0, 0.0, 0.0
    for load_E, placement in zip(workload.load_LE, solution.placements, strict=True):
        found = balanced_clusters(load_E, ranks, LIMIT_S)
        rank_E = np.empty(model.experts, dtype=np.int64)
        rank_E[placement.expert_S] = placement.rank_S
        theirs += deviation(load_E, found.part_E, ranks)
        ours += deviation(load_E, rank_E, ranks)
        seconds += found.seconds
    return {
        "baseline": "MoETuner, first stage",
        "input": f"{file}, {len(LAYERS)} layers, {ranks} ranks",
        "objective": "sum of deviations / mean load",
        "theirs": theirs,
        "ours": ours,
        "their_seconds": seconds,
        "our_seconds": solution.seconds,
    }


def exflow_case(trace: str) -> dict[str, Any]:
    """Keep tokens on their rank from layer to layer: crossings a token, on the half planned on and the other."""
    first, second = halves(trace)
    experts = first.num_experts
    assert first.trace is not None
    assert second.trace is not None
    seen_LEE, unseen_LEE = (
        transitions(half[:, :, 0].astype(np.int64), experts) for half in (first.trace, second.trace)
    )
    part_LE, seconds = affine_parts(seen_LEE, EXFLOW_RANKS, LIMIT_S)
    started = time.perf_counter()
    rank_LE = follow(seen_LEE, 1.0 - np.eye(EXFLOW_RANKS))
    our_seconds = time.perf_counter() - started
    return {
        "baseline": "ExFlow, bisected",
        "input": f"{trace}, {len(part_LE)} layers, {EXFLOW_RANKS} ranks",
        "objective": f"crossings a token (second half: {crossings(unseen_LEE, part_LE):.2f} theirs, "
        f"{crossings(unseen_LEE, rank_LE):.2f} ours)",
        "theirs": crossings(seen_LEE, part_LE),
        "ours": crossings(seen_LEE, rank_LE),
        "their_seconds": seconds,
        "our_seconds": our_seconds,
    }
