"""Losses that keep a router balanced and its logits small; each is a scalar in fp32 at least.

Shapes: T tokens, K top_k, E experts.
"""

from __future__ import annotations

from torch import Tensor

from executor.capacity import count_ids


def switch_aux_loss(scores_TE: Tensor, ids_TK: Tensor) -> Tensor:
    """Return E * sum over e of f_e * P_e (Switch Transformers, eq. 4 to 6); 1 where all experts get the same.

    f_e is the part of the pairs that goes to e and has no gradient, P_e the mean over tokens of e's score divided by
    the token's sum of scores (which changes nothing in a softmax; DeepSeek-V3, eq. 18 to 20, for sigmoids). For
    K > 1 some count f_e in tokens rather than pairs, and so get K times as much (transformers does).
    """
    T, E = scores_TE.shape
    count_E = count_ids(ids_TK, E).to(scores_TE.dtype)
    part_E = count_E / count_E.sum().clamp(min=1)
    mean_E = (scores_TE / scores_TE.sum(-1, keepdim=True)).sum(0) / max(T, 1)
    return E * (part_E * mean_E).sum()


def router_z_loss(logits_TE: Tensor) -> Tensor:
    """Return the mean over tokens of logsumexp(logits) squared (ST-MoE, eq. 5); 0 where there are no tokens."""
    return logits_TE.logsumexp(-1).square().sum() / max(len(logits_TE), 1)
