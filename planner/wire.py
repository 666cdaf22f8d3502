"""Rows that cross the wire: a placement and a workload give the rows from every source class to every target.

Shapes: C source classes, E experts, T targets (ranks R or domains D), S slots, P sampled tokens, U distinct share rows.

Rows come in two counts: token-expert pairs, exact for any workload, and distinct (token, target) pairs, counted over
sampled or traced tokens. Where an expert has several copies, each token-expert pair picks one with the probability of
its share, independently of the token's other experts; with whole shares (0 or 1) the count over a trace is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from planner.placement import FloatArray, IntArray, Placement

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
    """

    def __init__(self, tokens: TokenSample, class_domain_C: IntArray, mass_DET: FloatArray) -> None:
        """Store the inputs; `mass_DET` is the share of expert e that source domain d sends to target t."""
        self._tokens = tokens
        self._class_domain_C = class_domain_C
        # most placements treat all source domains alike: each distinct row of shares is worked out once
        flat_DX = mass_DET.reshape(len(mass_DET), -1)
        first_of_D = np.array([next(i for i in range(d + 1) if np.array_equal(flat_DX[i], flat_DX[d])) for d in range(len(flat_DX))])
        self._alike_D = first_of_D
        self._log_miss = {
            int(d): np.maximum(np.log1p(-np.minimum(mass_DET[d], 1 - 1e-16)), LOG_MISS_FLOOR) for d in np.unique(first_of_D)
        }
        self._miss_PT = {d: np.exp(tokens.expert_PE @ log_miss_ET) for d, log_miss_ET in self._log_miss.items()}

    def rows_CT(self) -> FloatArray:
        """Return the rows from one rank of each class to each target, own domain or rank included."""
        tokens = self._tokens
        if tokens.class_P is None:
            mean_T = {d: 1.0 - miss_PT.mean(axis=0) for d, miss_PT in self._miss_PT.items()}
            return np.stack([tokens.tokens_C[c] * mean_T[d] for c, d in enumerate(self._alike_of_class())])
        return np.stack(
            [tokens.weights_P(c) @ (1.0 - self._miss_PT[d]) for c, d in enumerate(self._alike_of_class())]
        )

    def gradient_CET(self) -> FloatArray:
        """Return d rows[c, t] / d mass[domain of c, e, t]: rows that the expert alone brings to the target."""
        tokens = self._tokens
        expert_EP = tokens.expert_PE.T.tocsr()
        per_token: dict[int, FloatArray] = {}
        gradient = []
        for c, d in enumerate(self._alike_of_class()):
            if tokens.class_P is not None:
                alone_ET = expert_EP @ (self._miss_PT[d] * tokens.weights_P(c)[:, None])
                gradient.append(alone_ET * np.exp(-self._log_miss[d]))
                continue
            if d not in per_token:
                per_token[d] = (expert_EP @ self._miss_PT[d]) * np.exp(-self._log_miss[d]) / tokens.expert_PE.shape[0]
            gradient.append(per_token[d] * tokens.tokens_C[c])
        return np.stack(gradient)

    def _alike_of_class(self) -> list[int]:
        return [int(self._alike_D[d]) for d in self._class_domain_C]
