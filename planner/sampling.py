"""Tokens sampled from marginal expert counts: top_k distinct experts each, within their groups, at the given rates.

Where only counts are known, the rows that a token sends depend on which experts it visits *together*. The sample keeps
to what is known, the rate of every expert and the group limit of the router, and is random in all else:

1. `inclusion_rates`: a token visits expert e at the rate pi_e = min(1, c p_e); the rates of a layer sum to top_k.
2. Without groups: systematic sampling at these rates (Madow, Annals of Mathematical Statistics 20, 1949) over the
   experts in random order: lay intervals of length pi_e end to end, and take those that u, u + 1, ... fall into, u
   uniform in [0, 1). It gives exactly top_k experts, each at its own rate; the random order makes pairs behave like
   simple random sampling.
3. With groups (DeepSeek: the best top_groups groups, then the best experts inside them): a token's groups are drawn in
   the same way, at rates proportional to the visits to a group, but at least that of its busiest expert; then its
   experts inside them, at rates fitted so that over all sets of groups every expert comes out at pi_e.

Rates are integers of 2^-36 inside, so that "exactly top_k, all distinct" holds without rounding.

Legend of shapes: L layers, E experts, G groups, T tokens, K top_k, J top_groups, S distinct sets of groups, R rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topologies.errors import BadInput

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

UNIT = 2**36
"""The integer that stands for a rate of 1."""
ORDERS = 2048
"""Random orders of the experts that the tokens of a layer share."""
CHUNK_TOKENS = 8192
"""Tokens laid out at a time."""
NOTHING = 1e-200
"""Of the largest weight of a row: less than that together counts as no weight."""
TINY_RATE = 1e-12
"""The least rate of a group: rounded to none, but never divided by zero."""
POOL_SETS = 4096
"""Draws from which the frequency of each set of groups is estimated."""
FIT_SETS = 256
"""Above so many distinct sets of groups (no published router has them) the rates inside a set are not fitted."""
FIT_ROUNDS = 12


def sample_tokens(p_LE: Floats, top_k: int, groups: int, top_groups: int, tokens: int, seed: int) -> NDArray[np.uint16]:
    """Sample the experts of tokens so that every expert gets its part of the visits.

    Args:
        p_LE: [L, E], the part of a layer's token-expert pairs that each expert gets; a row sums to 1 (any positive sum
            will do). A token visits an expert once, so parts above 1 / top_k are cut and the others scaled up.
        top_k: experts a token visits.
        groups: of equal size, each of consecutive experts.
        top_groups: a token stays within so many groups.
        tokens: how many to sample for each layer; layers are independent of each other.
        seed: same inputs and seed, same tokens.

    Returns:
        uint16 [L, T, K] of expert ids, distinct within a token, ascending.

    Raises:
        BadInput: rates that are no probabilities, or sizes that contradict each other.

    """
    _check(p_LE, top_k, groups, top_groups, tokens=tokens, seed=seed)
    out = np.empty((len(p_LE), tokens, top_k), dtype=np.uint16)
    pi_LE = inclusion_rates(np.asarray(p_LE, dtype=np.float64), top_k)
    for layer, pi_E in enumerate(pi_LE):
        rng = np.random.default_rng([seed, layer])
        if top_groups < groups:
            out[layer] = _sample_grouped(pi_E, top_k, groups, top_groups, tokens=tokens, rng=rng)
        else:
            out[layer] = _sample_rows(pi_E[None, :], np.zeros(tokens, dtype=np.int64), top_k, rng)
    return out


def inclusion_rates(weights_NE: Floats, total: int, eligible_NE: NDArray[np.bool_] | None = None) -> Floats:
    """Return rates [N, E] proportional to the weights, at most 1, that sum to `total` in every row.

    Where fewer than `total` weights of a row are positive, the eligible ones without weight share the rest evenly.

    Args:
        weights_NE: [N, E], finite, at least 0, 0 where not eligible.
        total: at most the eligible entries of every row.
        eligible_NE: [N, E]; None = all.

    """
    eligible = np.ones(weights_NE.shape, dtype=bool) if eligible_NE is None else eligible_NE
    highest = weights_NE.max(axis=1, keepdims=True)
    weights = weights_NE / np.where(highest > 0, highest, 1.0)
    full = np.zeros(weights.shape, dtype=bool)
    while True:
        free = np.where(full, 0.0, weights)
        mass = free.sum(axis=1, keepdims=True)
        room = total - full.sum(axis=1, keepdims=True)
        bare = (mass < NOTHING) & (room > 0)
        if bare.any():
            free = np.where(bare, eligible & ~full, free)
            mass = free.sum(axis=1, keepdims=True)
        rates = np.where(full, 1.0, free * (room / np.maximum(mass, NOTHING)))
        over = (rates > 1.0) & ~full
        if not over.any():
            return rates
        full |= over


def _sample_rows(rates_SE: Floats, set_T: Ints, top_k: int, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Return [T, K] experts of tokens; token t is drawn with the rates `rates_SE[set_T[t]]`."""
    E = rates_SE.shape[1]
    units_SE = _to_units(rates_SE, top_k)
    out = np.empty((len(set_T), top_k), dtype=np.uint16)
    for chunk in _chunks(len(set_T), top_k, E):
        sets = set_T[chunk]
        orders = min(len(sets), ORDERS)
        order_OE = rng.permuted(np.broadcast_to(np.arange(E, dtype=np.uint16), (orders, E)), axis=1)
        key, row_T = np.unique(sets * orders + np.arange(len(sets)) % orders, return_inverse=True)
        order_RE = order_OE[key % orders]
        units_RE = units_SE.take(order_RE + (key // orders * E)[:, None])
        picked = _systematic(units_RE, row_T, top_k, rng)
        out[chunk] = np.sort(order_RE[row_T[:, None], picked], axis=1)
    return out


def _chunks(rows: int, total: int, entries: int) -> Iterator[slice]:
    """Yield slices of so many rows that sums of their units fit 63 bits and their intervals some 100 MB."""
    step = max(1, min(CHUNK_TOKENS, 2**62 // UNIT // total, 2**24 // entries))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _systematic(units_RE: Ints, row_T: Ints, total: int, rng: np.random.Generator) -> Ints:
    """Return [T, total] distinct positions; token t lays out row `row_T[t]`, whose intervals sum to total * UNIT."""
    R, E = units_RE.shape
    starts_R = np.arange(R, dtype=np.int64) * (total * UNIT)
    ends_RE = np.cumsum(units_RE, axis=1)
    ends_RE += starts_R[:, None]
    first_T = starts_R[row_T] + rng.integers(0, UNIT, len(row_T))
    marks = first_T[:, None] + np.arange(total, dtype=np.int64) * UNIT
    return np.asarray(np.searchsorted(ends_RE.ravel(), marks, side="right") - row_T[:, None] * E)


def _to_units(rates_NE: Floats, total: int) -> Ints:
    """Return rates that sum to `total` as integers of 1 / UNIT, at most UNIT each, that sum to total * UNIT exactly.

    What rounding took goes to the first entries that have room, those with a rate before those without.
    """
    units = np.minimum(np.floor(rates_NE * UNIT), UNIT).astype(np.int64)
    excess = units.sum(axis=1, keepdims=True) - total * UNIT
    units -= np.clip(excess - (np.cumsum(units, axis=1) - units), 0, units)
    for may_grow in (units > 0, np.ones(units.shape, dtype=bool)):
        missing = total * UNIT - units.sum(axis=1, keepdims=True)
        room = np.where(may_grow, UNIT - units, 0)
        units += np.clip(missing - (np.cumsum(room, axis=1) - room), 0, room)
    return units


def _sample_grouped(
    pi_E: Floats, top_k: int, groups: int, top_groups: int, *, tokens: int, rng: np.random.Generator
) -> NDArray[np.uint16]:
    pi_GI = pi_E.reshape(groups, -1)
    q_G = _group_rates(pi_GI, top_groups)
    sets_SG, set_D = _distinct_rows(_draw_sets(q_G, top_groups, max(tokens, POOL_SETS), rng))
    allowed_SE = np.repeat(sets_SG, pi_GI.shape[1], axis=1)
    frequency_S = np.bincount(set_D, minlength=len(sets_SG)) / len(set_D)
    rates_SE = _fitted_rates(pi_E, (pi_GI / q_G[:, None]).ravel(), allowed_SE, frequency_S, top_k)
    return _sample_rows(rates_SE, set_D[:tokens], top_k, rng)


def _draw_sets(q_G: Floats, top_groups: int, draws: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return [draws, G], the groups of each draw: `top_groups` of them, each at its rate."""
    units_G = _to_units(q_G[None, :], top_groups)[0]
    chosen_DG = np.zeros((draws, len(q_G)), dtype=bool)
    for chunk in _chunks(draws, top_groups, len(q_G)):
        rows = np.arange(chunk.stop - chunk.start)
        order = rng.permuted(np.broadcast_to(np.arange(len(q_G)), (len(rows), len(q_G))), axis=1)
        picked = _systematic(units_G[order], rows, top_groups, rng)
        chosen_DG[chunk.start + rows[:, None], np.take_along_axis(order, picked, axis=1)] = True
    return chosen_DG


def _group_rates(pi_GI: Floats, top_groups: int) -> Floats:
    """Return the rate [G] at which tokens choose each group: by its visits, and at least that of its busiest expert.

    The rates sum to top_groups. Where the floors alone exceed that, which no group-limited router can have produced,
    they are scaled down.
    """
    floor_G = pi_GI.max(axis=1)
    if floor_G.sum() >= top_groups:
        return np.asarray(np.clip(inclusion_rates(floor_G[None, :], top_groups)[0], TINY_RATE, 1.0))
    visits_G = pi_GI.sum(axis=1)
    low, high = 0.0, 2.0 ** np.ceil(np.log2(1.0 / TINY_RATE))
    for _ in range(100):
        middle = (low + high) / 2
        enough = np.clip(middle * visits_G, floor_G, 1.0).sum() >= top_groups
        low, high = (low, middle) if enough else (middle, high)
    above_G = np.clip(high * visits_G, floor_G, 1.0) - floor_G
    if floor_G.sum() + above_G.sum() < top_groups:  # too few groups have visits: the others fill the set
        above_G = 1.0 - floor_G
    q_G = floor_G + above_G * ((top_groups - floor_G.sum()) / above_G.sum())
    return np.asarray(np.clip(q_G, TINY_RATE, 1.0))


def _fitted_rates(
    pi_E: Floats, weights_E: Floats, allowed_SE: NDArray[np.bool_], frequency_S: Floats, top_k: int
) -> Floats:
    """Return the rates [S, E] inside each set of groups whose mean over the sets is pi_E, by proportional fitting."""
    rounds = FIT_ROUNDS if len(allowed_SE) <= FIT_SETS else 1
    weights = weights_E
    rates_SE = np.empty(0)
    for _ in range(rounds):
        rates_SE = inclusion_rates(np.where(allowed_SE, weights, 0.0), top_k, allowed_SE)
        mean_E = frequency_S @ rates_SE
        weights = weights * np.clip(pi_E / np.maximum(mean_E, TINY_RATE), 0.01, 100.0)
    return rates_SE


def _distinct_rows(flags_DG: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], Ints]:
    """Return the distinct rows of a boolean matrix and, for each row, which of them it is."""
    packed = np.ascontiguousarray(np.packbits(flags_DG, axis=1))
    key = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return flags_DG[first], inverse.astype(np.int64)


def _check(p_LE: NDArray[Any], top_k: int, groups: int, top_groups: int, *, tokens: int, seed: int) -> None:
    """Raise BadInput where `sample_tokens` cannot mean anything."""
    if p_LE.ndim != 2 or p_LE.size == 0:
        raise BadInput(f"probabilities have shape {list(p_LE.shape)}, not [layers, experts]")
    E = p_LE.shape[1]
    if not (np.isfinite(p_LE).all() and (p_LE >= 0).all() and (p_LE.max(axis=1) > 0).all()):
        raise BadInput("expert probabilities must be finite, at least 0 and not all 0 in a layer")
    if not 1 <= top_k <= E <= 2**16:
        raise BadInput(f"top_k ({top_k}) must be at least 1 and at most experts ({E}), experts at most 65536")
    if not 1 <= top_groups <= groups or E % groups:
        raise BadInput(f"groups ({groups}) must divide experts ({E}); top_groups ({top_groups}) is 1..groups")
    if top_groups * (E // groups) < top_k:
        raise BadInput(f"top_k ({top_k}) > experts in top_groups groups ({top_groups * (E // groups)})")
    if tokens < 0 or seed < 0:
        raise BadInput(f"tokens ({tokens}) and seed ({seed}) are at least 0")
