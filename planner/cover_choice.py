"""Replica choice `cover`: a token uses the copies on ranks, and then in domains, that it visits anyway.

For each token by itself, a greedy set cover. The ranks of its experts with a single copy are visited. Then, until every
expert of it has a copy:

1. Every expert left that has a copy on a visited rank takes it; of several, the one that `shares` chose, or the next
   one after it in order of slots, round and round.
2. One more rank is visited: in a visited domain before others, then the one with copies of the most experts left, then
   one that `shares` chose for one of them, then the next one from the source rank on.

A copy that serves no share of the source's domain is never used. All of it is integers, a pure function of the plan,
the source rank and its routed ids; `executor.cover` does the same in torch, to the row.

Shapes: D domains, E experts, M copies of the most replicated expert, R ranks, T tokens, K top_k.
"""

from __future__ import annotations

import numpy as np

from planner.placement import BoolArray, IntArray, Placement
from planner.replica_choice import choose_slots, copy_table


def cover_slots(placement: Placement, ids_TK: IntArray, source_rank: int, domain_R: IntArray) -> IntArray:
    """Return the slot [T, K] that serves each token-expert pair of one source rank; -1 where the id is masked."""
    source_domain = int(domain_R[source_rank])
    slot_TK = choose_slots(placement, ids_TK, source_rank, source_domain)
    table = copy_table(placement, source_domain)
    waits_TK = (ids_TK >= 0) & (table.serves_EM.sum(axis=1) > 1)[ids_TK]
    if waits_TK.any():
        chosen = np.flatnonzero(waits_TK.any(axis=1))
        cover = _Cover(placement, np.asarray(ids_TK)[chosen], slot_TK[chosen], waits_TK[chosen], source_rank, domain_R)
        slot_TK[chosen] = cover.slots()
    return slot_TK


class _Cover:
    """The choice on its way: which experts of which tokens still wait for a copy, and what is visited."""

    def __init__(
        self,
        placement: Placement,
        ids_TK: IntArray,
        slot_TK: IntArray,
        waits_TK: BoolArray,
        source_rank: int,
        domain_R: IntArray,
    ) -> None:
        table = copy_table(placement, int(domain_R[source_rank]))
        T, R = len(ids_TK), placement.num_ranks
        self.slot_TK, self.waits_TK, self.domain_R = slot_TK, waits_TK, domain_R
        self.token_T, self.wanted_TK = np.arange(T), placement.rank_S[slot_TK]  # -1 is masked, and never waits
        self.slot_TKM = table.slot_EM[ids_TK]
        self.rank_TKM = placement.rank_S[self.slot_TKM]
        self.serves_TKM = table.serves_EM[ids_TK]
        M = self.slot_TKM.shape[2]
        first_TK = (self.slot_TKM == slot_TK[:, :, None]).argmax(axis=2)
        self.turn_TKM = (np.arange(M) - first_TK[:, :, None]) % M
        self.after_R = R - 1 - (np.arange(R) - source_rank) % R  # the source rank first
        self.visited_TR = np.zeros((T, R), dtype=bool)
        fixed_T, fixed_K = np.nonzero(~waits_TK & (slot_TK >= 0))
        self.visited_TR[fixed_T, self.wanted_TK[fixed_T, fixed_K]] = True

    def slots(self) -> IntArray:
        """Return the slot of every pair."""
        for _ in range(self.slot_TK.shape[1]):
            self._take_copies_on_visited_ranks()
            if not self.waits_TK.any():
                break
            self._visit_one_more_rank()
        self._take_copies_on_visited_ranks()
        return self.slot_TK

    def _take_copies_on_visited_ranks(self) -> None:
        M = self.slot_TKM.shape[2]
        here_TKM = self.visited_TR[self.token_T[:, None, None], self.rank_TKM] & self.serves_TKM
        turn_TKM = np.where(here_TKM, self.turn_TKM, M)
        copy_TK = turn_TKM.argmin(axis=2)
        found_TK = self.waits_TK & (turn_TKM.min(axis=2) < M)
        taken_TK = np.take_along_axis(self.slot_TKM, copy_TK[:, :, None], axis=2)[:, :, 0]
        self.slot_TK = np.where(found_TK, taken_TK, self.slot_TK)
        self.waits_TK = self.waits_TK & ~found_TK

    def _visit_one_more_rank(self) -> None:
        T, R = self.visited_TR.shape
        K = self.slot_TK.shape[1]
        open_TKM = self.serves_TKM & self.waits_TK[:, :, None]
        cell_TKM = self.token_T[:, None, None] * R + self.rank_TKM
        gain_TR = np.bincount(cell_TKM[open_TKM], minlength=T * R).reshape(T, R)
        cell_TK = self.token_T[:, None] * R + self.wanted_TK
        wanted_TR = np.bincount(cell_TK[self.waits_TK], minlength=T * R).reshape(T, R) > 0
        visited_TD = np.zeros((T, int(self.domain_R.max()) + 1), dtype=bool)
        token_V, rank_V = np.nonzero(self.visited_TR)
        visited_TD[token_V, self.domain_R[rank_V]] = True
        near_TR = visited_TD[:, self.domain_R]
        score_TR = ((near_TR * (K + 1) + gain_TR) * 2 + wanted_TR) * R + self.after_R
        score_TR = np.where(gain_TR > 0, score_TR, -1)
        best_T = score_TR.argmax(axis=1)
        waiting = self.waits_TK.any(axis=1)
        self.visited_TR[self.token_T[waiting], best_T[waiting]] = True
