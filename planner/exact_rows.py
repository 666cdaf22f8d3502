"""The rows that a step of known tokens puts on every (source, destination) pair: integers that the executor must match.

Shapes: R ranks, D domains, T tokens of one rank, K top_k, S slots.

`wire.py` gives the *expected* rows of a workload, to plan with; here every token is known, copies are chosen as the
executor chooses them (`replica_choice.py`), and the counts are exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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


def exact_rows(
    placement: Placement, ids_RTK: Sequence[IntArray], exchange: Exchange, domain_R: IntArray, rail_R: IntArray
) -> dict[str, IntArray]:
    """Return, for each hop of the exchange, the rows [R, R] from source to destination; own rank on the diagonal.

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
    return {hop: np.stack(rows) for hop, rows in _rows_of_hops(slots, placement, exchange, domain_R, rail_R).items()}


def slots_of_rank(placement: Placement, ids_TK: IntArray, rank: int, domain_R: IntArray) -> IntArray:
    """Return the slot [T, K] of each token-expert pair of a source rank, -1 where masked; refuses ids out of range."""
    if ids_TK.size and (ids_TK.min() < -1 or ids_TK.max() >= placement.num_experts):
        bad = int(ids_TK.min() if ids_TK.min() < -1 else ids_TK.max())
        raise BadInput(f"rank {rank}: expert id {bad} is not in 0..{placement.num_experts - 1} (-1 masks)")
    return choose_slots(placement, ids_TK, rank, int(domain_R[rank]))


def _rows_of_hops(
    slots_RTK: Sequence[IntArray], placement: Placement, exchange: Exchange, domain_R: IntArray, rail_R: IntArray
) -> dict[str, list[IntArray]]:
    R = placement.num_ranks
    targets = [np.where(slot_TK >= 0, placement.rank_S[slot_TK], -1) for slot_TK in slots_RTK]
    if exchange == "pairwise":
        return {"dispatch": [np.bincount(rank_TK[rank_TK >= 0], minlength=R) for rank_TK in targets]}
    visits = [_visited(rank_TK, R) for rank_TK in targets]
    if exchange == "dedup":
        return {"dispatch": [visit_TR.sum(axis=0) for visit_TR in visits]}
    peer_RD = rail_peers(domain_R, rail_R)
    out_RR, up_RR = np.zeros((R, R), dtype=np.int64), np.zeros((R, R), dtype=np.int64)
    for src, visit_TR in enumerate(visits):
        for domain, peer in enumerate(peer_RD[src].tolist()):
            inside_R = domain_R == domain
            out_RR[src, peer] += visit_TR[:, inside_R].any(axis=1).sum()
            up_RR[peer, inside_R] += visit_TR[:, inside_R].sum(axis=0)
    return {"scale-out": list(out_RR), "scale-up": list(up_RR)}


def _visited(rank_TK: IntArray, num_ranks: int) -> IntArray:
    """Return 0/1 [T, R]: whether a token visits a rank."""
    visit_TR = np.zeros((len(rank_TK), num_ranks + 1), dtype=np.int64)
    np.put_along_axis(visit_TR, np.where(rank_TK >= 0, rank_TK, num_ranks), 1, axis=1)
    return visit_TR[:, :num_ranks]
