"""Plans for the tiny models of `tests.executor.models`, made by the planner as a user would make them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from planner import (
    Placement,
    Plan,
    Routing,
    assemble_plan,
    build_workload,
    load_cluster,
    load_profile,
    slots_of_ranks,
    solve,
)
from planner.baselines import baseline
from planner.plan import plan_layer
from tests.executor.adapters.families import EXPERTS, TOP_K
from tests.executor.layers import Case
from tests.executor.models import LAYERS, plan_of

PAIRS = Path(__file__).parents[2] / "examples" / "two_small_hosts.yaml"
KINDS = ("linear", "eplb", "ours")


@cache
def plan_for(ranks: int, kind: str) -> Plan | None:
    """Return the plan of a kind for so many ranks, on hosts of two; skewed routing, replicas for `eplb` and `ours`."""
    if ranks == 1:
        return None
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cluster.yaml"
        path.write_text(PAIRS.read_text().replace("count: 2", f"count: {ranks // 2}"))
        cluster = load_cluster(str(path))
    model = plan_of(Case((8,) * ranks, experts=EXPERTS, top_k=TOP_K, replicas=0.0)).model
    loads = np.linspace(1.0, 2.5, EXPERTS)
    counts = np.stack([np.random.default_rng(layer).permutation(loads)[None] for layer in range(LAYERS)])
    workload = build_workload(model, cluster, Routing(tuple(range(LAYERS)), counts), tokens_per_rank=4096)
    slots = slots_of_ranks(model, cluster, EXPERTS // ranks + 1, LAYERS)
    profile = load_profile()
    solution = solve(workload, profile, slots, exchange="two-level" if ranks > 2 else "pairwise", workers=1)
    plan = assemble_plan(workload, profile, slots, solution, seed=0, inputs={}, command="test")
    if kind == "ours":
        return plan
    placements = [_without_twins(one) for one in baseline(kind, workload, np.atleast_2d(slots)[0])]
    return plan.model_copy(update={"layers": tuple(map(plan_layer, range(LAYERS), placements))})


def _without_twins(placement: Placement) -> Placement:
    """Merge copies of an expert on one rank, which EPLB makes and an executor has no use for."""
    slots = [list(dict.fromkeys(row)) for row in placement.slots()]
    return Placement.equal_shares(slots, placement.num_experts, len(placement.share_DS))
