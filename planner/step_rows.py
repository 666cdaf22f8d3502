"""Rows of every layer of a plan at once, for prediction: the same numbers as `planner.wire`, in a few array operations.

An expert whose copies all serve one target is a bit of the target's mask, a token's targets are the OR of its experts'
bits: no floating point is touched. Experts with copies on several targets are counted by their chance to be missed.

Shapes: L layers, C source classes, D domains, E experts, T targets, P sampled tokens, K experts a token, S slots of all
layers together, X cells (layer, expert), W kinds of tokens, U distinct rows of shares, M copies, Z tokens of copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from planner.placement import FloatArray, IntArray, Placement
from planner.wire import LOG_MISS_FLOOR
from planner.workload import Workload

MOST_TARGETS = 64  # bits of a mask


@dataclass(frozen=True, eq=False)
class StepTokens:
    """The sampled tokens of a workload, laid out for counting; worked out once for each workload.

    Attributes:
        cell_KLP: layer * (E + 1) + expert of each choice; expert E where masked or repeated.
        token_of_cell, first_X: the tokens of each cell X, one after the other, and where those of a cell start.
        tokens_LC: tokens that one rank of each class sends.
        kind_P, kind_C: which kind of token stands for which class; None and 0 where all tokens stand for all classes.
        tokens_W: sampled tokens of each kind, at least 1.

    """

    cell_KLP: NDArray[np.int32]
    token_of_cell: IntArray
    first_X: IntArray
    tokens_LC: FloatArray
    kind_P: IntArray | None
    kind_C: IntArray
    tokens_W: IntArray


_TOKENS: WeakKeyDictionary[Workload, StepTokens] = WeakKeyDictionary()


def step_tokens(workload: Workload) -> StepTokens:
    """Return the tokens of a workload for counting."""
    if workload not in _TOKENS:
        _TOKENS[workload] = _laid_out(workload)
    return _TOKENS[workload]


def _laid_out(workload: Workload) -> StepTokens:
    E, (L, P, K) = workload.num_experts, workload.tokens_LPK.shape
    ids_LPK = np.sort(np.where(workload.tokens_LPK < 0, E, workload.tokens_LPK), axis=2)
    ids_LPK[:, :, 1:][ids_LPK[:, :, 1:] == ids_LPK[:, :, :-1]] = E
    pairs_L = np.maximum((workload.tokens_LPK >= 0).sum(axis=(1, 2)) / P, 1e-9)
    cell_LPK = ids_LPK + (np.arange(L) * (E + 1))[:, None, None]
    order = np.argsort(cell_LPK, axis=None, kind="stable")
    class_P, classes = workload.token_class_P, workload.rows_LCE.shape[1]
    kind_C = np.zeros(classes, dtype=np.int64) if class_P is None else np.arange(classes)
    per_kind = np.array([P]) if class_P is None else np.bincount(class_P, minlength=classes)
    return StepTokens(
        cell_KLP=np.ascontiguousarray(cell_LPK.transpose(2, 0, 1).astype(np.int32)),
        token_of_cell=order // K % P,
        first_X=np.concatenate([[0], np.cumsum(np.bincount(cell_LPK.ravel(), minlength=L * (E + 1)))]),
        tokens_LC=workload.rows_LCE.sum(axis=2) / pairs_L[:, None],
        kind_P=class_P,
        kind_C=kind_C,
        tokens_W=np.maximum(per_kind, 1).astype(np.int64),
    )


class StepSlots:
    """All slots of a plan side by side, and what can be summed from them."""

    def __init__(self, workload: Workload, placements: Sequence[Placement]) -> None:
        """Concatenate the placements of all layers."""
        self._workload = workload
        self.expert_S = np.concatenate([p.expert_S for p in placements])
        self.rank_S = np.concatenate([p.rank_S for p in placements])
        self.layer_S = np.repeat(np.arange(len(placements)), [len(p.expert_S) for p in placements])
        self.share_DS = np.concatenate([p.share_DS for p in placements], axis=1)

    def pairs_LCR(self) -> FloatArray:
        """Return the token-expert pairs from one rank of each class to each rank."""
        workload = self._workload
        L, C, R = workload.num_layers, workload.rows_LCE.shape[1], workload.num_ranks
        key_S = self.layer_S * R + self.rank_S
        pairs_LCR = np.empty((L, C, R))
        for c, domain in enumerate(workload.class_domain_C):
            rows_S = workload.rows_LCE[self.layer_S, c, self.expert_S] * self.share_DS[domain]
            pairs_LCR[:, c] = np.bincount(key_S, rows_S, L * R).reshape(L, R)
        return pairs_LCR

    def active_LR(self) -> FloatArray:
        """Return the expected number of active experts on each rank (a slot that serves nobody is not active)."""
        workload = self._workload
        chance_LE = -np.expm1(-workload.load_LE)  # Poisson: the step's count of a rare expert varies
        active_S = chance_LE[self.layer_S, self.expert_S] * (self.share_DS.max(axis=0) > 0)
        L, R = workload.num_layers, workload.num_ranks
        active_X: FloatArray = np.bincount(self.layer_S * R + self.rank_S, active_S, L * R).astype(float)
        return active_X.reshape(L, R)

    def distinct_LCT(self, target_R: IntArray, num_targets: int) -> FloatArray:
        """Return the rows by distinct target from one rank of each class; at most 64 targets."""
        tokens = step_tokens(self._workload)
        target_S = target_R[self.rank_S]
        cell_S = self.layer_S * (self._workload.num_experts + 1) + self.expert_S
        seen: dict[bytes, int] = {}
        alike_D = np.array([seen.setdefault(share_S.tobytes(), len(seen)) for share_S in self.share_DS])
        alike_C = alike_D[self._workload.class_domain_C]
        chance_LCT = np.zeros((*tokens.tokens_LC.shape, num_targets))
        for u in range(len(seen)):  # most placements treat many source domains alike
            share_S = self.share_DS[int(np.argmax(alike_D == u))]
            used = np.flatnonzero(share_S > 0)
            mine_C = np.flatnonzero(alike_C == u)
            chance_LWT = self._chances(tokens, cell_S[used], target_S[used], share_S[used], num_targets)
            chance_LCT[:, mine_C] = chance_LWT[:, tokens.kind_C[mine_C]]
        return chance_LCT * tokens.tokens_LC[:, :, None]

    def _chances(
        self, tokens: StepTokens, cell_S: IntArray, target_S: IntArray, share_S: FloatArray, num_targets: int
    ) -> FloatArray:
        """Return the chance that a token of each kind visits each target [L, W, T] under one row of shares."""
        mask_X, spread_X = _masks(cell_S, target_S, self._workload.num_layers * (self._workload.num_experts + 1))
        visited_LP = mask_X[tokens.cell_KLP[0]]
        for cell_LP in tokens.cell_KLP[1:]:
            visited_LP |= mask_X[cell_LP]
        byte_LPB = visited_LP.astype("<u8").view(np.uint8).reshape(*visited_LP.shape, 8)
        seen_LPT = np.unpackbits(byte_LPB, axis=2, count=num_targets, bitorder="little")
        chance_LWT = _means(seen_LPT, tokens)
        spread = np.flatnonzero(spread_X[cell_S])
        if spread.size:
            copies = _merged(cell_S[spread], target_S[spread], share_S[spread], num_targets)
            chance_LWT += self._spread(tokens, copies, seen_LPT)
        return chance_LWT

    def _spread(
        self,
        tokens: StepTokens,
        copies: tuple[IntArray, IntArray, FloatArray],
        seen_LPT: NDArray[np.uint8],
    ) -> FloatArray:
        """Return the chance of a visit that only experts with copies on several targets bring [L, W, T]."""
        (L, P, T), (cell_M, target_M, log_miss_M) = seen_LPT.shape, copies
        count_M = tokens.first_X[cell_M + 1] - tokens.first_X[cell_M]
        end_M = np.cumsum(count_M)
        place_Z = np.arange(int(end_M[-1])) - np.repeat(end_M - count_M - tokens.first_X[cell_M], count_M)
        key_Z = tokens.token_of_cell[place_Z] + np.repeat(target_M * P, count_M)
        log_miss_Z = np.repeat(log_miss_M, count_M)
        first_L = np.searchsorted(cell_M, np.arange(L + 1) * (self._workload.num_experts + 1))
        edge_L = np.concatenate([[0], end_M])[first_L]
        lines_T = np.arange(T + 1) * P
        chance_LWT = np.zeros((L, len(tokens.tokens_W), T))
        for layer in range(L):  # one at a time: its counters stay in the cache
            span = slice(edge_L[layer], edge_L[layer + 1])
            miss_Y = np.bincount(key_Z[span], log_miss_Z[span], T * P)  # all tokens of target 0, of target 1, ...
            hit = np.flatnonzero(miss_Y < 0)
            line_T = np.searchsorted(hit, lines_T)
            target = np.repeat(np.arange(T), np.diff(line_T))
            token = hit - target * P
            chance_Y = (1.0 - np.exp(miss_Y[hit])) * (seen_LPT[layer].ravel()[token * T + target] == 0)
            for kind, count in enumerate(tokens.tokens_W):
                of_kind_Y = chance_Y if tokens.kind_P is None else chance_Y * (tokens.kind_P[token] == kind)
                chance_LWT[layer, kind] = _line_sums(of_kind_Y, line_T) / count
        return chance_LWT


def _merged(cell_S: IntArray, target_S: IntArray, share_S: FloatArray, T: int) -> tuple[IntArray, IntArray, FloatArray]:
    """Take copies on one target together: (cell [M] ascending, target [M], log of the chance to miss [M])."""
    pair_M, pair_of_slot = np.unique(cell_S * T + target_S, return_inverse=True)
    share_M = np.bincount(pair_of_slot, share_S, len(pair_M))
    log_miss_M = np.maximum(np.log1p(-np.minimum(share_M, 1 - 1e-16)), LOG_MISS_FLOOR)
    return pair_M // T, pair_M % T, log_miss_M


def _line_sums(value_Y: FloatArray, line_T: IntArray) -> FloatArray:
    """Return the sum of each line of values, lines given by their ends; empty lines sum to 0."""
    sums_T: FloatArray = np.add.reduceat(np.append(value_Y, 0.0), line_T[:-1]) * (np.diff(line_T) > 0)
    return sums_T


def _means(seen_LPT: NDArray[np.uint8], tokens: StepTokens) -> FloatArray:
    """Return the part of the tokens of each kind that see each target [L, W, T]."""
    kind_P = np.zeros(seen_LPT.shape[1], dtype=np.int64) if tokens.kind_P is None else tokens.kind_P
    own_WP = (kind_P[None, :] == np.arange(len(tokens.tokens_W))[:, None]).astype(np.float32)
    counts_LWT = own_WP @ seen_LPT.astype(np.float32)  # exact: whole numbers below 2^24
    means: FloatArray = counts_LWT / tokens.tokens_W[None, :, None].astype(float)
    return means


def _masks(cell_S: IntArray, target_S: IntArray, num_cells: int) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return the bit of the only target of each (layer, expert), and which of them have several targets."""
    low_X = np.full(num_cells, MOST_TARGETS, dtype=np.int64)
    high_X = np.full(num_cells, -1, dtype=np.int64)
    np.minimum.at(low_X, cell_S, target_S)
    np.maximum.at(high_X, cell_S, target_S)
    one = low_X == high_X
    mask_X = np.where(one, np.uint64(1) << np.where(one, low_X, 0).astype(np.uint64), np.uint64(0))
    return mask_X, low_X < high_X
