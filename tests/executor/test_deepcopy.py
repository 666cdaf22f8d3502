"""Copies of a deployed model, as a running mean of weights needs them: the same ranks, weights of their own."""

from __future__ import annotations

import copy
from typing import Any

import torch

from executor.parallelize import apply_expert_parallel
from tests.executor.adapters.families import model_of
from tests.executor.adapters.steps import PATIENCE_S, mesh, plan_with_replicas
from tests.executor.models import HIDDEN, TinyModel
from tests.executor.ranks import on_ranks


def copied(_rank: int, size: int, kind: str) -> dict[str, bool]:
    """Deploy, copy, halve the weights of the copy; say what holds of the outputs of both."""
    model: Any = TinyModel(8, 2, torch.float64) if kind == "ours" else model_of(kind, torch.float64)
    x = torch.ones(5, HIDDEN, dtype=torch.float64) if kind == "ours" else torch.arange(8)[None]
    apply_expert_parallel(model, mesh(size), plan_with_replicas(size))
    other = copy.deepcopy(model)

    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        mine, its = model(x), other(x)
        return (mine, its) if kind == "ours" else (mine.logits, its.logits)

    before = outputs()
    with torch.no_grad():
        for param in other.parameters():
            param.mul_(0.5)
    after = outputs()
    return {
        "equal at first": torch.equal(*before),
        "the model stays": torch.equal(before[0], after[0]),
        "the copy changes": not torch.equal(before[1], after[1]),
    }


def test_a_copy_has_weights_of_its_own() -> None:
    for kind in ("ours", "mixtral"):
        for found in on_ranks(2, copied, kind, timeout_s=PATIENCE_S):
            assert all(found.values()), (kind, found)
