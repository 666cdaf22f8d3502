"""LayerLayout: the placement of one layer as the index tables that one rank computes with.

Shapes: R ranks, S slots of all ranks, E experts, M copies of the most replicated expert, T tokens, K top_k.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from executor.cover import CoverTables, cover_slots
from planner.placement import IntArray, Placement, check_placement
from planner.replica_choice import UNIT, copy_table, phase_E
from topologies import BadInput, rail_peers

if TYPE_CHECKING:
    from planner import Plan  # needs more than a bare GPU machine has


@dataclass(frozen=True, eq=False)
class Tables:
    """The index tables of a layout on one device.

    Attributes:
        slot_EM, inner_edge_EM, phase_E: see `planner.replica_choice`; the last edge of each row is left out.
        rank_S: rank of each slot; R stands after the last one, for masked pairs.
        forwarder_S: in a two-level exchange, the rank through which pairs of this rank reach each slot; then R.
        cover: for the replica choice of that name, else None.

    """

    slot_EM: Tensor
    inner_edge_EM: Tensor
    phase_E: Tensor
    rank_S: Tensor
    forwarder_S: Tensor
    cover: CoverTables | None


@dataclass(frozen=True, eq=False)
class LayerLayout:
    """Where the experts of one layer are, seen from one rank.

    Attributes:
        placement: slots and shares of the layer; slots are numbered over all ranks, in order of ranks.
        domain_R, rail_R: where the ranks sit.
        rank: this rank.
        layer: index of the layer in the model, for messages.

    """

    placement: Placement
    domain_R: IntArray
    rail_R: IntArray
    rank: int
    layer: int = 0

    @property
    def num_ranks(self) -> int:
        """R."""
        return self.placement.num_ranks

    @property
    def num_experts(self) -> int:
        """E, logical experts."""
        return self.placement.num_experts

    @property
    def num_slots(self) -> int:
        """S, slots of all ranks."""
        return len(self.placement.rank_S)

    @cached_property
    def slots_R(self) -> list[int]:
        """Slots of each rank."""
        slots: list[int] = self.placement.slots_R.tolist()
        return slots

    @cached_property
    def first_slot_R(self) -> list[int]:
        """Number of each rank's first slot."""
        return [sum(self.slots_R[:rank]) for rank in range(self.num_ranks)]

    @property
    def my_experts(self) -> list[int]:
        """Logical experts of this rank, in slot order."""
        return self.placement.slots()[self.rank]

    @cached_property
    def is_contiguous(self) -> bool:
        """Whether every expert stands once, in order of ids: the layout of plain expert parallelism."""
        return bool(np.array_equal(self.placement.expert_S, np.arange(self.num_experts)))

    @property
    def _covers(self) -> bool:
        """Whether tokens choose copies that they would not by shares."""
        return self.placement.replica_choice == "cover" and self.num_slots > self.num_experts

    @cached_property
    def peer_RD(self) -> IntArray:
        """Rank that forwards for each source rank into each domain, in a two-level exchange."""
        return rail_peers(self.domain_R, self.rail_R)

    def slot_of_pairs(self, ids_TK: Tensor) -> Tensor:
        """Return the slot [T, K] that serves each token-expert pair of this rank; S where the id is masked (-1).

        The same integers as `planner.exact_rows.slots_of_rank`, on any device, without a host read. Where each expert
        has one copy it is a look-up.
        """
        tables = self.tables(ids_TK.device)
        flat_X = ids_TK.reshape(-1).long()
        masked_X = flat_X < 0
        if self.num_slots == self.num_experts:
            slot_X = tables.slot_EM[flat_X.clamp(min=0), 0]
        else:
            slot_X = self._choose(flat_X.clamp(min=0), masked_X, tables)
        slot_TK = slot_X.masked_fill(masked_X, self.num_slots).view(ids_TK.shape)
        return slot_TK if tables.cover is None else cover_slots(tables.cover, ids_TK, slot_TK)

    def _choose(self, expert_X: Tensor, masked_X: Tensor, tables: Tables) -> Tensor:
        """Follow `choose_slots`, pair by pair; a masked pair counts as a pair of the expert E, which nobody reads."""
        E = self.num_experts
        sorted_X, order = torch.sort(expert_X.masked_fill(masked_X, E), stable=True)
        count_E = torch.zeros(E + 1, dtype=torch.int64, device=expert_X.device)
        count_E.scatter_add_(0, sorted_X, torch.ones_like(sorted_X))
        first_E = count_E.cumsum(0) - count_E
        nth_X = torch.arange(len(order), device=expert_X.device) - first_E[sorted_X]
        pairs_X, expert_X = count_E[sorted_X], sorted_X.clamp(max=E - 1)
        place_X = (nth_X * UNIT + tables.phase_E[expert_X] * pairs_X) % (pairs_X * UNIT)
        copy_X = (pairs_X[:, None] * tables.inner_edge_EM[expert_X] <= place_X[:, None]).sum(1)
        return torch.empty_like(order).scatter_(0, order, tables.slot_EM[expert_X, copy_X])

    def tables(self, device: torch.device) -> Tables:
        """Return the tables on a device; made once for each."""
        if device not in self._tables:
            self._tables[device] = self._make_tables(device)
        return self._tables[device]

    @cached_property
    def _tables(self) -> dict[torch.device, Tables]:
        return {}

    def _make_tables(self, device: torch.device) -> Tables:
        copies = copy_table(self.placement, int(self.domain_R[self.rank]))
        rank_S = self.placement.rank_S
        forwarder_S = self.peer_RD[self.rank][self.domain_R[rank_S]]
        return Tables(
            slot_EM=torch.as_tensor(copies.slot_EM, device=device),
            inner_edge_EM=torch.as_tensor(copies.edge_EM[:, :-1], device=device),
            phase_E=torch.as_tensor(phase_E(self.rank, self.num_experts), device=device),
            rank_S=torch.as_tensor(np.append(rank_S, self.num_ranks), device=device),
            forwarder_S=torch.as_tensor(np.append(forwarder_S, self.num_ranks), device=device),
            cover=CoverTables.of(self.placement, self.domain_R, self.rank, device) if self._covers else None,
        )

    def digest(self) -> str:
        """Return a hash of what all ranks must agree on: slots, shares, choice of copies, and where the ranks sit."""
        parts = (self.placement.expert_S, self.placement.rank_S, self.placement.share_DS, self.domain_R, self.rail_R)
        text = f"{self.layer} {self.num_experts} {self.num_ranks} {self.placement.replica_choice}".encode()
        return hashlib.sha256(text + b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def plan_layouts(plan: Plan, rank: int) -> dict[int, LayerLayout]:
    """Return the layouts of all layers of a plan for one rank, by their index in the model.

    Raises BadInput where the plan has no such rank.
    """
    if not 0 <= rank < plan.num_ranks:
        raise BadInput(f"rank {rank} is not in 0..{plan.num_ranks - 1}, the ranks of the plan ({plan.cluster.name})")
    domain_R, rail_R = plan.domain_of_rank, plan.rail_of_rank
    return {
        entry.layer: LayerLayout(plan.placement(index), domain_R, rail_R, rank, entry.layer)
        for index, entry in enumerate(plan.layers)
    }


def contiguous_layout(num_experts: int, num_ranks: int, rank: int, layer: int = 0) -> LayerLayout:
    """Return the layout of plain expert parallelism: rank r holds experts [r * E / R, (r + 1) * E / R).

    The ranks are taken to share one domain. Where R does not divide E, the slices differ by one expert.
    """
    edges = [rank * num_experts // num_ranks for rank in range(num_ranks + 1)]
    slots = [range(first, last) for first, last in pairwise(edges)]
    placement = Placement.equal_shares(slots, num_experts, num_domains=1)
    check_placement(placement, where=f"layer {layer}")
    return LayerLayout(placement, np.zeros(num_ranks, dtype=np.int64), np.arange(num_ranks), rank, layer)
