"""The rows that a step of known tokens puts on every (source, destination) pair: integers that the executor must match.

Shapes: R ranks, D domains, T tokens of one rank, K top_k, S slots.

`wire.py` gives the *expected* rows of a workload, to plan with; here every token is known, copies are chosen as the
executor chooses them (`replica_choice.py`, `cover_choice.py`), and the counts are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.cover_choice import cover_slots
from planner.placement import IntArray, Placement
from planner.replica_choice import choose_slots
from planner.timing import Exchange
from topologies import BadInput, rail_peers

HOPS: dict[Exchange, tuple[str, ...]] = {
    "pairwise": ("dispatch",),
    "dedup": ("dispatch",),
    "two-level": ("scale-out", "scale-up"),
}
"""The all-to-alls of a dispatch, in order; combine runs them backwards with the same rows."""


@dataclass(frozen=True, eq=False)
class HopTraffic:
    """What one all-to-all of a dispatch moves, own rank on the diagonal.

    Attributes:
        rows_RR: rows from source to destination; combine moves them back.
        labels_RR: (slot, weight) labels that travel with them; a pairwise exchange has none.

    """

    rows_RR: IntArray
    labels_RR: IntArray


def exact_rows(
    placement: Placement, ids_RTK: Sequence[IntArray], exchange: Exchange, domain_R: IntArray, rail_R: IntArray
) -> dict[str, IntArray]:
    """Return the rows [R, R] of each hop; see `exact_traffic`."""
    traffic = exact_traffic(placement, ids_RTK, exchange, domain_R, rail_R)
    return {hop: moved.rows_RR for hop, moved in traffic.items()}


def exact_traffic(
    placement: Placement, ids_RTK: Sequence[IntArray], exchange: Exchange, domain_R: IntArray, rail_R: IntArray
) -> dict[str, HopTraffic]:
    """Return what each hop of an exchange moves.

    Args:
        placement: slots and shares of the layer.
        ids_RTK: for each source rank, the expert ids [T, K] of its tokens, -1 where masked; T may differ by rank.
        exchange: `pairwise`, `dedup` or `two-level`.
        domain_R: domain of every rank.
        rail_R: rail of every rank.

    Raises:
        BadInput: not one list of ids for every rank, or an id that is no expert.

    """
    R = placement.num_ranks
    if len(ids_RTK) != R:
        raise BadInput(f"token ids of {len(ids_RTK)} ranks for a placement on {R} ranks")
    slots = [slots_of_rank(placement, ids_TK, rank, domain_R) for rank, ids_TK in enumerate(ids_RTK)]
    targets = [np.where(slot_TK >= 0, placement.rank_S[slot_TK], -1) for slot_TK in slots]
    pairs_RR = np.stack([np.bincount(rank_TK[rank_TK >= 0], minlength=R) for rank_TK in targets])
    if exchange == "pairwise":
        return {"dispatch": HopTraffic(pairs_RR, np.zeros_like(pairs_RR))}
    visits = [_visited(rank_TK, R) for rank_TK in targets]
    if exchange == "dedup":
        return {"dispatch": HopTraffic(np.stack([visit_TR.sum(axis=0) for visit_TR in visits]), pairs_RR)}
    return _two_level(visits, pairs_RR, domain_R, rail_peers(domain_R, rail_R))


def slots_of_rank(placement: Placement, ids_TK: IntArray, rank: int, domain_R: IntArray) -> IntArray:
    """Return the slot [T, K] of each token-expert pair of a source rank, -1 where masked; refuses ids out of range."""
    if ids_TK.size and (ids_TK.min() < -1 or ids_TK.max() >= placement.num_experts):
        bad = int(ids_TK.min() if ids_TK.min() < -1 else ids_TK.max())
        raise BadInput(f"rank {rank}: expert id {bad} is not in 0..{placement.num_experts - 1} (-1 masks)")
    if placement.replica_choice == "cover":
        return cover_slots(placement, ids_TK, rank, domain_R)
    return choose_slots(placement, ids_TK, rank, int(domain_R[rank]))


def _two_level(
    visits: Sequence[IntArray], pairs_RR: IntArray, domain_R: IntArray, peer_RD: IntArray
) -> dict[str, HopTraffic]:
    """Count tokens by forwarder and then by rank; labels go the way of their rows."""
    out, up = (HopTraffic(np.zeros_like(pairs_RR), np.zeros_like(pairs_RR)) for _ in range(2))
    for src, visit_TR in enumerate(visits):
        for domain, peer in enumerate(peer_RD[src].tolist()):
            inside_R = domain_R == domain
            out.rows_RR[src, peer] += visit_TR[:, inside_R].any(axis=1).sum()
            out.labels_RR[src, peer] += pairs_RR[src, inside_R].sum()
            up.rows_RR[peer, inside_R] += visit_TR[:, inside_R].sum(axis=0)
            up.labels_RR[peer, inside_R] += pairs_RR[src, inside_R]
    return {"scale-out": out, "scale-up": up}


def _visited(rank_TK: IntArray, num_ranks: int) -> IntArray:
    """Return 0/1 [T, R]: whether a token visits a rank."""
    visit_TR = np.zeros((len(rank_TK), num_ranks + 1), dtype=np.int64)
    np.put_along_axis(visit_TR, np.where(rank_TK >= 0, rank_TK, num_ranks), 1, axis=1)
    return visit_TR[:, :num_ranks]
