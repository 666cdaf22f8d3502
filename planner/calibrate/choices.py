"""Does redundancy pay? Which of no EPLB, placement only, and redundant slots is fastest, measured and predicted.

Replicas make every rank read more weights: they cost time while the weights set the pace (small batches), and win once
the busiest expert does. The crossing is the number of tokens from which they win.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from planner.calibrate.accuracy import Comparison

SET = ["system", "kernel", "dtype", "hidden", "intermediate", "experts", "ranks", "power_law"]
OPTIONS = ("no EPLB", "placement only", "redundant slots")
CLEAR = 1.05  # options closer than this are a tie


@dataclass(frozen=True)
class Choices:
    """How often the prediction names the fastest option.

    Attributes:
        sets: cases measured under at least two options.
        clear, right: those whose fastest option beats the runner-up by more than 5 %, and how many are predicted.
        any_clear, any_right: the same for those where the fastest and the slowest differ by more than 5 %.
        regret: mean of (measured time of the predicted option / fastest - 1) over all sets.
        crossings: one row a set of shapes: tokens from which redundant slots beat no EPLB, measured and predicted.

    """

    sets: int
    clear: int
    right: int
    any_clear: int
    any_right: int
    regret: float
    crossings: pd.DataFrame


def choices(comparison: Comparison) -> Choices | None:
    """Return how well the fastest option is predicted; None where the table does not compare options."""
    rows = comparison.rows
    if comparison.kind != "experts" or not rows["distribution"].str.startswith("power_law").any():
        return None
    rows = rows[rows["distribution"].str.startswith("power_law")]
    spread = rows["slots"] > rows["experts"]
    with_eplb = rows["distribution"].str.endswith("_eplb")
    rows = rows.assign(
        option=np.where(~with_eplb, OPTIONS[0], np.where(spread, OPTIONS[2], OPTIONS[1])),
        power_law=rows["distribution"].str.removesuffix("_eplb").str.removeprefix("power_law_"),
    )
    wide = rows.pivot_table(index=[*SET, "tokens"], columns="option", values=["measured_us", "predicted_us"])
    measured, predicted = (
        pd.DataFrame(wide[name]).reindex(columns=list(OPTIONS)) for name in ("measured_us", "predicted_us")
    )
    enough = measured.notna().sum(axis=1) >= 2
    if not enough.any():
        return None
    measured, predicted = measured[enough], predicted[enough]
    return _judged(measured, predicted)


def _judged(measured: pd.DataFrame, predicted: pd.DataFrame) -> Choices:
    true_XO = measured.fillna(np.inf).to_numpy(float)
    said_XO = predicted.fillna(np.inf).to_numpy(float)
    ordered = np.sort(true_XO, axis=1)
    said = said_XO.argmin(axis=1)
    right = true_XO.argmin(axis=1) == said
    clear = ordered[:, 1] / ordered[:, 0] > CLEAR
    any_clear = np.nanmax(measured.to_numpy(float), axis=1) / ordered[:, 0] > CLEAR
    regret = true_XO[np.arange(len(said)), said] / ordered[:, 0] - 1
    return Choices(
        sets=len(said),
        clear=int(clear.sum()),
        right=int((right & clear).sum()),
        any_clear=int(any_clear.sum()),
        any_right=int((right & any_clear).sum()),
        regret=float(regret.mean()),
        crossings=_crossings(measured, predicted),
    )


def _crossings(measured: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    both = measured[OPTIONS[0]].notna() & measured[OPTIONS[2]].notna()
    found = []
    for key, rows in measured[both].groupby(level=SET, sort=True):
        said = predicted.loc[rows.index]
        entry = dict(zip(SET, key, strict=True))
        found.append(entry | {"measured_tokens": _first_win(rows), "predicted_tokens": _first_win(said)})
    return pd.DataFrame(found)


def _first_win(rows: pd.DataFrame) -> float:
    """Return the fewest tokens from which redundant slots win at every larger number; infinity where never."""
    ordered = rows.reset_index(level="tokens").sort_values("tokens")
    loses = np.flatnonzero((ordered[OPTIONS[2]] >= ordered[OPTIONS[0]]).to_numpy())
    first = 0 if loses.size == 0 else int(loses[-1]) + 1
    return float(ordered["tokens"].iloc[first]) if first < len(ordered) else float("inf")
