"""Capacity: how many pairs of this rank's tokens an expert takes, and which pairs go where there are more.

A dropped pair gets id -1, so that it does not travel, and weight 0; the other weights of its token stay as they are.

Shapes: T tokens of this rank, K top_k, E experts, X = T * K token-expert pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from executor.exchange.row_sums import counts, starts
from topologies.errors import BadInput

Policy = Literal["position", "probability"]


class Kept(NamedTuple):
    """What is left of the routing.

    Attributes:
        ids_TK: expert ids, -1 where dropped.
        weights_TK: routing weights, 0 where dropped.
        dropped_E: int64, pairs of each expert that were dropped.

    """

    ids_TK: Tensor
    weights_TK: Tensor
    dropped_E: Tensor


@dataclass(frozen=True)
class Capacity:
    """A limit on the pairs of each expert, the same for all.

    Attributes:
        factor: capacity over the mean number of pairs of an expert (GShard, Switch: 1.0 to 2.0).
        policy: which pairs stay. "position": the first, in order of tokens, then of k. "probability": those of the
            largest weight; of equal ones the first.

    """

    factor: float
    policy: Policy = "position"

    def __post_init__(self) -> None:
        """Refuse a factor that leaves nothing, and an unknown policy."""
        if not 0.0 < self.factor < math.inf:
            raise BadInput(f"capacity factor is {self.factor}; it must be a positive number")
        if self.policy not in ("position", "probability"):
            raise BadInput(f"drop policy is {self.policy!r}; known: position, probability")

    def limit(self, num_tokens: int, top_k: int, num_experts: int) -> int:
        """Return the pairs that an expert takes: ceil(T * K / E * factor)."""
        return math.ceil(num_tokens * top_k / num_experts * self.factor)

    def drop(self, ids_TK: Tensor, weights_TK: Tensor, num_experts: int) -> Kept:
        """Return the routing without the pairs over the limit; ids of -1 are no pairs."""
        T, K = ids_TK.shape
        limit = self.limit(T, K, num_experts)
        expert_X = ids_TK.reshape(-1).masked_fill(ids_TK.reshape(-1) < 0, num_experts)
        order_X = self._order(expert_X, weights_TK.detach().reshape(-1))
        sorted_X = expert_X[order_X]
        count_E = counts(expert_X, num_experts + 1)
        nth_X = torch.arange(len(sorted_X), device=sorted_X.device) - starts(count_E)[sorted_X]
        late_X = (nth_X >= limit) & (sorted_X < num_experts)
        over_X = torch.empty_like(late_X).scatter_(0, order_X, late_X)
        over_TK = over_X.view(ids_TK.shape)
        dropped_E = (count_E[:num_experts] - limit).clamp(min=0)
        return Kept(ids_TK.masked_fill(over_TK, -1), weights_TK.masked_fill(over_TK, 0.0), dropped_E)

    def _order(self, expert_X: Tensor, weight_X: Tensor) -> Tensor:
        """Return the pairs in order of experts and, within one, of who stays first."""
        if self.policy == "position":
            return expert_X.argsort(stable=True)
        by_weight_X = weight_X.argsort(stable=True, descending=True)
        return by_weight_X[expert_X[by_weight_X].argsort(stable=True)]


def count_ids(ids: Tensor, num_experts: int) -> Tensor:
    """Return int64 [E], how often each id stands in `ids`; -1 is not counted, and nothing is read from the device."""
    ids_X = ids.reshape(-1).long()
    return counts(ids_X.masked_fill(ids_X < 0, num_experts), num_experts + 1)[:num_experts]
