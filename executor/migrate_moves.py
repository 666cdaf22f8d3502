"""Who sends which expert to whom when a layer goes from one layout to another.

Shapes: R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from executor.layout import LayerLayout
from planner.migrate import Move


@dataclass(frozen=True)
class Moves:
    """What changes in one layer.

    Attributes:
        fetched: experts that travel, each from one rank that has it, by rank and slot.
        kept_R: for every rank, the slots (old, new) of the experts that it keeps.

    """

    fetched: tuple[Move, ...]
    kept_R: tuple[tuple[tuple[int, int], ...], ...]

    def sends(self, old: LayerLayout) -> list[list[int]]:
        """Return, for every rank, the old slots of `old.rank` from which it fetches, in order of its new slots."""
        mine = {expert: slot for slot, expert in enumerate(old.my_experts)}
        to: list[list[int]] = [[] for _ in self.kept_R]
        for move in self.fetched:
            if move.source == old.rank:
                to[move.rank].append(mine[move.expert])
        return to

    def receives(self, rank: int) -> list[list[int]]:
        """Return, for every source, the new slots of `rank` that it fills."""
        slots: list[list[int]] = [[] for _ in self.kept_R]
        for move in self.fetched:
            if move.rank == rank:
                slots[move.source].append(move.slot)
        return slots


def moves_between(old: LayerLayout, new: LayerLayout) -> Moves:
    """Return the moves from one layout of a layer to another; the same on every rank.

    An expert comes from the nearest rank that has it: of the own domain, else of the own rail, else any; of equally
    near ones from the one that sends the fewest in this layer. What has the least choice chooses first.
    """
    before, after = old.placement.slots(), new.placement.slots()
    holders: dict[int, list[int]] = {}
    for rank, row in enumerate(before):
        for expert in row:
            holders.setdefault(expert, []).append(rank)
    slot_of = [{expert: slot for slot, expert in enumerate(row)} for row in before]
    kept_R = tuple(
        tuple((slot_of[rank][expert], slot) for slot, expert in enumerate(row) if expert in slot_of[rank])
        for rank, row in enumerate(after)
    )
    wanted = [
        (rank, slot, expert, _nearest(holders[expert], rank, new))
        for rank, row in enumerate(after)
        for slot, expert in enumerate(row)
        if expert not in slot_of[rank]
    ]
    sent = [0] * len(before)
    fetched = []
    for rank, slot, expert, sources in sorted(wanted, key=lambda one: (len(one[3]), one[0], one[1])):
        source = min(sources, key=lambda one: (sent[one], one))
        sent[source] += 1
        fetched.append(Move(new.layer, expert, source, rank, slot))
    return Moves(tuple(sorted(fetched, key=lambda move: (move.rank, move.slot))), kept_R)


def _nearest(holders: list[int], rank: int, layout: LayerLayout) -> list[int]:
    """Return those of the holders that are nearest to a rank."""

    def distance(other: int) -> int:
        if layout.domain_R[other] == layout.domain_R[rank]:
            return 0
        return 1 if layout.rail_R[other] == layout.rail_R[rank] else 2

    least = min(map(distance, holders))
    return [one for one in holders if distance(one) == least]
