"""Rows of a plan whose tokens cover what they visit: counted over traced or sampled tokens, copy by copy.

The tokens of a workload stand for those of every source class; the first rank of the class chooses their copies as the
executor does (`planner.cover_choice`). Loads are the workload's own counts, split as these tokens split them.

Shapes: L layers, C source classes, E experts, R ranks, D domains, P tokens, K experts a token, S slots of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from planner.cover_choice import cover_slots
from planner.placement import FloatArray, IntArray, Placement
from planner.step_rows import StepSlots, step_tokens
from planner.workload import Workload


def step_slots(workload: Workload, placements: Sequence[Placement]) -> StepSlots:
    """Return the slots of a plan, and what is counted of them, by its replica choice."""
    covers = all(placement.replica_choice == "cover" for placement in placements)
    return CoverSlots(workload, placements) if covers else StepSlots(workload, placements)


class CoverSlots(StepSlots):
    """`StepSlots` where tokens choose copies by `cover`."""

    def __init__(self, workload: Workload, placements: Sequence[Placement]) -> None:
        """Keep the placements beside their slots."""
        super().__init__(workload, placements)
        self._placements = placements

    @property
    def pairs_LCR(self) -> FloatArray:
        """Return the token-expert pairs from one rank of each class to each rank."""
        return self._counted[0]

    @property
    def by_rank_LCR(self) -> FloatArray:
        """Return the rows by distinct rank from one rank of each class."""
        return self._counted[1]

    @property
    def by_domain_LCD(self) -> FloatArray:
        """Return the rows by distinct domain from one rank of each class."""
        return self._counted[2]

    @cached_property
    def _counted(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        workload = self.workload
        L, C, R = workload.num_layers, workload.rows_LCE.shape[1], workload.num_ranks
        domain_R = np.asarray(workload.cluster.domain_of_rank)
        tokens_LC: FloatArray = step_tokens(workload).tokens_LC
        rank_C = np.unique(workload.class_of_rank_R, return_index=True)[1].tolist()
        pairs_LCR, by_rank_LCR = np.zeros((L, C, R)), np.zeros((L, C, R))
        by_domain_LCD = np.zeros((L, C, workload.num_domains))
        for row, placement in enumerate(self._placements):
            for c, rank in enumerate(rank_C):
                ids_PK = self._tokens(row, c)
                slot_PK = cover_slots(placement, ids_PK, rank, domain_R)
                rows_E, share_S = workload.rows_LCE[row, c], placement.share_DS[domain_R[rank]]
                pairs_LCR[row, c] = _pairs_R(placement, slot_PK, rows_E, share_S)
                rank_PK = np.where(slot_PK >= 0, placement.rank_S[slot_PK], -1)
                part = tokens_LC[row, c] / max(len(ids_PK), 1)
                by_rank_LCR[row, c] = part * _distinct(rank_PK, R)
                domain_PK = np.where(rank_PK >= 0, domain_R[rank_PK], -1)
                by_domain_LCD[row, c] = part * _distinct(domain_PK, workload.num_domains)
        return pairs_LCR, by_rank_LCR, by_domain_LCD

    def _tokens(self, row: int, source_class: int) -> IntArray:
        """Return the tokens of a layer that stand for a class; an expert that a token repeats counts once."""
        ids_PK, class_P = self.workload.tokens_LPK[row], self.workload.token_class_P
        ids_PK = np.sort(ids_PK if class_P is None else ids_PK[class_P == source_class], axis=1)
        ids_PK[:, 1:][ids_PK[:, 1:] == ids_PK[:, :-1]] = -1
        return ids_PK


def _pairs_R(placement: Placement, slot_PK: IntArray, rows_E: FloatArray, share_S: FloatArray) -> FloatArray:
    """Deal the rows of each expert to its copies as the tokens were; where none met it, as its shares say."""
    S, E = len(placement.expert_S), placement.num_experts
    met_S = np.bincount(slot_PK[slot_PK >= 0], minlength=S)
    of_expert_S = np.bincount(placement.expert_S, met_S, E)[placement.expert_S]
    part_S = np.where(of_expert_S > 0, met_S / np.maximum(of_expert_S, 1), share_S)
    return np.bincount(placement.rank_S, rows_E[placement.expert_S] * part_S, placement.num_ranks).astype(float)


def _distinct(target_PK: IntArray, num_targets: int) -> IntArray:
    """Return how many tokens visit each target; -1 is none."""
    visited_PT = np.zeros((len(target_PK), num_targets + 1), dtype=bool)
    np.put_along_axis(visited_PT, np.where(target_PK >= 0, target_PK, num_targets), True, axis=1)
    counts_T: IntArray = visited_PT[:, :num_targets].sum(axis=0, dtype=np.int64)
    return counts_T
