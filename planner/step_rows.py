"""Rows of every layer of a plan at once, for prediction: the same numbers as `planner.wire`, in a few array operations.

An expert whose copies all serve one target is a bit of a mask, a token's targets are the OR of its experts' bits: no
floating point is touched. Experts with copies on several targets are counted by their chance to be missed.

Shapes: L layers, C source classes, D domains, E experts, T targets (64 at a time), P sampled tokens, K experts a token,
S slots of all layers together, X cells (layer, expert), W kinds of tokens, U distinct rows of shares, M copies,
Y tokens of copies in one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from planner.placement import BoolArray, FloatArray, IntArray, Placement
from planner.wire import LOG_MISS_FLOOR
from planner.workload import Workload

WORD = 64  # targets in one mask
BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.float64)  # of bytes


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

    cell_KLP: IntArray
    token_of_cell: IntArray
    first_X: IntArray
    tokens_LC: FloatArray
    kind_P: IntArray | None
    kind_C: IntArray
    tokens_W: IntArray

    @cached_property
    def visits_LWE(self) -> IntArray:
        """Return how many tokens of each kind visit each expert."""
        L, W = self.cell_KLP.shape[1], len(self.tokens_W)
        cells = len(self.first_X) - 1
        if self.kind_P is None:
            visits_XW = np.diff(self.first_X)[:, None]
        else:
            key_KLP = self.cell_KLP * W + self.kind_P
            visits_XW = np.bincount(key_KLP.ravel(), minlength=cells * W).reshape(cells, W)
        visits_LWE: IntArray = visits_XW.reshape(L, cells // L, W)[:, :-1].transpose(0, 2, 1)
        return visits_LWE

    @cached_property
    def most_pairs_L(self) -> IntArray:
        """Return the most experts that a token of each layer visits."""
        masked = (len(self.first_X) - 1) // self.cell_KLP.shape[1]
        pairs_LP = (self.cell_KLP % masked != masked - 1).sum(axis=0)
        most_L: IntArray = pairs_LP.max(axis=1)
        return most_L


_TOKENS: WeakKeyDictionary[Workload, StepTokens] = WeakKeyDictionary()


def step_tokens(workload: Workload) -> StepTokens:
    """Return the tokens of a workload for counting."""
    if workload not in _TOKENS:
        _TOKENS[workload] = _laid_out(workload)
    return _TOKENS[workload]


def _laid_out(workload: Workload) -> StepTokens:
    E, (L, P, K) = workload.num_experts, workload.tokens_LPK.shape
    narrow = np.min_scalar_type(E)  # NumPy sorts small integers by their digits, several times faster
    ids_LPK = np.sort(np.where(workload.tokens_LPK < 0, E, workload.tokens_LPK).astype(narrow), axis=2)
    ids_LPK[:, :, 1:][ids_LPK[:, :, 1:] == ids_LPK[:, :, :-1]] = E
    pairs_L = np.maximum((workload.tokens_LPK >= 0).sum(axis=(1, 2)) / P, 1e-9)
    cell_LPK = ids_LPK + (np.arange(L) * (E + 1))[:, None, None]
    by_expert_LX = np.argsort(ids_LPK.reshape(L, P * K), axis=1, kind="stable")
    class_P, classes = workload.token_class_P, workload.rows_LCE.shape[1]
    kind_C = np.zeros(classes, dtype=np.int64) if class_P is None else np.arange(classes)
    per_kind = np.array([P]) if class_P is None else np.bincount(class_P, minlength=classes)
    return StepTokens(
        cell_KLP=np.ascontiguousarray(cell_LPK.transpose(2, 0, 1)),
        token_of_cell=by_expert_LX.ravel() // K,
        first_X=np.concatenate([[0], np.cumsum(np.bincount(cell_LPK.ravel(), minlength=L * (E + 1)))]),
        tokens_LC=workload.rows_LCE.sum(axis=2) / pairs_L[:, None],
        kind_P=class_P,
        kind_C=kind_C,
        tokens_W=np.maximum(per_kind, 1).astype(np.int64),
    )


class StepSlots:
    """All slots of a plan side by side, and what can be summed from them; sums are kept, whatever exchange asks."""

    def __init__(self, workload: Workload, placements: Sequence[Placement]) -> None:
        """Concatenate the placements of all layers."""
        self.workload = workload
        self.expert_S = np.concatenate([p.expert_S for p in placements])
        self.rank_S = np.concatenate([p.rank_S for p in placements])
        self.layer_S = np.repeat(np.arange(len(placements)), [len(p.expert_S) for p in placements])
        self.share_DS = np.concatenate([p.share_DS for p in placements], axis=1)

    @cached_property
    def pairs_LCR(self) -> FloatArray:
        """Return the token-expert pairs from one rank of each class to each rank."""
        workload = self.workload
        L, C, R = workload.num_layers, workload.rows_LCE.shape[1], workload.num_ranks
        key_S = self.layer_S * R + self.rank_S
        pairs_LCR = np.empty((L, C, R))
        for c, domain in enumerate(workload.class_domain_C):
            rows_S = workload.rows_LCE[self.layer_S, c, self.expert_S] * self.share_DS[domain]
            pairs_LCR[:, c] = np.bincount(key_S, rows_S, L * R).reshape(L, R)
        return pairs_LCR

    def active_LR(self, chosen_S: BoolArray) -> FloatArray:
        """Return the expected number of active experts on each rank (a slot that serves nobody is not active)."""
        workload = self.workload
        chance_LE = -np.expm1(-workload.load_LE)  # Poisson: the step's count of a rare expert varies
        active_S = chance_LE[self.layer_S, self.expert_S] * (self._used_S & chosen_S)
        L, R = workload.num_layers, workload.num_ranks
        active_X: FloatArray = np.bincount(self.layer_S * R + self.rank_S, active_S, L * R).astype(float)
        return active_X.reshape(L, R)

    @cached_property
    def merged_S(self) -> BoolArray:
        """Return which slots are left where those of one expert on one rank are merged into one."""
        L, R, E = self.workload.num_layers, self.workload.num_ranks, self.workload.num_experts
        key_S = (self.layer_S * R + self.rank_S) * E + self.expert_S
        number_S = np.arange(len(key_S))
        last_X = np.empty(L * R * E, dtype=np.int64)  # only those written below are read
        last_X[key_S] = number_S
        last_X[key_S[self._used_S]] = number_S[self._used_S]  # the one that stays is active if any of them is
        merged_S: BoolArray = last_X[key_S] == number_S
        return merged_S

    @cached_property
    def _used_S(self) -> BoolArray:
        used_S: BoolArray = self.share_DS.max(axis=0) > 0
        return used_S

    @cached_property
    def by_rank_LCR(self) -> FloatArray:
        """Return the rows by distinct rank from one rank of each class."""
        return self._distinct_LCT(np.arange(self.workload.num_ranks), self.workload.num_ranks)

    @cached_property
    def by_domain_LCD(self) -> FloatArray:
        """Return the rows by distinct domain from one rank of each class."""
        return self._distinct_LCT(np.asarray(self.workload.cluster.domain_of_rank), self.workload.num_domains)

    def _distinct_LCT(self, target_R: IntArray, num_targets: int) -> FloatArray:
        tokens = step_tokens(self.workload)
        target_S = target_R[self.rank_S]
        cell_S = self.layer_S * (self.workload.num_experts + 1) + self.expert_S
        seen: dict[bytes, int] = {}
        alike_D = np.array([seen.setdefault(share_S.tobytes(), len(seen)) for share_S in self.share_DS])
        alike_C = alike_D[self.workload.class_domain_C]
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
        only_X = _only_targets(cell_S, target_S, len(tokens.first_X) - 1)
        spread_S = only_X[cell_S] < 0
        words = []
        for first in range(0, num_targets, WORD):
            width = min(WORD, num_targets - first)
            visited_LP = _visited(tokens, only_X - first, width)
            chance_LWT = _means(visited_LP, tokens, width)
            copies = np.flatnonzero(spread_S & (target_S >= first) & (target_S < first + width))
            if copies.size:
                merged = _merged(cell_S[copies], target_S[copies] - first, share_S[copies], width)
                chance_LWT += _spread(tokens, merged, visited_LP, width)
            words.append(chance_LWT)
        return np.concatenate(words, axis=2)


def _spread(
    tokens: StepTokens, copies: tuple[IntArray, IntArray, FloatArray], visited_LP: NDArray[np.uint64], width: int
) -> FloatArray:
    """Return the chance of a visit that only experts with copies on several targets bring [L, W, T].

    A token with several such experts misses a target with the product of their chances; what it hits is dealt to them
    in proportion to the logarithms, so that summing over tokens of copies never needs a list of the targets hit.
    """
    (L, P), (cell_M, target_M, log_miss_M) = visited_LP.shape, copies
    W, T, cells = len(tokens.tokens_W), width, len(tokens.first_X) - 1
    first_M, count_M = tokens.first_X[cell_M], np.diff(tokens.first_X)[cell_M]
    edge_L = np.searchsorted(cell_M, np.arange(L + 1) * (cells // L)).tolist()
    hits_LX = np.zeros((L, W * T))
    for layer, span in enumerate(map(slice, edge_L[:-1], edge_L[1:])):  # one at a time: its tokens stay in the cache
        count = count_M[span]
        end = np.cumsum(count)
        place_Y = np.arange(int(count.sum())) + np.repeat(first_M[span] - (end - count), count)
        token_Y, target_Y = tokens.token_of_cell[place_Y], np.repeat(target_M[span], count)
        own_Y = np.repeat(log_miss_M[span], count)
        key_Y = target_Y * P + token_Y
        all_Y = np.bincount(key_Y, own_Y, T * P)[key_Y]
        seen_Y = (visited_LP[layer][token_Y] >> target_Y.astype(np.uint64)) & np.uint64(1)
        chance_Y = np.where(seen_Y, 0.0, (1.0 - np.exp(all_Y)) * own_Y / all_Y)  # expm1 takes ten times as long
        line_Y = target_Y if tokens.kind_P is None else tokens.kind_P[token_Y] * T + target_Y
        hits_LX[layer] = np.bincount(line_Y, chance_Y, W * T)
    chance_LWT: FloatArray = hits_LX.reshape(L, W, T) / tokens.tokens_W[None, :, None]
    return chance_LWT


def _merged(cell_S: IntArray, target_S: IntArray, share_S: FloatArray, T: int) -> tuple[IntArray, IntArray, FloatArray]:
    """Take copies on one target together: (cell [M] ascending, target [M], log of the chance to miss [M])."""
    pair_M, pair_of_slot = np.unique(cell_S * T + target_S, return_inverse=True)
    share_M = np.bincount(pair_of_slot, share_S, len(pair_M))
    log_miss_M = np.maximum(np.log1p(-np.minimum(share_M, 1 - 1e-16)), LOG_MISS_FLOOR)
    return pair_M // T, pair_M % T, log_miss_M


def _only_targets(cell_S: IntArray, target_S: IntArray, num_cells: int) -> IntArray:
    """Return the target of each cell whose slots are all on one; -1 where they are on several, or none is used."""
    only_X = np.full(num_cells, -1)
    only_X[cell_S] = target_S
    only_X[cell_S[only_X[cell_S] != target_S]] = -1
    return only_X


def _visited(tokens: StepTokens, only_X: IntArray, width: int) -> NDArray[np.uint64]:
    """Return the targets 0..width - 1 that each token surely visits, as a mask [L, P]."""
    inside_X = (only_X >= 0) & (only_X < width)
    mask_X = np.where(inside_X, np.uint64(1) << np.where(inside_X, only_X, 0).astype(np.uint64), np.uint64(0))
    visited_LP: NDArray[np.uint64] = mask_X[tokens.cell_KLP[0]]
    for cell_LP in tokens.cell_KLP[1:]:
        visited_LP |= mask_X[cell_LP]
    return visited_LP


def _means(visited_LP: NDArray[np.uint64], tokens: StepTokens, width: int) -> FloatArray:
    """Return the part of the tokens of each kind that visit each target [L, W, T]: bytes of masks counted, not bits."""
    (L, P), W = visited_LP.shape, len(tokens.tokens_W)
    kind_P = np.zeros(P, dtype=np.int64) if tokens.kind_P is None else tokens.kind_P
    line_LP = (np.arange(L)[:, None] * W + kind_P) * 256
    byte_LPB = visited_LP.astype("<u8", copy=False).view(np.uint8).reshape(L, P, 8)
    counts = []
    for b in range(-(-width // 8)):
        alike = np.bincount((line_LP + byte_LPB[:, :, b]).ravel(), minlength=L * W * 256)
        counts.append(alike.reshape(L, W, 256) @ BITS)
    means_LWT: FloatArray = np.concatenate(counts, axis=2)[:, :, :width] / tokens.tokens_W[None, :, None]
    return means_LWT


def linked_rows_LCE(workload: Workload) -> FloatArray:
    """Return the pairs behind the rows that are counted over sampled tokens, from one rank of each class."""
    tokens = step_tokens(workload)
    weight_LC = tokens.tokens_LC / tokens.tokens_W[tokens.kind_C]
    rows_LCE: FloatArray = weight_LC[:, :, None] * tokens.visits_LWE[:, tokens.kind_C]
    return rows_LCE
