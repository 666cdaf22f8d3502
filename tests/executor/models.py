"""A tiny model with MoE layers, and plans for it, that every rank can make for itself from a seed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from executor.experts import PackedExperts
from executor.moe import MoE
from executor.router import Router, RouterConfig
from planner import MoEModel, Plan
from planner.plan import Certificate, PlanCluster, PlanRank, PlanWorkload, Predicted, Provenance, plan_layer
from tests.executor.layers import Case, placement_of

HIDDEN, INTERMEDIATE, LAYERS = 8, 12, 2


class TinyModel(nn.Module):
    """Two residual MoE layers behind a linear one; all parameters drawn from the seed."""

    def __init__(self, experts: int, top_k: int, dtype: torch.dtype, seed: int = 0) -> None:
        """Draw the parameters."""
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(HIDDEN, HIDDEN)
        self.layers = nn.ModuleList(
            MoE(Router(RouterConfig(experts, top_k), HIDDEN), PackedExperts(experts, HIDDEN, INTERMEDIATE))
            for _ in range(LAYERS)
        )
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [T, H]."""
        x = self.first(x)
        for layer in self.layers:
            x = x + layer(x)
        return x


def plan_of(case: Case, exchange: str = "pairwise") -> Plan:
    """Return a plan whose layers have the case's placement with other seeds."""
    cases = [Case(**{**case.__dict__, "seed": case.seed + layer}) for layer in range(LAYERS)]
    placements = [placement_of(one)[0] for one in cases]
    _, domain_R, rail_R = placement_of(case)
    ranks = tuple(
        PlanRank(rank=r, host=int(d), gpu=r, domain=int(d), rail=int(rail))
        for r, (d, rail) in enumerate(zip(domain_R, rail_R, strict=True))
    )
    return Plan(
        format="epplan.plan",
        version=2,
        model=MoEModel(
            name="tiny",
            experts=case.experts,
            top_k=case.top_k,
            hidden=HIDDEN,
            intermediate=INTERMEDIATE,
            num_layers=LAYERS,
            moe_layers=tuple(range(LAYERS)),
        ),
        cluster=PlanCluster(name="test", ranks=ranks),
        workload=PlanWorkload(tokens_per_rank=8, slots_per_rank=(case.experts,) * len(ranks), seed=0),
        layers=tuple(plan_layer(layer, placement) for layer, placement in enumerate(placements)),
        exchange=exchange,
        predicted=Predicted(
            total_us=0, memory_bytes_per_rank=0, profile="none", profile_status="uncalibrated", layers=()
        ),
        certificate=Certificate(
            objective="time",
            objective_us=0,
            bound_us=0,
            gap=0,
            gap_target=0,
            proven=False,
            complete=True,
            solver="none",
            seconds=0,
            layers=(),
        ),
        provenance=Provenance(epplan="0", inputs={}, command="test"),
    )
