"""Which copy of a replicated expert a token uses: the rule that planner and executor share, in integers.

Shapes: D source domains, E experts, M copies of the most replicated expert, S slots, T tokens, K top_k.

A source rank meets an expert N times in a step, in order of (token, k). These N pairs stand evenly on a circle, and the
shares of its domain cut the circle into arcs, one a copy, in order of slots: pair n lies at (n / N + phase) mod 1. Any
arc of length p then holds floor(N p) or ceil(N p) pairs: shares are followed to within one row, a share of zero gets
none, and the answer is a pure function of the plan and the routed ids, so recomputation finds the same copies. The
phase depends on rank and expert (golden-ratio steps), so that ranks with a few tokens each do not all round the same
way, and experts with the same copies choose independently of one another.

All of it is done in 64-bit integers, with arcs in units of 2^-24, so that NumPy, torch and any GPU agree to the row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.placement import BoolArray, FloatArray, IntArray, Placement

UNIT = 1 << 24  # the circle's circumference: shares are followed to 6e-8
MAX_PAIRS = 1 << 38  # of one expert from one rank in a step: N * UNIT stays below 2^63
_GOLDEN_STEP = 10368889  # round(UNIT / golden ratio), made odd: multiples spread evenly over the circle
_EXPERT_STEP = 7025857  # round(UNIT * (sqrt(2) - 1)) + 9, odd: another irrational, for a second direction


@dataclass(frozen=True, eq=False)
class CopyTable:
    """The copies of every expert, for one source domain.

    Attributes:
        slot_EM: slot of copy m of each expert, in order of slots; the last copy is repeated to fill the row.
        edge_EM: where the arc of copy m ends, in units of the circle; UNIT from the last copy on.
        replicated_E: whether an expert has more than one copy.

    """

    slot_EM: IntArray
    edge_EM: IntArray
    replicated_E: BoolArray

    @property
    def serves_EM(self) -> BoolArray:
        """Return whether copy m of an expert serves any share: its arc has a length."""
        serves_EM: BoolArray = np.diff(self.edge_EM, axis=1, prepend=0) > 0
        return serves_EM


def copy_table(placement: Placement, source_domain: int) -> CopyTable:
    """Build the table of a placement for the source ranks of one domain."""
    copies_E = placement.copies_E
    order = np.argsort(placement.expert_S, kind="stable")
    first_E = np.cumsum(copies_E) - copies_E
    copy_EM = np.minimum(np.arange(int(copies_E.max()))[None, :], copies_E[:, None] - 1)
    slot_EM = order[first_E[:, None] + copy_EM]
    return CopyTable(slot_EM, _arc_ends(placement.share_DS[source_domain][slot_EM], copies_E), copies_E > 1)


def _arc_ends(share_EM: FloatArray, copies_E: IntArray) -> IntArray:
    """Return where each copy's arc ends: shares added up in units, the last copy that serves anyone ending at UNIT."""
    M = share_EM.shape[1]
    share_EM = np.where(np.arange(M)[None, :] < copies_E[:, None], share_EM, 0.0)
    edge_EM = np.rint(np.cumsum(share_EM, axis=1) / share_EM.sum(axis=1, keepdims=True) * UNIT).astype(np.int64)
    last_E = M - 1 - np.argmax(share_EM[:, ::-1] > 0, axis=1)
    return np.where(np.arange(M)[None, :] >= last_E[:, None], UNIT, edge_EM)


def phase_E(source_rank: int, num_experts: int) -> IntArray:
    """Return where on the circle a source rank's first pair of each expert lies."""
    return ((source_rank + 1) * _GOLDEN_STEP + np.arange(num_experts, dtype=np.int64) * _EXPERT_STEP) % UNIT


def choose_slots(placement: Placement, ids_TK: IntArray, source_rank: int, source_domain: int) -> IntArray:
    """Return the slot [T, K] that serves each token-expert pair of one source rank; -1 where the id is masked."""
    table = copy_table(placement, source_domain)
    ids_TK = np.asarray(ids_TK, dtype=np.int64)
    slot_TK = np.where(ids_TK >= 0, table.slot_EM[ids_TK, 0], -1)
    token_X, choice_X = np.nonzero((ids_TK >= 0) & table.replicated_E[ids_TK])
    expert_X = ids_TK[token_X, choice_X]
    order = np.argsort(expert_X, kind="stable")
    count_E = np.bincount(expert_X, minlength=placement.num_experts)
    nth_X = np.empty(len(expert_X), dtype=np.int64)
    nth_X[order] = np.arange(len(order)) - (np.cumsum(count_E) - count_E)[expert_X[order]]
    pairs_X = count_E[expert_X]
    place_X = (nth_X * UNIT + phase_E(source_rank, placement.num_experts)[expert_X] * pairs_X) % (pairs_X * UNIT)
    copy_X = (pairs_X[:, None] * table.edge_EM[expert_X, :-1] <= place_X[:, None]).sum(axis=1)
    slot_TK[token_X, choice_X] = table.slot_EM[expert_X, copy_X]
    return slot_TK
