"""Modules that call ep_dispatch_and_compute themselves, as KempnerForge's do, under any plan and exchange."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from executor.conformance import Conformance
from executor.dispatch_and_compute import ep_dispatch_and_compute
from executor.moe_layers import find_moe_layers
from executor.parallelize import apply_expert_parallel
from executor.record import RoutingRecorder
from executor.replicas import check_replicas_equal, clip_grad_norm_
from planner import Plan
from tests.executor.adapters.families import EXPERTS, TOP_K
from tests.executor.adapters.steps import PATIENCE_S, mesh, plan_with_replicas, reduce_gradients, worst
from tests.executor.models import HIDDEN, INTERMEDIATE, LAYERS
from tests.executor.ranks import on_ranks


class Expert(nn.Module):
    """SwiGLU of three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(HIDDEN, INTERMEDIATE, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(INTERMEDIATE, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Layer(nn.Module):
    """Softmax top-k routing over experts in one of the forms "listed", "packed" and "plain" (packed, without gate)."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.num_experts = form, EXPERTS
        self.router = nn.Linear(HIDDEN, EXPERTS)
        if form == "listed":
            self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))
        else:
            for name in ("up_w", "gate_w") if form == "packed" else ("up_w",):
                self.register_parameter(name, nn.Parameter(torch.randn(EXPERTS, HIDDEN, INTERMEDIATE) / 3))
            self.down_w = nn.Parameter(torch.randn(EXPERTS, INTERMEDIATE, HIDDEN) / 3)
            self._packed_activation = functional.silu if form == "packed" else functional.gelu
        self.ep_world_size, self.local_expert_start, self.num_local_experts = 1, 0, EXPERTS
        self.ep_group: Any = None

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.router(x).softmax(-1).topk(TOP_K)
        if self.ep_world_size == 1:
            return sum(weights[:, k, None] * self.one_by_one(x, ids[:, k]) for k in range(TOP_K))
        place = (self.ep_group, self.local_expert_start, self.num_local_experts, self.ep_world_size)
        return ep_dispatch_and_compute(x, weights, ids, self, *place)

    def one_by_one(self, x: Tensor, ids: Tensor) -> Tensor:
        """Return each token through one expert: the independent answer."""
        rows = [self.expert(int(expert), row[None]) for row, expert in zip(x, ids.tolist(), strict=True)]
        return torch.cat([x[:0], *rows])

    def expert(self, expert: int, x: Tensor) -> Tensor:
        if self.form == "listed":
            y: Tensor = self.experts[expert](x)
            return y
        up = x @ self.up_w[expert]
        inner = functional.silu(x @ self.gate_w[expert]) * up if self.form == "packed" else functional.gelu(up)
        return inner @ self.down_w[expert]


class Model(nn.Module):
    """Residual layers; all parameters from one seed."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer(form) for _ in range(LAYERS))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def slots_of(layer: Any, like: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the tensors of this rank's slots beside those of the same experts in a layer with all of them."""
    pairs = []
    for slot, expert in enumerate(layer.exchange.layout.my_experts):
        mine, wanted = layer.held.parts(slot), like.held.parts(expert)
        assert mine.keys() == wanted.keys()
        pairs += [
            (part.of(part.param).detach(), wanted[name].of(wanted[name].param).detach()) for name, part in mine.items()
        ]
    return pairs


def train(rank: int, size: int, form: str, plan: Plan | None, exchange: str) -> dict[str, float]:
    """Train 20 steps beside a dense copy that sees all tokens; return differences, and rows that did not conform."""
    dense, model = Model(form), Model(form)
    apply_expert_parallel(model, mesh(size), plan, exchange=exchange)
    layers, recorder = find_moe_layers(model), RoutingRecorder(EXPERTS)
    recorder.attach(dict(enumerate(layers.values())))
    ours, theirs = (torch.optim.Adam(one.parameters(), lr=1e-2) for one in (model, dense))
    g, most = torch.Generator().manual_seed(1), {"y": 0.0, "norm": 0.0, "rows": 0.0}
    for _ in range(20):
        tokens = [torch.randn(3 * r % 5, HIDDEN, generator=g, dtype=torch.float64) for r in range(size)]
        with Conformance(layers, plan) as watched:
            y = model(tokens[rank])
        most["rows"] += sum(len(verdict.problems) for verdict in watched.verdicts())
        wanted = [dense(x) for x in tokens]
        ours.zero_grad()
        theirs.zero_grad()
        (y * y).sum().backward()
        torch.stack([(one * one).sum() for one in wanted]).sum().backward()
        reduce_gradients(model)
        for param in dense.parameters():  # an expert without tokens moves on by its momentum, packed or listed
            param.grad = torch.zeros_like(param) if param.grad is None else param.grad
        norms = clip_grad_norm_(model, 1.0), nn.utils.clip_grad_norm_(dense.parameters(), 1.0)
        ours.step()
        theirs.step()
        most["norm"] = max(most["norm"], worst([norms]))
        if len(y):
            most["y"] = max(most["y"], worst([(y.detach(), wanted[rank].detach())]))
    check_replicas_equal(model)
    references = find_moe_layers(dense).values()
    pairs = [pair for layer, like in zip(layers.values(), references, strict=True) for pair in slots_of(layer, like)]
    most["weights"] = worst(pairs) if pairs else 0.0
    for module, layer in zip(model.layers, layers.values(), strict=True):
        layout = layer.exchange.layout
        assert module.ep_layout is layout
        assert (module.ep_world_size, module.num_local_experts) == (size, len(layout.my_experts))
        if plan is None:
            assert module.local_expert_start == rank * EXPERTS // size
        if form == "listed":
            assert [name for name, _ in module.experts.named_children()] == [str(i) for i in range(len(module.experts))]
    seen = sum(len(x) for x in tokens[rank : rank + 1])
    most["unseen"] = float(min(record.seen for record in recorder.layers.values()) != 20 * seen)
    return most


@pytest.mark.parametrize(
    ("form", "size", "exchange", "replicas"),
    [
        ("listed", 4, "pairwise", True),
        ("listed", 2, "dedup", False),
        ("packed", 4, "two-level", True),
        ("packed", 3, "pairwise", False),
        ("plain", 2, "dedup", True),
    ],
)
def test_twenty_steps_stay_on_the_dense_trajectory(form: str, size: int, exchange: str, replicas: bool) -> None:
    """fp64, ranks without tokens (rank 0 has none, ever), clipping; without a plan experts are contiguous."""
    plan = plan_with_replicas(size, exchange) if replicas else None
    for most in on_ranks(size, train, form, plan, exchange, timeout_s=PATIENCE_S):
        assert all(error < 1e-9 for error in most.values()), most
