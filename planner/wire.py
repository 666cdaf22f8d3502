"""Rows that cross the wire: a placement and a workload give the rows from every source class to every target.

Shapes: C source classes, E experts, T targets (ranks R or domains D), S slots, P sampled tokens, Z some of them,
U distinct share rows.

Rows come in two counts: token-expert pairs, exact for any workload, and distinct (token, target) pairs, counted over
sampled or traced tokens. Where an expert has several copies, each token-expert pair picks one with the probability of
its share, independently of the token's other experts; with whole shares (0 or 1) the count over a trace is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from planner.placement import FloatArray, IntArray, Placement

NARROW = 128  # columns up to which dense products are faster (measured: 64 columns 3x faster, 512 columns 3x slower)
FEW_CHANGED = 0.5  # tokens of changed experts, of all, up to which only they are counted again
LOG_MISS_FLOOR = -40.0  # stands for log(0): a token with this expert surely visits the target


@dataclass(frozen=True, eq=False)
class TokenSample:
    """Tokens that stand for a step.

    Attributes:
        expert_PE: sparse 0/1, the experts of each token.
        class_P: source class of each token, or None where each token stands for all classes.
        tokens_C: tokens that one rank of each class sends in a step.

    """

    expert_PE: sp.csr_array
    class_P: IntArray | None
    tokens_C: FloatArray

    @classmethod
    def of_ids(cls, ids_PK: IntArray, num_experts: int, class_P: IntArray | None, tokens_C: FloatArray) -> TokenSample:
        """Build a sample from expert ids; -1 is masked, and an id that a token repeats counts once."""
        token_X, choice_X = np.nonzero(ids_PK >= 0)
        expert_PE = sp.csr_array(
            (np.ones(len(token_X)), (token_X, ids_PK[token_X, choice_X])), shape=(len(ids_PK), num_experts)
        )
        expert_PE.sum_duplicates()
        expert_PE.data[:] = 1.0
        return cls(expert_PE, class_P, tokens_C)

    @cached_property
    def expert_EP(self) -> sp.csr_array:
        """Return the tokens of each expert."""
        return sp.csr_array(self.expert_PE.T)

    def weights_P(self, source_class: int) -> FloatArray:
        """Return how many tokens of a rank of this class each sampled token stands for."""
        P = self.expert_PE.shape[0]
        if self.class_P is None:
            return np.full(P, self.tokens_C[source_class] / P)
        mine_P = self.class_P == source_class
        return np.where(mine_P, self.tokens_C[source_class] / max(int(mine_P.sum()), 1), 0.0)


def pair_rows_CR(rows_CE: FloatArray, class_domain_C: IntArray, placement: Placement) -> FloatArray:
    """Return the token-expert pairs from one rank of each class to each rank, own rank included."""
    share_CS = placement.share_DS[class_domain_C]
    return _sum_by_rank(rows_CE[:, placement.expert_S] * share_CS, placement)


def _sum_by_rank(value_CS: FloatArray, placement: Placement) -> FloatArray:
    sums_CR = np.zeros((len(value_CS), placement.num_ranks))
    used_R = np.flatnonzero(placement.slots_R)
    first_R = np.concatenate([[0], np.cumsum(placement.slots_R[used_R])[:-1]])
    sums_CR[:, used_R] = np.add.reduceat(value_CS, first_R, axis=1)
    return sums_CR


class DistinctRows:
    """Rows by distinct target of one placement: their number and how it changes with every share.

    The expected number of targets visited is multilinear in the shares, so the gradient of one share is exact as
    long as the others stand still: it serves as the price of moving, adding or dropping a copy.

    Where targets are many, a token visits few of them and its chances are kept sparse. Most placements treat many
    source domains alike: the U distinct rows of shares are worked out once, side by side in one matrix with a column
    for each (u, target).
    """

    def __init__(
        self,
        tokens: TokenSample,
        class_domain_C: IntArray,
        placement: Placement,
        target_R: IntArray,
        num_targets: int,
        near: DistinctRows | None = None,
    ) -> None:
        """Work out each expert's chance to miss each target; `target_R` is the target (rank or domain) of each rank.

        From the rows of a placement that is `near`, only the tokens of the experts that stand elsewhere are counted.
        """
        self._tokens, self._num_targets, self._near = tokens, num_targets, near
        seen: dict[bytes, int] = {}
        alike_D = np.array([seen.setdefault(share_S.tobytes(), len(seen)) for share_S in placement.share_DS])
        self._alike_C = alike_D[class_domain_C]
        share_US = placement.share_DS[[int(np.argmax(alike_D == u)) for u in range(len(seen))]]
        target_S = target_R[placement.rank_S]
        column_US = np.arange(len(seen))[:, None] * num_targets + target_S[None, :]
        expert_US = np.broadcast_to(placement.expert_S, column_US.shape)
        shape = (placement.num_experts, len(seen) * num_targets)
        mass_EX = sp.csr_array((share_US.ravel(), (expert_US.ravel(), column_US.ravel())), shape=shape)
        mass_EX.sum_duplicates()
        open_X = np.minimum(mass_EX.data, 1 - 1e-12)  # beyond it a share is whole, and counts exactly
        log_miss = np.where(mass_EX.data > open_X, LOG_MISS_FLOOR, np.log1p(-open_X))
        self._log_miss_EX = sp.csr_array((log_miss, mass_EX.indices, mass_EX.indptr), shape=shape)

    @property
    def _narrow(self) -> bool:
        return bool(self._log_miss_EX.shape[1] <= NARROW)

    @cached_property
    def _miss_PX(self) -> FloatArray:
        """Return each token's chance to miss each (u, target)."""
        if self._narrow:
            return self._missed(self._tokens.expert_PE)
        log_miss_PX = self._log_miss_PX
        miss_PX = np.ones(log_miss_PX.shape)
        token_N = np.repeat(np.arange(miss_PX.shape[0]), np.diff(log_miss_PX.indptr))
        miss_PX[token_N, log_miss_PX.indices] = np.exp(log_miss_PX.data)
        return miss_PX

    @cached_property
    def _log_miss_PX(self) -> sp.csr_array:
        return sp.csr_array(self._tokens.expert_PE @ self._log_miss_EX)

    def _missed(self, expert_ZE: sp.csr_array) -> FloatArray:
        dense_ZX: FloatArray = np.exp(expert_ZE @ self._log_miss_EX.toarray())
        return dense_ZX

    @cached_property
    def rows_CT(self) -> FloatArray:
        """Return the rows from one rank of each class to each target, own domain or rank included."""
        near, self._near = self._near, None  # else every placement of a search would keep all before it
        changed_E = None if near is None else self._changed_from(near)
        if near is None or changed_E is None:
            return self._rows(1.0 - self._miss_PX if self._narrow else _hits(self._log_miss_PX))
        token_Z = np.unique(self._tokens.expert_EP[changed_E].indices).astype(np.int64)
        expert_ZE = self._tokens.expert_PE[token_Z]
        after_CT, before_CT = (one._rows_of(expert_ZE, token_Z) for one in (self, near))
        rows_CT: FloatArray = near.rows_CT + (after_CT - before_CT)
        return rows_CT

    def _changed_from(self, near: DistinctRows) -> IntArray | None:
        """Return the experts that stand elsewhere; None where other source domains are alike, or most tokens change."""
        if self._log_miss_EX.shape != near._log_miss_EX.shape or not np.array_equal(self._alike_C, near._alike_C):
            return None
        change_EX = sp.csr_array(self._log_miss_EX - near._log_miss_EX)
        changed_E: IntArray = np.flatnonzero(np.diff(change_EX.indptr))
        visits_E = np.diff(self._tokens.expert_EP.indptr)
        few = visits_E[changed_E].sum() <= FEW_CHANGED * self._tokens.expert_PE.shape[0]
        return changed_E if few else None

    def _rows_of(self, expert_ZE: sp.csr_array, token_Z: IntArray) -> FloatArray:
        hit_ZX = 1.0 - self._missed(expert_ZE) if self._narrow else _hits(sp.csr_array(expert_ZE @ self._log_miss_EX))
        return self._rows(hit_ZX, token_Z)

    def _rows(self, hit_ZX: FloatArray | sp.csr_array, token_Z: IntArray | slice = slice(None)) -> FloatArray:
        """Return the rows [C, T] of some tokens, from their chances to visit each (u, target)."""
        tokens = self._tokens
        if tokens.class_P is None:
            part_X = hit_ZX.sum(axis=0) / tokens.expert_PE.shape[0]
            rows_CT: FloatArray = tokens.tokens_C[:, None] * self._by_alike(part_X)[self._alike_C]
            return rows_CT
        rows = [self._by_alike(tokens.weights_P(c)[token_Z] @ hit_ZX)[u] for c, u in enumerate(self._alike_C)]
        return np.stack(rows)

    @cached_property
    def gradient_CET(self) -> FloatArray:
        """Return d rows[c, t] / d mass[domain of c, e, t]: rows that the expert alone brings to the target."""
        tokens, miss_PX = self._tokens, self._miss_PX
        own_EX = np.exp(-self._log_miss_EX.toarray())  # an expert's own chance to miss is taken out again
        expert_EP = tokens.expert_EP
        if tokens.class_P is None:
            alone_UET = self._by_alike((expert_EP @ miss_PX) * own_EX / miss_PX.shape[0])
            alone_CET: FloatArray = tokens.tokens_C[:, None, None] * alone_UET[self._alike_C]
            return alone_CET
        alone = []
        for c, u in enumerate(self._alike_C):
            span = slice(u * self._num_targets, (u + 1) * self._num_targets)
            alone.append((expert_EP @ (miss_PX[:, span] * tokens.weights_P(c)[:, None])) * own_EX[:, span])
        return np.stack(alone)

    def _by_alike(self, value_X: FloatArray) -> FloatArray:
        """Split the last axis (u, target) and bring u to the front."""
        split = value_X.reshape(*value_X.shape[:-1], -1, self._num_targets)
        return np.moveaxis(split, -2, 0)


def _hits(log_miss_ZX: sp.csr_array) -> sp.csr_array:
    """Return chances to visit from logarithms of chances to miss; what is not there is never visited."""
    return sp.csr_array((-np.expm1(log_miss_ZX.data), log_miss_ZX.indices, log_miss_ZX.indptr), shape=log_miss_ZX.shape)
