"""The rows of the coherent exchange: tokens stay where their last expert was, and come together at the end of the step.

Context-coherent inference (ExFlow: Yao et al., arXiv 2401.08383). A layer starts from where the one before left each
token, so that experts which follow one another on one rank cost no row:

    dispatch    from the rank of the token to the ranks of its experts. It *stays* on the rank of the expert that is
                listed first (recorders list the heaviest first): that row is the hidden state itself, in bf16; the
                others go as in any dispatch. A token whose experts are all masked stays where it is.
    combine     from the ranks of its other experts to the rank where it stays; none for top-1 routing.
    gather      once, after the last layer: every token's hidden state to all ranks, its home among them, since its
                next step may begin on any.

The first two send a token's row once to each rank, as `dedup` does, or once to each domain, where it is forwarded, as
`two-level` does; the gather always does that, like any good all-gather. Rows are integers, counted over the tokens of a
trace; copies are chosen as the executor chooses them.

Shapes: L layers, P tokens, K experts a token, R ranks, D domains, X tokens on one rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp

from planner.exact_rows import slots_of_rank
from planner.placement import BoolArray, IntArray, Placement
from planner.workload import Workload
from topologies import BadInput, rail_peers

Way = Literal["dedup", "two-level"]
WAYS: tuple[Way, ...] = ("dedup", "two-level")


@dataclass(frozen=True, eq=False)
class CoherentRows:
    """What one layer moves, all hops added up; what a rank sends to itself is on the diagonal.

    Attributes:
        visits_RR: tokens that are on a rank before the layer and visit a rank in it.
        moved_RR: hidden states, to the ranks where tokens stay.
        sent_RR: other rows of the dispatch.
        back_RR: partial sums of the combine.
        load_R: token-expert pairs of each rank.
        at_P: rank where each token stays.

    """

    visits_RR: IntArray
    moved_RR: IntArray
    sent_RR: IntArray
    back_RR: IntArray
    load_R: IntArray
    at_P: IntArray


class TokenWays:
    """The tokens of a trace on their way through the layers, from rank to rank as a plain exchange sends them."""

    def __init__(self, workload: Workload, way: Way) -> None:
        """Take the tokens of a workload; BadInput where it has no trace, or one of a single layer."""
        name, layers = workload.routing.name, workload.num_layers
        if workload.routing.trace is None or layers < 2:
            what = "counts only" if workload.routing.trace is None else "one layer only"
            raise BadInput(
                f"{name}: {what}; --exchange coherent follows tokens from layer to layer: record the experts of every "
                "token in all layers (topk_ids [layers, tokens, top_k]), or take --exchange auto"
            )
        self.way, self.ids_LPK = way, workload.tokens_LPK
        self.home_P = _homes(workload)
        self._domain_R = np.asarray(workload.cluster.domain_of_rank, dtype=np.int64)
        self._peer_RD = rail_peers(self._domain_R, np.asarray(workload.cluster.rail_of_rank))

    def walk(self, placements: Sequence[Placement]) -> Iterator[CoherentRows]:
        """Count the rows of one layer after the other."""
        at_P = self.home_P
        for row, placement in enumerate(placements):
            rows = self.rows(row, placement, at_P)
            at_P = rows.at_P
            yield rows

    def rows(self, row: int, placement: Placement, at_P: IntArray) -> CoherentRows:
        """Count the rows of layer `row` (0..L-1), with the tokens on the ranks `at_P` before it."""
        rank_PK = self._ranks(row, placement, at_P)
        used_PK = rank_PK >= 0
        any_P = used_PK.any(axis=1)
        first_P = np.take_along_axis(rank_PK, used_PK.argmax(axis=1)[:, None], axis=1)[:, 0]
        stays_P = np.where(any_P, first_P, at_P)
        (P, _), R = rank_PK.shape, placement.num_ranks
        visit_PR = np.zeros((P, R + 1), dtype=bool)
        np.put_along_axis(visit_PR, np.where(used_PK, rank_PK, R), values=True, axis=1)
        visit_PR = visit_PR[:, :R]
        stay_PR = np.zeros_like(visit_PR)
        stay_PR[np.arange(P), stays_P] = any_P
        moved_RR = self._sent_RR(at_P, stay_PR)
        return CoherentRows(
            visits_RR=_from_ranks(at_P, R) @ visit_PR.astype(np.int64),
            moved_RR=moved_RR,
            sent_RR=self._sent_RR(at_P, visit_PR) - moved_RR,
            back_RR=self._sent_RR(stays_P, visit_PR & ~stay_PR).T,
            load_R=np.bincount(rank_PK[used_PK], minlength=R),
            at_P=stays_P,
        )

    def gathered_RR(self, at_P: IntArray) -> IntArray:
        """Return the rows of the gather, with the tokens on the ranks `at_P`."""
        return self._two_tiers(at_P, np.ones((len(at_P), len(self._domain_R)), dtype=bool))

    def _ranks(self, row: int, placement: Placement, at_P: IntArray) -> IntArray:
        """Return the rank [P, K] that serves each token-expert pair; -1 where masked."""
        ids_PK = self.ids_LPK[row]
        if len(placement.expert_S) == placement.num_experts:  # one copy each: nothing to choose
            rank_E = np.empty(placement.num_experts, dtype=np.int64)
            rank_E[placement.expert_S] = placement.rank_S
            return np.where(ids_PK >= 0, rank_E[ids_PK], -1)
        rank_PK = np.full(ids_PK.shape, -1)
        for rank in np.unique(at_P).tolist():
            here_X = np.flatnonzero(at_P == rank)
            slot_XK = slots_of_rank(placement, ids_PK[here_X], rank, self._domain_R)
            rank_PK[here_X] = np.where(slot_XK >= 0, placement.rank_S[slot_XK], -1)
        return rank_PK

    def _sent_RR(self, source_P: IntArray, visit_PR: BoolArray) -> IntArray:
        """Return the rows [R, R] of tokens from their ranks to those that they visit."""
        if self.way == "two-level":
            return self._two_tiers(source_P, visit_PR)
        direct_RR: IntArray = _from_ranks(source_P, visit_PR.shape[1]) @ visit_PR.astype(np.int64)
        return direct_RR

    def _two_tiers(self, source_P: IntArray, visit_PR: BoolArray) -> IntArray:
        """Return the same over two levels: one row to each domain, then one to each rank in it."""
        R, D = self._peer_RD.shape
        from_RP = _from_ranks(source_P, R)
        inside_RD = self._domain_R[:, None] == np.arange(D)
        rows_RR = np.zeros((R, R), dtype=np.int64)
        reached_PD = visit_PR.astype(np.float32) @ inside_RD > 0
        np.add.at(rows_RR, (np.arange(R)[:, None], self._peer_RD), from_RP @ reached_PD.astype(np.int64))
        relay_RR = self._peer_RD[:, self._domain_R]
        np.add.at(rows_RR, (relay_RR, np.arange(R)[None, :]), from_RP @ visit_PR.astype(np.int64))
        return rows_RR


def _from_ranks(at_P: IntArray, num_ranks: int) -> sp.csc_array:
    """Return the 0/1 matrix that sums tokens by the rank that they are on."""
    P = len(at_P)
    return sp.csc_array((np.ones(P, dtype=np.int64), at_P, np.arange(P + 1)), shape=(num_ranks, P))


def _homes(workload: Workload) -> IntArray:
    """Return the rank where each token starts: dealt out evenly over its source, one rank after the other."""
    P, class_P, class_R = workload.tokens_LPK.shape[1], workload.token_class_P, workload.class_of_rank_R
    if class_P is None:
        class_P, class_R = np.zeros(P, dtype=np.int64), np.zeros_like(class_R)
    home_P = np.empty(P, dtype=np.int64)
    for source in np.unique(class_P).tolist():
        mine_P, ranks = class_P == source, np.flatnonzero(class_R == source)
        number = int(mine_P.sum())
        home_P[mine_P] = ranks[np.arange(number) * len(ranks) // number]
    return home_P
