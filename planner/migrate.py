"""From one plan to the next: which weights travel, over which links, for how long, and when that has paid back.

A rank that is to hold an expert and does not yet fetches its weights from the nearest rank that does. Layers move one
after the other, all transfers of a layer at once, as engines do it with one layer of room to stage:

    time = sum over layers ( start-up of an exchange + max over links ( bytes / (efficiency * speed) ) )

Shapes: N directed links, P = R * R pairs of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from planner.cost import link_byte_us
from planner.model import MoEModel
from planner.placement import FloatArray, IntArray, Placement
from planner.timing import Exchange, TimingProfile, alpha_us
from topologies import Cluster
from topologies.groups import shared_routes

NOWHERE = -1  # source of an expert that no rank holds: it comes from the checkpoint


@dataclass(frozen=True, eq=False)
class InForce:
    """The plan in force on the ranks that there are: its placements, which may lack experts, and its exchange."""

    placements: Sequence[Placement]
    exchange: Exchange


@dataclass(frozen=True)
class MoveLimit:
    """What moving costs.

    Attributes:
        max_moves: experts that may travel, all layers together; None for any number.
        price_us: microseconds of step time (or imbalance, with that objective) that each move has to save.

    """

    max_moves: int | None = None
    price_us: float = 0.0

    @property
    def is_free(self) -> bool:
        """Return whether any number of moves may be made at no price."""
        return self.max_moves is None and self.price_us == 0.0


ANY_MOVES = MoveLimit()


@dataclass(frozen=True)
class Move:
    """One expert's weights to fetch: into slot `slot` of rank `rank`, from rank `source` (-1: the checkpoint)."""

    layer: int
    expert: int
    source: int
    rank: int
    slot: int


@dataclass(frozen=True, eq=False)
class Migration:
    """What it takes to put a plan into force.

    Attributes:
        moves: by layer, rank and slot.
        slots: slots in use in the new plan, all layers together.
        relabelled: experts that stay on their rank and change their slot there: a copy inside the GPU.
        move_bytes: weights of one expert.
        link_bytes_N: bytes on every link.
        layer_us: predicted time of each layer that has something to fetch, by layer.

    """

    moves: tuple[Move, ...]
    slots: int
    relabelled: int
    move_bytes: int
    link_bytes_N: FloatArray
    layer_us: dict[int, float]

    @property
    def total_bytes(self) -> int:
        """Weights that arrive somewhere."""
        return len(self.moves) * self.move_bytes

    @property
    def time_us(self) -> float:
        """Predicted time of all layers, one after the other; what comes from the checkpoint is not in it."""
        return sum(self.layer_us.values())

    @property
    def lost(self) -> int:
        """Experts that no rank holds any more."""
        return sum(move.source == NOWHERE for move in self.moves)


def pay_back_steps(migration: Migration, old_step_us: float, new_step_us: float) -> float | None:
    """Return the steps after which the time saved makes up for the migration; None where no time is saved."""
    if not migration.moves:
        return 0.0
    saved_us = old_step_us - new_step_us
    return migration.time_us / saved_us if saved_us > 0 else None


def migration(
    old: Sequence[Placement],
    new: Sequence[Placement],
    layers: Sequence[int],
    cluster: Cluster,
    model: MoEModel,
    profile: TimingProfile,
) -> Migration:
    """Return the moves from one placement of each layer to another, on the same ranks.

    Args:
        old: in force; it may lack experts (those of lost ranks).
        new: to come.
        layers: index in the model of each layer.
        cluster: gives the links.
        model: gives the bytes of an expert's weights.
        profile: constants of the links.

    """
    network = _Network.of(cluster, profile, model.expert_bytes)
    moves: list[Move] = []
    layer_us: dict[int, float] = {}
    pairs_P = np.zeros(cluster.num_ranks**2)
    for layer, before, after in zip(layers, old, new, strict=True):
        found = _moves_of_layer(layer, before, after, network)
        moves += found
        fetched_P = np.zeros_like(pairs_P)
        for move in found:
            if move.source != NOWHERE:
                fetched_P[move.source * cluster.num_ranks + move.rank] += model.expert_bytes
        if fetched_P.any():
            layer_us[layer] = network.alpha_us + float((fetched_P @ network.route_PN * network.byte_us_N).max())
        pairs_P += fetched_P
    return Migration(
        moves=tuple(moves),
        slots=sum(len(after.expert_S) for after in new),
        relabelled=sum(_relabelled(before, after) for before, after in zip(old, new, strict=True)),
        move_bytes=model.expert_bytes,
        link_bytes_N=pairs_P @ network.route_PN,
        layer_us=layer_us,
    )


@dataclass(frozen=True, eq=False)
class _Network:
    """Routes, and what a byte costs: on every link, and on the narrowest link of every pair."""

    route_PN: sp.csr_array
    byte_us_N: FloatArray
    alpha_us: float
    distance_P: list[tuple[float, int]]

    @classmethod
    def of(cls, cluster: Cluster, profile: TimingProfile, message_bytes: int) -> _Network:
        regime = profile.regime(message_bytes)
        route_PN = shared_routes(cluster)
        byte_us_N = link_byte_us(cluster, regime.efficiency, profile.name)
        narrowest_P = (route_PN @ sp.diags_array(byte_us_N)).max(axis=1).toarray().ravel()
        return cls(
            route_PN,
            byte_us_N,
            alpha_us(regime, "pairwise", cluster.num_domains),
            list(zip(narrowest_P.tolist(), np.diff(route_PN.indptr).tolist(), strict=True)),
        )


def _moves_of_layer(layer: int, old: Placement, new: Placement, network: _Network) -> list[Move]:
    """Return a layer's moves, each from the holder with the fastest way, the fewest links, the least sent so far."""
    R = new.num_ranks
    holders: dict[int, list[int]] = {}
    for expert, rank in zip(old.expert_S.tolist(), old.rank_S.tolist(), strict=True):
        holders.setdefault(expert, []).append(rank)
    sent_R: IntArray = np.zeros(R, dtype=np.int64)
    moves = []
    for rank, row in enumerate(new.slots()):
        for slot, expert in enumerate(row):
            at = holders.get(expert, [])
            if rank in at:
                continue
            nearness = [(network.distance_P[g * R + rank], int(sent_R[g]), g) for g in at]
            source = min(nearness)[-1] if nearness else NOWHERE
            if source != NOWHERE:
                sent_R[source] += 1
            moves.append(Move(layer, expert, source, rank, slot))
    return moves


def _relabelled(old: Placement, new: Placement) -> int:
    return sum(
        expert in before and (slot >= len(before) or before[slot] != expert)
        for before, after in zip(old.slots(), new.slots(), strict=True)
        for slot, expert in enumerate(after)
    )
