"""Robust fits of non-negative physical terms, in as many ranges of message size as the measurements call for.

Within a range the time is linear in the terms; relative errors are minimised by non-negative least squares, reweighted
until outliers stop counting. Noise of a timer adds time and never takes any away, so a measurement far above the model
loses its weight sooner than one far below. Ranges are chosen by dynamic programming over the message sizes, at a
price for each further one. The last range has no upper end: where only messages so small were measured that no price
of bytes rises above the noise, what was fitted to noise would decide every larger message, and is left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from planner.exchange_model import FloatArray, MessageRegime

ABOVE, BELOW = 0.02, 0.10  # relative scales at which a measurement above, or below, the model starts to lose weight
NOISE = 0.05  # relative; what an ordinary measurement is off by
RANGE_PRICE = 5.0  # cost of one more range, in units of squared noise
MAX_SIZES = 48  # distinct message sizes that may start a range; more are thinned out
ITERATIONS = 10
OF_BYTES = ("wire", "inter_wire", "inter_sm_wire", "message")


def fit_regimes(
    terms: tuple[str, ...],
    values: dict[str, FloatArray],
    message_bytes_X: FloatArray,
    time_us_X: FloatArray,
    *,
    one_range: bool = False,
) -> tuple[MessageRegime, ...]:
    """Return the ranges and their terms for X measured cases (X >= 1).

    Terms that the cases cannot tell from earlier ones, or from noise, are left out: with one number of ranks,
    `doubling` is part of `start`.
    """
    kept = _identifiable(terms, values)
    matrix_XJ = np.stack([values[term] for term in kept], axis=1)
    level_X, ends = _levels(np.zeros(len(time_us_X)) if one_range else message_bytes_X)
    segments = _best_segments(matrix_XJ, time_us_X, level_X, len(ends))
    regimes = []
    for number, (stop, us) in enumerate(segments):
        last = number == len(segments) - 1
        edge = None if last else float(np.sqrt(ends[stop - 1][1] * ends[stop][0]))
        prices = dict(zip(kept, us.tolist(), strict=True))
        if last:
            inside_X = level_X >= (segments[-2][0] if number else 0)
            prices = _above_noise(prices, matrix_XJ[inside_X], time_us_X[inside_X])
        regimes.append(MessageRegime(max_bytes=edge, us={term: float(f"{v:.6g}") for term, v in prices.items()}))
    return tuple(regimes)


def _above_noise(prices: dict[str, float], matrix_XJ: FloatArray, time_us_X: FloatArray) -> dict[str, float]:
    """Return the prices of a range; without those of bytes, fitted anew, where all are within the noise of every case.

    Where one rises above it, large messages were measured, and all are kept.
    """
    part_J = (matrix_XJ / time_us_X[:, None]).max(axis=0) * np.array(list(prices.values()))
    bytes_J = np.array([term in OF_BYTES for term in prices])
    if not bytes_J.any() or bytes_J.all() or (part_J[bytes_J] >= NOISE).any():
        return prices
    us_J, _ = robust_nnls(matrix_XJ[:, ~bytes_J], time_us_X)
    return dict(zip((term for term in prices if term not in OF_BYTES), us_J.tolist(), strict=True))


def robust_nnls(matrix_XJ: FloatArray, time_us_X: FloatArray) -> tuple[FloatArray, float]:
    """Return non-negative us of J terms and the robust cost of their relative errors."""
    relative_XJ = matrix_XJ / time_us_X[:, None]
    scale_J = np.maximum(np.abs(relative_XJ).max(axis=0), 1e-300)
    weight_X = np.ones(len(time_us_X))
    for _ in range(ITERATIONS):
        root_X = np.sqrt(weight_X)
        scaled_J, _ = nnls(relative_XJ / scale_J * root_X[:, None], root_X)
        error_X = relative_XJ @ (scaled_J / scale_J) - 1.0
        tolerance_X = np.where(error_X < 0, ABOVE, BELOW)
        weight_X = 1.0 / np.sqrt(1.0 + (error_X / tolerance_X) ** 2)
    cost = float((2 * tolerance_X**2 * (np.sqrt(1 + (error_X / tolerance_X) ** 2) - 1)).sum())
    return scaled_J / scale_J, cost


def _identifiable(terms: tuple[str, ...], values: dict[str, FloatArray]) -> tuple[str, ...]:
    """Keep the terms that vary independently of those before them."""
    kept: list[str] = []
    columns: list[FloatArray] = []
    for term in terms:
        column_X = values[term]
        norm = float(np.linalg.norm(column_X))
        if norm == 0 or not np.isfinite(norm):
            continue
        trial = np.stack([*columns, column_X / norm], axis=1)
        if np.linalg.matrix_rank(trial, tol=1e-6) == trial.shape[1]:
            kept.append(term)
            columns.append(column_X / norm)
    return tuple(kept)


def _levels(message_bytes_X: FloatArray) -> tuple[NDArray[np.int64], list[tuple[float, float]]]:
    """Group message sizes: the group of each case, and each group's smallest and largest size."""
    sizes = np.unique(message_bytes_X)
    cuts = sizes[np.unique(np.linspace(0, len(sizes) - 1, min(len(sizes), MAX_SIZES)).round().astype(int))]
    level_X = np.searchsorted(cuts, message_bytes_X, side="right") - 1
    ends = [
        (float(part.min()), float(part.max())) for part in (message_bytes_X[level_X == i] for i in range(len(cuts)))
    ]
    return level_X, ends


def _best_segments(
    matrix_XJ: FloatArray, time_us_X: FloatArray, level_X: NDArray[np.int64], num_levels: int
) -> list[tuple[int, FloatArray]]:
    """Return [(first level after the range, us of its terms), ...] of the cheapest division into ranges."""
    fewest = matrix_XJ.shape[1] + 1
    best: list[tuple[float, list[tuple[int, FloatArray]]] | None] = [(0.0, [])] + [None] * num_levels
    for stop in range(1, num_levels + 1):
        for start in range(stop):
            before = best[start]
            whole = start == 0 and stop == num_levels
            if before is None or not (whole or stop - start >= 2):
                continue
            inside_X = (level_X >= start) & (level_X < stop)
            if not whole and inside_X.sum() < fewest:
                continue
            us_J, error = robust_nnls(matrix_XJ[inside_X], time_us_X[inside_X])
            cost = before[0] + error / (2 * NOISE**2) + RANGE_PRICE
            so_far = best[stop]
            if so_far is None or cost < so_far[0]:
                best[stop] = (cost, [*before[1], (stop, us_J)])
    found = best[num_levels]
    assert found is not None, "the whole is always a range"
    return found[1]
