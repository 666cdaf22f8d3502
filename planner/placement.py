"""The placement of one layer: which rank holds which expert in which slot, and who uses which copy.

Shapes: S slots in use, sorted by rank; D source domains; E experts; R ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from topologies.errors import BadInput

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

ReplicaChoice = Literal["shares", "cover"]
REPLICA_CHOICES: tuple[ReplicaChoice, ...] = ("shares", "cover")
SHARE_TOLERANCE = 1e-6  # shares of an expert sum to one within this


@dataclass(frozen=True, eq=False)
class Placement:
    """Slots and shares of one layer.

    Attributes:
        expert_S: logical expert in each slot.
        rank_S: rank of each slot, ascending; slots of a rank stand in slot order.
        share_DS: fraction of source domain d's tokens for `expert_S[s]` that slot s serves.
        num_experts: E; every expert has at least one slot.
        num_ranks: R; a rank may hold no slot at all.
        replica_choice: how a token picks a copy: as `shares` say, or a `cover` of the ranks and domains that it visits
            (`planner.cover_choice`).

    """

    expert_S: IntArray
    rank_S: IntArray
    share_DS: FloatArray
    num_experts: int
    num_ranks: int
    replica_choice: ReplicaChoice = "shares"

    @classmethod
    def equal_shares(cls, slots: Sequence[Sequence[int]], num_experts: int, num_domains: int) -> Placement:
        """Build a placement from `slots[rank] = [expert, ...]` in which every copy serves an equal share."""
        expert_S = np.array([expert for row in slots for expert in row], dtype=np.int64)
        rank_S = np.repeat(np.arange(len(slots)), [len(row) for row in slots])
        return cls._with_equal_shares(expert_S, rank_S, num_experts, len(slots), num_domains)

    @classmethod
    def of_slots(
        cls, expert_S: IntArray, rank_S: IntArray, num_experts: int, num_ranks: int, num_domains: int
    ) -> Placement:
        """Build a placement with equal shares from flat arrays; slots are put in order of rank."""
        order = np.argsort(rank_S, kind="stable")
        return cls._with_equal_shares(expert_S[order], rank_S[order], num_experts, num_ranks, num_domains)

    @classmethod
    def _with_equal_shares(
        cls, expert_S: IntArray, rank_S: IntArray, num_experts: int, num_ranks: int, num_domains: int
    ) -> Placement:
        share_S = 1.0 / np.bincount(expert_S, minlength=num_experts)[expert_S]
        return cls(expert_S, rank_S, np.repeat(share_S[None], num_domains, axis=0), num_experts, num_ranks)

    @property
    def num_domains(self) -> int:
        """D, the number of source domains that the shares distinguish."""
        return len(self.share_DS)

    @cached_property
    def copies_E(self) -> IntArray:
        """Return the number of slots of each expert."""
        return np.bincount(self.expert_S, minlength=self.num_experts)

    @cached_property
    def slots_R(self) -> IntArray:
        """Return the number of slots in use on each rank."""
        return np.bincount(self.rank_S, minlength=self.num_ranks)

    def slots(self) -> list[list[int]]:
        """Return `slots[rank] = [expert, ...]` in slot order."""
        experts, ends = self.expert_S.tolist(), np.cumsum(self.slots_R).tolist()
        return [experts[first:end] for first, end in zip([0, *ends], ends, strict=False)]

    def with_shares(self, share_DS: FloatArray) -> Placement:
        """Return the same slots with other shares."""
        return replace(self, share_DS=share_DS)

    def with_equal_shares(self) -> Placement:
        """Return the same slots, each copy of an expert serving an equal part."""
        share_S = 1.0 / self.copies_E[self.expert_S]
        return self.with_shares(np.tile(share_S, (self.num_domains, 1)))

    def without_duplicates(self) -> Placement:
        """Merge the slots of one expert on one rank into one slot that serves their joint share."""
        key_S = self.rank_S * self.num_experts + self.expert_S
        if not _has_repeats(key_S):
            return self
        _, first_U, slot_of_S = np.unique(key_S, return_index=True, return_inverse=True)
        share_DU = sums_by(self.share_DS, slot_of_S, len(first_U))
        order = np.argsort(first_U)  # keep the slot order
        kept = first_U[order]
        return Placement(self.expert_S[kept], self.rank_S[kept], share_DU[:, order], self.num_experts, self.num_ranks)

    def without_idle_slots(self) -> Placement:
        """Drop the slots that serve nobody, but never the last slot of an expert."""
        idle_S = self.share_DS.max(axis=0) <= 0.0
        if not idle_S.any():
            return self
        keep_S = ~idle_S
        return Placement(
            self.expert_S[keep_S], self.rank_S[keep_S], self.share_DS[:, keep_S], self.num_experts, self.num_ranks
        )


def sums_by(value_XS: FloatArray, key_S: IntArray, size: int) -> FloatArray:
    """Return the sums [X, size] of the columns of `value_XS` that share a key in 0..size-1."""
    X = len(value_XS)
    cell_SX = key_S[:, None] * X + np.arange(X)
    sums: FloatArray = np.bincount(cell_SX.ravel(), value_XS.T.ravel(), size * X).astype(float, copy=False)
    return sums.reshape(size, X).T


def _has_repeats(key_S: IntArray) -> bool:
    sorted_S = np.sort(key_S)
    return bool((sorted_S[1:] == sorted_S[:-1]).any())


def check_placement(placement: Placement, slots_R: IntArray | None = None, *, where: str = "placement") -> None:
    """Check every invariant of a placement from its definition; raise BadInput that names the first one broken.

    Ids in range, every expert somewhere, never two slots of one expert on one rank, no more slots on a rank than
    `slots_R` allows, shares finite, in [0, 1], and summing to one for every source domain and expert.
    """
    E = placement.num_experts
    expert_S, rank_S, share_DS = placement.expert_S, placement.rank_S, placement.share_DS
    if expert_S.size and (expert_S.min() < 0 or expert_S.max() >= E):
        bad = int(expert_S.min() if expert_S.min() < 0 else expert_S.max())
        raise BadInput(f"{where}: expert {bad} is not in 0..{E - 1}")
    missing = np.flatnonzero(placement.copies_E == 0)
    if missing.size:
        raise BadInput(f"{where}: expert {missing[0]} has no slot ({missing.size} of {E} experts have none)")
    key_S = rank_S * E + expert_S
    if _has_repeats(key_S):
        keys, counts = np.unique(key_S, return_counts=True)
        rank, expert = divmod(int(keys[counts.argmax()]), E)
        raise BadInput(f"{where}: expert {expert} stands {counts.max()} times on rank {rank}; one copy a rank at most")
    if slots_R is not None and (placement.slots_R > slots_R).any():
        rank = int((placement.slots_R - slots_R).argmax())
        raise BadInput(f"{where}: rank {rank} holds {placement.slots_R[rank]} slots, more than its {slots_R[rank]}")
    if not ((share_DS >= 0) & (share_DS <= 1 + SHARE_TOLERANCE)).all():  # NaN is neither
        slot = int(np.argmin(np.where(np.isfinite(share_DS), np.minimum(share_DS, 1 - share_DS), -np.inf).min(axis=0)))
        raise BadInput(f"{where}: a share of expert {expert_S[slot]} on rank {rank_S[slot]} is not within [0, 1]")
    total_DE = sums_by(share_DS, expert_S, E)
    if np.abs(total_DE - 1).max() > SHARE_TOLERANCE:
        domain, expert = divmod(int(np.abs(total_DE - 1).argmax()), E)
        raise BadInput(
            f"{where}: the shares of expert {expert} for source domain {domain} sum to {total_DE[domain, expert]:.6g}, "
            "not to 1"
        )


def shares_of(placement: Placement) -> Mapping[int, list[tuple[int, FloatArray]]]:
    """Return, for each expert with several copies, its (rank, share of each source domain) pairs, by rank."""
    table: dict[int, list[tuple[int, FloatArray]]] = {}
    for slot in np.flatnonzero(placement.copies_E[placement.expert_S] > 1):
        entry = (int(placement.rank_S[slot]), placement.share_DS[:, slot])
        table.setdefault(int(placement.expert_S[slot]), []).append(entry)
    return dict(sorted(table.items()))
