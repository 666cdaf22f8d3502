"""How the ranks of a two-level exchange agree on sizes: two small all-to-alls, then one host read for both hops.

Shapes: R ranks, S slots of all ranks; U ranks and V slots of a domain; F ranks for which this one forwards.

A source tells each of its forwarders: rows to the forwarder, then for the forwarder's domain rows by rank and pairs by
slot. The forwarder adds these up over its sources, and tells each rank of its domain: rows to it, and pairs by slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from executor.exchange.distinct_hop import HopSizes
from executor.host import to_device
from executor.layout import LayerLayout
from executor.transport import Transport


@dataclass(frozen=True)
class AgreedSizes:
    """Sizes of the hop between domains, of the hop inside the domain, and the rows for each slot of this rank."""

    outer: HopSizes
    inner: HopSizes
    rows_by_slot: list[int]


class TwoLevelSizes:
    """The agreement of one layer."""

    def __init__(self, layout: LayerLayout, transport: Transport) -> None:
        """Store where the experts are, and the ranks."""
        self.layout, self.transport = layout, transport

    @cached_property
    def _ranks_of_domain(self) -> list[list[int]]:
        return [np.flatnonzero(self.layout.domain_R == d).tolist() for d in range(int(self.layout.domain_R.max()) + 1)]

    @cached_property
    def _my_ranks(self) -> list[int]:
        return self._ranks_of_domain[int(self.layout.domain_R[self.layout.rank])]

    def _slots_of(self, rank: int) -> range:
        first = self.layout.first_slot_R[rank]
        return range(first, first + self.layout.slots_R[rank])

    @cached_property
    def _my_slots(self) -> list[int]:
        return [slot for rank in self._my_ranks for slot in self._slots_of(rank)]

    @cached_property
    def _clients(self) -> list[int]:
        """Ranks for which this one forwards, itself included."""
        my_domain = int(self.layout.domain_R[self.layout.rank])
        return np.flatnonzero(self.layout.peer_RD[:, my_domain] == self.layout.rank).tolist()

    @cached_property
    def _outer_telling(self) -> tuple[list[int], list[int]]:
        """Return what to pick from [rows by forwarder, rows by rank, pairs by slot], and how much for each rank."""
        R = self.layout.num_ranks
        picks: dict[int, list[int]] = {rank: [] for rank in range(R)}
        for ranks in self._ranks_of_domain:
            forwarder = int(self.layout.peer_RD[self.layout.rank][int(self.layout.domain_R[ranks[0]])])
            slots = [slot for rank in ranks for slot in self._slots_of(rank)]
            picks[forwarder] = [forwarder, *(R + rank for rank in ranks), *(2 * R + slot for slot in slots)]
        return [entry for rank in range(R) for entry in picks[rank]], [len(picks[rank]) for rank in range(R)]

    @cached_property
    def _inner_telling(self) -> tuple[list[int], list[int]]:
        """Return what to pick from [rows by rank, pairs by slot] of this domain, and how much for each rank."""
        picks: dict[int, list[int]] = {rank: [] for rank in range(self.layout.num_ranks)}
        place_of = {slot: len(self._my_ranks) + i for i, slot in enumerate(self._my_slots)}
        for place, rank in enumerate(self._my_ranks):
            picks[rank] = [place, *(place_of[slot] for slot in self._slots_of(rank))]
        return [entry for pick in picks.values() for entry in pick], [len(pick) for pick in picks.values()]

    def agree(self, forwarded_R: Tensor, visits_R: Tensor, count_S: Tensor) -> AgreedSizes:
        """Return the sizes of both hops.

        Args:
            forwarded_R: rows that this rank sends to each forwarder.
            visits_R: tokens of this rank that visit each rank.
            count_S: pairs of this rank for each slot.

        """
        U, V, mine = len(self._my_ranks), len(self._my_slots), self.layout.slots_R[self.layout.rank]
        told = torch.cat([forwarded_R, visits_R, count_S])
        heard_F = self._tell("sizes between domains", told, self._outer_telling, self._clients, 1 + U + V)
        total = heard_F[:, 1:].sum(dim=0)
        heard_U = self._tell("sizes inside the domain", total, self._inner_telling, self._my_ranks, 1 + mine)
        flat = torch.cat([told, heard_F.reshape(-1), heard_U.reshape(-1)]).cpu().numpy()
        told_host, clients, inside = np.split(flat, [len(told), len(told) + heard_F.numel()])
        return self._read(told_host, clients.reshape(-1, 1 + U + V), inside.reshape(U, 1 + mine))

    def _tell(
        self, call: str, told: Tensor, telling: tuple[list[int], list[int]], sources: list[int], width: int
    ) -> Tensor:
        picks, sends = telling
        receives = [width if rank in sources else 0 for rank in range(self.layout.num_ranks)]
        picked = told[to_device(picks, told.device)]
        return self.transport.all_to_all(call, picked, sends, receives).view(len(sources), width)

    def _read(self, told: np.ndarray, clients_FX: np.ndarray, inside_UX: np.ndarray) -> AgreedSizes:
        """Read both hops' sizes off what was told and heard, on the host."""
        R, U = self.layout.num_ranks, len(self._my_ranks)
        pairs_out_R, rows_in_R, pairs_in_R = (np.zeros(R, dtype=np.int64) for _ in range(3))
        forwarder_S = self.layout.peer_RD[self.layout.rank][self.layout.domain_R[self.layout.placement.rank_S]]
        np.add.at(pairs_out_R, forwarder_S, told[2 * R :])
        rows_in_R[self._clients] = clients_FX[:, 0]
        pairs_in_R[self._clients] = clients_FX[:, 1 + U :].sum(axis=1)
        outer = HopSizes(told[:R].tolist(), rows_in_R.tolist(), pairs_out_R.tolist(), pairs_in_R.tolist())
        rows_up_R, pairs_up_R, rows_down_R, pairs_down_R = (np.zeros(R, dtype=np.int64) for _ in range(4))
        rows_up_R[self._my_ranks] = clients_FX[:, 1 : 1 + U].sum(axis=0)
        np.add.at(pairs_up_R, self.layout.placement.rank_S[self._my_slots], clients_FX[:, 1 + U :].sum(axis=0))
        rows_down_R[self._my_ranks] = inside_UX[:, 0]
        pairs_down_R[self._my_ranks] = inside_UX[:, 1:].sum(axis=1)
        inner = HopSizes(rows_up_R.tolist(), rows_down_R.tolist(), pairs_up_R.tolist(), pairs_down_R.tolist())
        return AgreedSizes(outer, inner, inside_UX[:, 1:].sum(axis=0).tolist())
