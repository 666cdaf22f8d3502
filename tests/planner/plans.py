"""Plans made by hand for the tests of exporters and importers."""

import numpy as np
from hypothesis import strategies as st

from planner.importers import Imported, import_plan
from planner.model import MoEModel
from planner.placement import Placement
from planner.plan import Plan
from planner.routing import Routing
from planner.timing import load_profile
from planner.workload import build_workload
from topologies import load_cluster

PROFILE = load_profile("vendor")


def two_hosts(ranks=4):
    """Ranks 0..R/2-1 on one host, the rest on the other."""
    each = ranks // 2
    return load_cluster("hgx-h100:2").subset([*range(each), *range(8, 8 + each)])


def pair():
    """Two ranks of one host."""
    return load_cluster("hgx-h100:1").subset([0, 1])


def model_of(experts, moe_layers=(1, 2), num_layers=3, groups=1, top_k=2, **fields) -> MoEModel:
    return MoEModel(
        name="made", experts=experts, top_k=top_k, hidden=512, intermediate=256, num_layers=num_layers,
        moe_layers=moe_layers, groups=groups, top_groups=groups, **fields,
    )  # fmt: skip


def workload_of(model, cluster, layers, seed=0):
    counts = np.random.default_rng(seed).integers(1, 100, (len(layers), 1, model.experts)).astype(float)
    return build_workload(model, cluster, Routing(tuple(layers), counts, name="made"), 256)


def plan_of(model, cluster, placements, layers=None, seed=0) -> tuple[Plan, object]:
    """Return a plan with these placements, and the workload that it was predicted on."""
    layers = model.moe_layers if layers is None else layers
    workload = workload_of(model, cluster, layers, seed)
    slots = max(int(p.slots_R.max()) for p in placements)
    imported = Imported(tuple(layers), tuple(placements), slots)
    return import_plan(imported, workload, PROFILE, fmt="made", inputs={}, command="made"), workload


@st.composite
def placements(draw, experts, ranks, domains=2, *, replicas=True, even=True, slots=None):
    """Draw a placement: every expert once at random, and, with `replicas`, further copies in what is left."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    least = -(-experts // ranks)
    if slots is None:
        slots = draw(st.integers(least, min(experts, least + 2))) if replicas else least
    held = [[] for _ in range(ranks)]
    for expert in rng.permutation(experts).tolist():
        free = [r for r in range(ranks) if len(held[r]) < slots]
        held[min(free, key=lambda r: (len(held[r]), rng.random()))].append(expert)
    for row in held if replicas else []:
        missing = rng.permutation([e for e in range(experts) if e not in row]).tolist()
        more = slots - len(row) if even else int(rng.integers(0, slots - len(row) + 1))
        row.extend(missing[:more])
    for row in held:
        rng.shuffle(row)
    return Placement.equal_shares(held, experts, domains)
