"""How small the part of a row is that a token-expert pair brings, from how far tokens can be kept together at all.

What is best for one expert is not open to all: a hot expert is nobody's companion on two targets. So all experts are
taken together. For whole n >= 0 and m = 1, 2, ...

    [n > 0]  >=  ((2m + 1) n - n^2) / (m (m + 1))               (Dawson and Sankoff 1967; exact at n = m and m + 1)

Let y_e <= 1 be the part of the tokens for expert e that go to a target, v_e its visits, M_ef the tokens that visit both
e and f (zero on the diagonal), and let every expert have an m of its own, with b_e = 1 / (m_e (m_e + 1)). Dealt out to
the experts that make up n, and summed over the tokens, the rows to the target are

    at least  sum over e ( 2 m_e b_e v_e y_e )  -  y'W y,        W_ef = (b_e + b_f) / 2 * M_ef.

With s_e = b_e v_e, eigenvalues l_1 >= l_2 ... and eigenvectors u_i of W / sqrt(s s'), and any number k of them

    y'W y  <=  l_k+1 * sum of s_e y_e  +  sum over i <= k of (l_i - l_k+1) (sum over e of |u_ie| sqrt(s_e) y_e)^2

where by Cauchy and Schwarz, for any t_e > 0, T the sum of the c largest, on a target of c slots

    (sum of r_e y_e)^2  <=  T * sum of r_e^2 / t_e * y_e.

All of it is a sum over experts: what is left of a row for each pair of e. The best k is taken, and m_e follows the mean
n that comes out. The sample counts as it is: few tokens look more alike than many, and the bound is weaker for it.

Shapes: E experts (those that are visited), I eigenvectors.
"""

from __future__ import annotations

import numpy as np

from planner.placement import FloatArray

FIRST_M = 3.0
ROUNDS = 3  # a fourth changes nothing (58 layers of DeepSeek-V3)
MOST_PEELED = 12  # eigenvectors that are taken by themselves


def cohesive_parts(together_EE: FloatArray, slots: int) -> FloatArray:
    """Return the least part of a row [E] that a pair of each expert brings to a target of so many slots; 0 at worst."""
    parts_E = np.zeros(len(together_EE))
    seen = np.flatnonzero(together_EE.diagonal())
    visits_E = together_EE.diagonal()[seen]
    shared_EE = together_EE[np.ix_(seen, seen)] - np.diag(visits_E)
    m_E, best = np.full(len(seen), FIRST_M), 0.0
    for _ in range(ROUNDS):
        b_E = 1.0 / (m_E * (m_E + 1))
        kept_E = _most_kept(shared_EE * (b_E[:, None] + b_E[None, :]) / 2, b_E * visits_E, slots)
        left_E = 2 * m_E * b_E - kept_E / visits_E
        total = float(visits_E @ left_E)
        if left_E.min(initial=0.0) >= 0.0 and total > best:
            best, parts_E[seen] = total, left_E
        m_E = np.maximum(np.floor(1.0 + kept_E / (b_E * visits_E)), 1.0)
    return parts_E


def _most_kept(form_EE: FloatArray, scale_E: FloatArray, slots: int) -> FloatArray:
    """Return weights [E] whose sum over a target is never below the quadratic form there, small in total."""
    root_E = np.sqrt(scale_E)
    value_I, vector_EI = np.linalg.eigh(form_EE / np.outer(root_E, root_E))
    value_I = np.maximum(np.append(value_I[::-1], 0.0), 0.0)
    peeled = min(MOST_PEELED, len(scale_E))
    share_EI = _squares(np.abs(vector_EI[:, ::-1][:, :peeled]) * root_E[:, None], slots)
    options = [value_I[k] * scale_E + share_EI[:, :k] @ (value_I[:k] - value_I[k]) for k in range(1, peeled + 1)]
    return min(options, key=lambda kept_E: float(kept_E.sum()))


def _squares(r_EI: FloatArray, slots: int) -> FloatArray:
    """Return weights [E, I] whose sum over a target is never below (sum of r)^2 there, for each i."""
    falling_EI = -np.sort(-r_EI, axis=0)
    t_EI = np.maximum(r_EI, np.maximum(falling_EI[min(slots, len(r_EI)) - 1], np.finfo(float).tiny))
    most_I = np.maximum(falling_EI[:slots], np.finfo(float).tiny).sum(axis=0)
    weight_EI: FloatArray = most_I * r_EI**2 / t_EI
    return weight_EI
