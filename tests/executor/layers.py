"""Random placements, tokens and weights that every rank can make for itself from a seed, for the tests of the executor.

Shapes: R ranks, E experts, H hidden, I intermediate, T tokens of one rank, K top_k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from executor.experts import PackedExperts
from executor.layout import LayerLayout
from executor.reference import dense_moe
from planner.placement import IntArray, Placement, ReplicaChoice


@dataclass(frozen=True)
class Case:
    """One layer and one step.

    Attributes:
        tokens: T of each rank.
        routing: "random" (with masked ids and ids that stand twice), "one" (all to expert 0), or "all" (top_k = E).
        replicas: chance that an expert has a copy on a rank, beside the one it must have; 0 for a plain partition.
        domains: into how many domains the ranks fall.
        choice: how copies are chosen.

    """

    tokens: tuple[int, ...]
    experts: int = 7
    top_k: int = 3
    hidden: int = 8
    intermediate: int = 12
    routing: str = "random"
    replicas: float = 0.4
    domains: int = 1
    contiguous: bool = False
    seed: int = 0
    choice: ReplicaChoice = "shares"


def placement_of(case: Case) -> tuple[Placement, IntArray, IntArray]:
    """Return a placement with uneven slots and shares, the domain of every rank, and its rail."""
    R, E, rng = len(case.tokens), case.experts, np.random.default_rng(case.seed)
    domain_R = np.sort(np.arange(R) % case.domains)
    rail_R = np.concatenate([np.arange((domain_R == d).sum()) for d in range(case.domains)])
    if case.contiguous:
        edges = [r * E // R for r in range(R + 1)]
        slots = [list(range(a, b)) for a, b in pairwise(edges)]
        return Placement.equal_shares(slots, E, case.domains), domain_R, rail_R
    has_ER = rng.random((E, R)) < case.replicas
    has_ER[np.arange(E), rng.integers(0, R, E)] = True
    slots = [rng.permutation(np.flatnonzero(has_E)).tolist() for has_E in has_ER.T]
    placement = Placement.equal_shares(slots, E, case.domains)
    raw_DS = rng.random(placement.share_DS.shape) * (rng.random(placement.share_DS.shape) < 0.8) + 1e-9
    total_DE = np.stack([np.bincount(placement.expert_S, raw_S, E) for raw_S in raw_DS])
    placement = placement.with_shares(raw_DS / total_DE[:, placement.expert_S])
    return replace(placement, replica_choice=case.choice), domain_R, rail_R


def layout_of(case: Case, rank: int) -> LayerLayout:
    """Return the layout of a rank."""
    return LayerLayout(*placement_of(case), rank)


def ids_of(case: Case) -> list[Tensor]:
    """Return the expert ids [T, K] of every rank's tokens."""
    rng, E, K = np.random.default_rng(case.seed + 1), case.experts, case.top_k
    if case.routing == "one":
        return [torch.zeros(T, K, dtype=torch.int64) for T in case.tokens]
    if case.routing == "all":
        return [torch.arange(E).repeat(T, 1) for T in case.tokens]
    return [torch.from_numpy(rng.integers(-1, E, (T, K))) for T in case.tokens]


@dataclass(frozen=True)
class Step:
    """Weights and tokens of all ranks: x [T, H] and weights [T, K] by rank, gate_up [E, 2I, H], down [E, H, I]."""

    x: list[Tensor]
    weights: list[Tensor]
    ids: list[Tensor]
    grad: list[Tensor]
    gate_up: Tensor
    down: Tensor


def step_of(case: Case, dtype: torch.dtype, device: str = "cpu") -> Step:
    """Return the step; the same on every rank that asks, on every device."""
    g = torch.Generator().manual_seed(case.seed)
    E, H, ids = case.experts, case.hidden, ids_of(case)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(device, dtype)

    return Step(
        x=[normal(T, H) for T in case.tokens],
        weights=[normal(T, one.shape[1]).abs() for T, one in zip(case.tokens, ids, strict=True)],
        ids=[one.to(device) for one in ids],
        grad=[normal(T, H) for T in case.tokens],
        gate_up=normal(E, 2 * case.intermediate, H) / H**0.5,
        down=normal(E, H, case.intermediate) / case.intermediate**0.5,
    )


@dataclass(frozen=True)
class Answer:
    """Output and gradients: of one rank, those of its own tokens, and of each expert, those of all tokens."""

    y: Tensor
    x: Tensor
    weights: Tensor
    gate_up: Tensor
    down: Tensor


def dense_answers(step: Step) -> list[Answer]:
    """Return what a single process computes, rank by rank; gradients of experts are summed over the ranks' losses."""
    gate_up, down = step.gate_up.clone().requires_grad_(), step.down.clone().requires_grad_()
    parts = []
    for rank, (ids, grad) in enumerate(zip(step.ids, step.grad, strict=True)):
        x, weights = step.x[rank].clone().requires_grad_(), step.weights[rank].clone().requires_grad_()
        y = dense_moe(x, ids, weights, gate_up, down)
        dx, dw = torch.autograd.grad(y, (x, weights), grad, retain_graph=True)
        y.backward(grad, inputs=(gate_up, down))
        parts.append((y.detach(), dx, dw))
    assert gate_up.grad is not None
    assert down.grad is not None
    return [Answer(y, dx, dw, gate_up.grad, down.grad) for y, dx, dw in parts]


def experts_of(step: Step, logical: list[int]) -> PackedExperts:
    """Return the experts of a rank with these slots."""
    pick = torch.tensor(logical, dtype=torch.int64, device=step.gate_up.device)
    return PackedExperts.of(step.gate_up[pick].clone().requires_grad_(), step.down[pick].clone().requires_grad_())


def relative(found: Tensor, wanted: Tensor, among: Sequence[Tensor] = ()) -> float:
    """Return the largest error relative to the largest entry, also of the tensors that this one is `among`.

    The gradient of a rank's one token may cancel to next to nothing: its rounding is that of the other ranks' size.
    """
    if not wanted.numel():
        return 0.0
    scale = max(float(one.double().abs().max()) for one in (wanted, *among) if one.numel())
    return float((found.double() - wanted.double()).abs().max()) / max(scale, 1e-30)
