"""Layers priced one by one and all at once agree under two-level: the slack rule is each layer's own."""

import numpy as np
import pytest

from planner.cost import step_cost
from planner.layer import layer_problem
from planner.placement import Placement
from planner.predict import PlanCounts
from planner.routing import Routing
from planner.step_rows import StepSlots
from planner.workload import build_workload
from tests.planner.definitions import PROFILE, tiny_model
from topologies import load_cluster


def test_loads_that_no_router_can_produce():
    """Expert 0 gets 0.97 of all pairs, though a token of top-4 can give it a quarter at most.

    Layer 0: expert 0 on every rank, all others on rank 1, so that pairs and sampled tokens tell of different links.
    Layer 1: all experts of a host on one rank, far from slack. Either way both evaluators have to say the same.
    """
    counts = np.ones((2, 1, 32))
    counts[0, 0, 0] = 0.97 / 0.03 * 31
    model = tiny_model(32, top_k=4).model_copy(update={"num_layers": 2, "moe_layers": (0, 1)})
    workload = build_workload(model, load_cluster("hgx-h100:2"), Routing((0, 1), counts), 800)
    spread = [[0, *range(1, 32)] if rank == 1 else [0] for rank in range(16)]
    heaped = [list(range(rank * 2, rank * 2 + 16)) if rank in (0, 8) else [] for rank in range(16)]
    inside_S = np.arange(16) // 8  # of the copies of expert 0: each host uses its own
    local = Placement.equal_shares(spread, 32, 2)
    share_DS = local.share_DS.copy()
    share_DS[:, local.expert_S == 0] = (inside_S[None] == np.arange(2)[:, None]) / 8
    placements = [local.with_shares(share_DS), Placement.equal_shares(heaped, 32, 2)]
    cost = step_cost(workload, PROFILE, "two-level")
    together = PlanCounts(cost, StepSlots(workload, placements)).price("plan")
    for row, (placement, layer) in enumerate(zip(placements, together.layers, strict=True)):
        alone = layer_problem(workload, cost, np.full(16, 32), row).evaluate(placement)
        assert layer.layer_us == pytest.approx(alone.layer_us, rel=1e-9)
        assert layer.bottleneck == alone.bottleneck
