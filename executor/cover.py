"""`planner.cover_choice` in torch: the same integers on any device, with no loop over tokens and no host read.

Shapes: E experts, M copies of the most replicated expert, D domains, R ranks, T tokens, K top_k, S slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from planner.placement import IntArray, Placement
from planner.replica_choice import copy_table


@dataclass(frozen=True, eq=False)
class CoverTables:
    """What a source rank needs to cover its tokens, on one device.

    Attributes:
        slot_EM, rank_EM: slot and rank of copy m of each expert; the last copy is repeated to fill the row.
        serves_EM: whether the copy serves any share of the source's domain.
        domain_R: domain of each rank.
        after_R: R - 1 for the source rank, one less for each rank after it, round and round.
        num_domains: D.

    """

    slot_EM: Tensor
    rank_EM: Tensor
    serves_EM: Tensor
    domain_R: Tensor
    after_R: Tensor
    num_domains: int

    @classmethod
    def of(cls, placement: Placement, domain_R: IntArray, rank: int, device: torch.device) -> CoverTables:
        """Build the tables of a source rank."""
        table, R = copy_table(placement, int(domain_R[rank])), placement.num_ranks
        return cls(
            slot_EM=torch.as_tensor(table.slot_EM, device=device),
            rank_EM=torch.as_tensor(placement.rank_S[table.slot_EM], device=device),
            serves_EM=torch.as_tensor(table.serves_EM, device=device),
            domain_R=torch.as_tensor(domain_R, device=device),
            after_R=torch.as_tensor(R - 1 - (np.arange(R) - rank) % R, device=device),
            num_domains=int(domain_R.max()) + 1,
        )


def cover_slots(tables: CoverTables, ids_TK: Tensor, slot_TK: Tensor) -> Tensor:
    """Return the slot [T, K] of each pair where `shares` chose `slot_TK`; masked pairs (id below 0) keep theirs."""
    cover = _Cover(tables, ids_TK, slot_TK)
    for _ in range(ids_TK.shape[1]):
        cover.take_copies_on_visited_ranks()
        cover.visit_one_more_rank()
    cover.take_copies_on_visited_ranks()
    return cover.slot_TK


class _Cover:
    """See `planner.cover_choice`; a rank R that nobody is on stands for pairs that are masked or served."""

    def __init__(self, tables: CoverTables, ids_TK: Tensor, slot_TK: Tensor) -> None:
        T, R = len(ids_TK), len(tables.domain_R)
        expert_TK = ids_TK.clamp(min=0).long()
        self.tables, self.slot_TK, self.num_ranks = tables, slot_TK, R
        self.waits_TK = (ids_TK >= 0) & (tables.serves_EM.sum(1) > 1)[expert_TK]
        self.slot_TKM, self.rank_TKM = tables.slot_EM[expert_TK], tables.rank_EM[expert_TK]
        self.serves_TKM = tables.serves_EM[expert_TK]
        M = self.slot_TKM.shape[2]
        place_M = torch.arange(M, device=ids_TK.device)
        is_first_TKM = self.slot_TKM == slot_TK[:, :, None]
        first_TK = torch.where(is_first_TKM, place_M, M).amin(2).clamp(max=M - 1)
        self.turn_TKM = (place_M - first_TK[:, :, None]) % M
        self.wanted_TK = self.rank_TKM.gather(2, first_TK[:, :, None])[:, :, 0]
        fixed_TK = torch.where(~self.waits_TK & (ids_TK >= 0), self.wanted_TK, R)
        self.visited_TR = torch.zeros(T, R + 1, dtype=torch.bool, device=ids_TK.device).scatter_(1, fixed_TK, True)

    def take_copies_on_visited_ranks(self) -> None:
        """Give every waiting expert that has a copy on a visited rank that copy."""
        (T, K, M), R = self.slot_TKM.shape, self.num_ranks
        visited_TKM = self.visited_TR[:, :R].gather(1, self.rank_TKM.view(T, K * M)).view(T, K, M)
        turn_TK, copy_TK = torch.where(visited_TKM & self.serves_TKM, self.turn_TKM, M).min(2)
        found_TK = self.waits_TK & (turn_TK < M)
        taken_TK = self.slot_TKM.gather(2, copy_TK[:, :, None])[:, :, 0]
        self.slot_TK = torch.where(found_TK, taken_TK, self.slot_TK)
        self.waits_TK = self.waits_TK & ~found_TK

    def visit_one_more_rank(self) -> None:
        """Choose one more rank for every token with an expert that waits."""
        (T, K, M), R, tables = self.slot_TKM.shape, self.num_ranks, self.tables
        open_TKM = self.serves_TKM & self.waits_TK[:, :, None]
        gain_TR = self._counts(torch.where(open_TKM, self.rank_TKM, R).view(T, K * M))
        wanted_TR = self._counts(torch.where(self.waits_TK, self.wanted_TK, R)) > 0
        domain_TR = tables.domain_R.expand(T, R)
        visited_TD = torch.zeros(T, tables.num_domains, dtype=torch.int64, device=domain_TR.device)
        visited_TD.scatter_add_(1, domain_TR, self.visited_TR[:, :R].long())
        near_TR = visited_TD.gather(1, domain_TR) > 0
        score_TR = ((near_TR.long() * (K + 1) + gain_TR) * 2 + wanted_TR) * R + tables.after_R
        best_T = torch.where(gain_TR > 0, score_TR, -1).argmax(1)
        best_T = torch.where(self.waits_TK.any(1), best_T, R)
        self.visited_TR = self.visited_TR.scatter(1, best_T[:, None], True)

    def _counts(self, rank_TX: Tensor) -> Tensor:
        """Return how often each rank [T, R] stands in a row; R is nobody."""
        counts = torch.zeros(len(rank_TX), self.num_ranks + 1, dtype=torch.int64, device=rank_TX.device)
        return counts.scatter_add_(1, rank_TX, torch.ones_like(rank_TX))[:, :-1]
