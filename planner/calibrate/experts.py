"""Fitting the expert roofline to tables of expert compute, and predicting such tables with it.

Shapes: X measured cases, G knots of the grid of rows, N non-empty (case, rows) pairs, J parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from planner.calibrate.exchanges import FitSource
from planner.calibrate.loads import DRAWS, IntArray, Step, is_known, rank_loads
from planner.calibrate.systems import WEIGHT_BYTES, peak_tflops, row_type, system_figures
from planner.calibrate.tables import Table
from planner.exchange_model import FloatArray
from planner.expert_model import ExpertModel, roofline_us
from planner.provenance import Provenance, Span
from topologies.catalog import catalog_names
from topologies.errors import BadInput

KNOTS = (1.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0)
GRID = np.concatenate([np.arange(65.0), np.geomspace(64, 1e7, 320)[1:]])  # rows of an expert; exact up to 64
MAX_DRAWN = 100_000_000  # loads of slots behind a table: the largest published one known here needs 8 million
MATRICES = 3.0  # gate, up and down; 2 flops a weight
GATHER_BYTES = 2.0  # of an element of a token that is brought into order, bf16
SMOOTH, PRIOR = 0.3, 0.01  # weight of steps between knots, and of the distance from the starting values
HBM_SMOOTH = 3.0  # HBM efficiency is nearly flat: let it bend only for a reason
_START = {"launch": 45.0, "slot": 0.05, "gather": 0.01, "sharpness": 2.0, "tilt": 0.3, "hbm": 0.9, "flop": 0.4}
_LOW = {"launch": 1.0, "slot": 1e-4, "gather": 1e-5, "sharpness": 1.0, "tilt": 0.0, "hbm": 0.2, "flop": 0.01}
_HIGH = {"launch": 1e4, "slot": 20.0, "gather": 5.0, "sharpness": 20.0, "tilt": 1.0, "hbm": 1.0, "flop": 0.9}


@dataclass(frozen=True, eq=False)
class ExpertCases:
    """Measured expert compute of one kernel, weight type and GPU.

    Attributes:
        keys: [X] system, kernel, dtype, ranks, tokens, distribution, slots, ...
        case_N, rows_N, weight_N: expected number of experts of each case with so many rows.
        mean_X: mean rows of a slot over all ranks. weight_us_X, row_us_X: at rated speed.
        slots_X: slots of the rank. token_mb_X: megabytes of the tokens that pass the rank.
        time_us: [X] measured.

    """

    keys: pd.DataFrame
    case_N: IntArray
    rows_N: FloatArray
    weight_N: FloatArray
    mean_X: FloatArray
    weight_us_X: FloatArray
    row_us_X: FloatArray
    slots_X: FloatArray
    token_mb_X: FloatArray
    time_us: FloatArray

    def where(self, mask_X: FloatArray) -> ExpertCases:
        """Return the cases of a mask."""
        mask = np.asarray(mask_X, dtype=bool)
        kept_N = mask[self.case_N]
        number_X = np.cumsum(mask) - 1
        per_case = {
            name: getattr(self, name)[mask]
            for name in ("mean_X", "weight_us_X", "row_us_X", "slots_X", "token_mb_X", "time_us")
        }
        return replace(
            self,
            keys=self.keys[mask].reset_index(drop=True),
            case_N=number_X[self.case_N[kept_N]],
            rows_N=self.rows_N[kept_N],
            weight_N=self.weight_N[kept_N],
            **per_case,
        )


def build_expert_cases(table: Table) -> ExpertCases:
    """Return the cases of a table of kind `experts`; raises BadInput for an unknown system or no known distribution."""
    frame = table.frame[[is_known(str(name)) for name in table.frame["distribution"]]].reset_index(drop=True)
    if frame.empty:
        found = sorted({str(name) for name in table.frame["distribution"]})
        raise BadInput(
            f"{table.name}: distribution {found[0][:40]!r} is unknown; known: balanced, power_law_A, power_law_A_eplb"
        )
    kernel = next((c for c in ("kernel", "moe_kernel", "backend") if c in frame), None)
    keys = frame.assign(
        kernel="unknown" if kernel is None else frame[kernel].astype(str),
        dtype=[row_type(str(d)) for d in frame["dtype"]],
    )
    slots = frame["slots"].fillna(frame["experts"]) if "slots" in frame else frame["experts"]
    keys = keys.assign(slots=np.maximum(slots, frame["experts"]))
    params_X = (MATRICES * keys["hidden"] * keys["intermediate"]).to_numpy(float)
    rated = [
        _rated(str(system), str(dtype), table.name) for system, dtype in zip(keys["system"], keys["dtype"], strict=True)
    ]
    case_N, rows_N, weight_N, rank_rows_X = _histograms(keys, table.name)
    bytes_X = np.array([WEIGHT_BYTES.get(str(dtype), 2.0) for dtype in keys["dtype"]]) * params_X
    tokens_X = keys["tokens"].to_numpy(float)
    if "slots" in frame:  # only the tokens that reach the rank pass it; else the benchmark passes all of them
        tokens_X = tokens_X * -np.expm1(-rank_rows_X / tokens_X)
    return ExpertCases(
        keys=keys,
        case_N=case_N,
        rows_N=rows_N,
        weight_N=weight_N,
        mean_X=(keys["tokens"] * keys["top_k"] / keys["slots"]).to_numpy(float),
        weight_us_X=bytes_X / np.array([hbm * 1e3 for hbm, _ in rated]),
        row_us_X=2 * params_X / np.array([peak * 1e6 for _, peak in rated]),
        slots_X=(keys["slots"] / keys["ranks"]).to_numpy(float),
        token_mb_X=tokens_X * keys["hidden"].to_numpy(float) * GATHER_BYTES / 1e6,
        time_us=keys["time_us"].to_numpy(float),
    )


def _rated(system: str, dtype: str, name: str) -> tuple[float, float]:
    figures = system_figures(system)
    peak = peak_tflops(figures, dtype)
    if figures.hbm_gbps is None or peak is None:
        raise BadInput(
            f"{name}: system {system[:40]!r} is not in the catalog, so efficiencies of its HBM and FLOPs cannot be "
            f"told; known: {', '.join(catalog_names())}"
        )
    return figures.hbm_gbps, peak


def _histograms(keys: pd.DataFrame, name: str) -> tuple[IntArray, FloatArray, FloatArray, FloatArray]:
    """Return (case, rows, expected experts with so many rows) of all pairs, and the mean rows on the measured rank."""
    case, rows, weight, rank_rows = [], [], [], []
    columns = ["tokens", "experts", "top_k", "ranks", "slots", "distribution"]
    drawn = DRAWS * int(keys[columns].drop_duplicates()["slots"].sum())
    if drawn > MAX_DRAWN:
        raise BadInput(
            f"{name}: its cases need {drawn:,} loads of slots to be drawn, over the limit of {MAX_DRAWN:,}; "
            "leave some out (an expression on its columns)"
        )
    for number, values in enumerate(zip(*(keys[column] for column in columns), strict=True)):
        tokens, experts, top_k, ranks, slots = (max(int(value), 1) for value in values[:5])
        step = Step(tokens, experts, min(top_k, experts), min(ranks, experts), slots, str(values[5]))
        draws = rank_loads(step)
        share_G = _on_grid(np.concatenate(draws).astype(float)) / len(draws)
        at = np.flatnonzero(share_G[1:] > 0) + 1
        case.append(np.full(len(at), number))
        rows.append(GRID[at])
        weight.append(share_G[at])
        rank_rows.append(float(GRID @ share_G))
    return np.concatenate(case), np.concatenate(rows), np.concatenate(weight), np.maximum(np.array(rank_rows), 1e-9)


def _on_grid(rows: FloatArray) -> FloatArray:
    """Spread rows over the two neighbouring grid points, so that their number and their sum stay what they are."""
    low = np.clip(np.searchsorted(GRID, rows, side="right") - 1, 0, len(GRID) - 2)
    part = np.minimum((rows - GRID[low]) / (GRID[low + 1] - GRID[low]), 1.0)
    share_G = np.bincount(low, weights=1 - part, minlength=len(GRID)).astype(float)
    spread_G: FloatArray = share_G + np.bincount(low + 1, weights=part, minlength=len(GRID))
    return spread_G


@dataclass(frozen=True, eq=False)
class _Parameters:
    """The unknowns of a roofline as one vector: scalars, then both curves; all but `tilt` as logarithms."""

    knots: tuple[float, ...]

    def vector(self, values: dict[str, float]) -> FloatArray:
        scalars = [np.log(values[name]) for name in ("launch", "slot", "gather", "sharpness")]
        curves = [np.log(values[name]) for name in ("hbm", "flop") for _ in self.knots]
        return np.array([*scalars, values["tilt"], *curves])

    def read(self, vector_J: FloatArray) -> tuple[FloatArray, float, tuple[float, ...], tuple[float, ...]]:
        """Return ([launch, slot, gather, sharpness], tilt, HBM efficiencies, FLOP efficiencies)."""
        hbm, flop = np.exp(vector_J[5:]).reshape(2, -1)
        return np.exp(vector_J[:4]), float(vector_J[4]), tuple(hbm.tolist()), tuple(flop.tolist())

    def roughness(self, vector_J: FloatArray) -> FloatArray:
        log_hbm, log_flop = vector_J[5:].reshape(2, -1)
        return np.concatenate([HBM_SMOOTH * np.diff(log_hbm), SMOOTH * np.diff(log_flop)])


def _times(cases: ExpertCases, parameters: _Parameters, vector_J: FloatArray) -> FloatArray:
    (launch, slot, gather, sharpness), tilt, hbm, flop = parameters.read(vector_J)
    at = cases.case_N
    one_N = roofline_us(
        cases.rows_N, cases.mean_X[at], cases.weight_us_X[at], cases.row_us_X[at],
        (parameters.knots, hbm, flop), float(sharpness), tilt,
    )  # fmt: skip
    experts_X = np.bincount(at, weights=cases.weight_N * one_N, minlength=len(cases.time_us))
    us_X: FloatArray = launch + slot * cases.slots_X + gather * cases.token_mb_X + experts_X
    return us_X


def fit_experts(cases: ExpertCases, origin: FitSource) -> list[ExpertModel]:
    """Fit one roofline to each system, kernel and weight type."""
    models = []
    for _, rows in cases.keys.groupby(["system", "kernel", "dtype"], sort=True):
        mask = np.zeros(len(cases.keys), dtype=bool)
        mask[rows.index.to_numpy()] = True
        models.append(_fit_one(cases.where(mask), origin))
    return models


def _fit_one(cases: ExpertCases, origin: FitSource) -> ExpertModel:
    top = float(max(cases.mean_X.max(), 1.0))
    knots = tuple(knot for knot in KNOTS if knot <= 2 * top) or KNOTS[:1]
    parameters = _Parameters(knots)
    start, low, high = (parameters.vector(values) for values in (_START, _LOW | {"tilt": 0.0}, _HIGH))

    def residuals(vector_J: FloatArray) -> FloatArray:
        error_X = np.log(_times(cases, parameters, vector_J) / cases.time_us)
        return np.concatenate([error_X, parameters.roughness(vector_J), PRIOR * (vector_J - start)])

    solved = least_squares(residuals, start, bounds=(low, high), loss="soft_l1", f_scale=0.05, max_nfev=60)
    (launch, slot, gather, sharpness), tilt, hbm, flop = parameters.read(solved.x)
    first = cases.keys.iloc[0]
    system, dtype = str(first["system"]), str(first["dtype"])
    hbm_gbps, peak = _rated(system, dtype, origin.table)
    spans = {
        "tokens_per_expert": cases.mean_X,
        "ranks": cases.keys["ranks"].to_numpy(float),
        "hidden": cases.keys["hidden"].to_numpy(float),
    }
    return ExpertModel(
        kernel=str(first["kernel"]),
        system=system,
        dtype=dtype,
        hbm_gbps=hbm_gbps,
        peak_tflops=peak,
        launch_us=_round(launch),
        slot_us=_round(slot),
        gather_gbps=_round(1e3 / gather) if gather > 2 * _LOW["gather"] else None,
        tokens_per_expert=knots,
        hbm_efficiency=tuple(map(_round, hbm)),
        flop_efficiency=tuple(map(_round, flop)),
        sharpness=max(_round(sharpness), 1.0),
        tilt=min(max(_round(tilt), 0.0), 1.0),
        spans={name: Span(low=float(np.min(v)), high=float(np.max(v))) for name, v in spans.items()},
        fit=origin.report(_times(cases, parameters, solved.x), cases.time_us),
    )


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def predict_experts(models: Sequence[ExpertModel], cases: ExpertCases) -> tuple[FloatArray, list[Provenance]]:
    """Return predicted microseconds of every case and its label; NaN where the profile has no model at all."""
    predicted_us = np.full(len(cases.time_us), np.nan)
    labels: list[Provenance] = ["extrapolated"] * len(cases.time_us)
    for (system, kernel, dtype), rows in cases.keys.groupby(["system", "kernel", "dtype"], sort=True):
        wanted = (str(system), str(dtype), str(kernel))
        model = max(
            models,
            key=lambda m: [a == b for a, b in zip((m.system, m.dtype, m.kernel), wanted, strict=True)],
            default=None,
        )
        if model is None:
            continue
        at = rows.index.to_numpy()
        mask = np.zeros(len(predicted_us), dtype=bool)
        mask[at] = True
        part = cases.where(mask)
        predicted_us[at] = expert_case_us(model, part)
        same = (model.system, model.dtype, model.kernel) == wanted
        inside_X = np.array(
            [
                model.spans["tokens_per_expert"].holds(mean, 2.0) and model.spans["ranks"].holds(ranks, 2.0)
                for mean, ranks in zip(part.mean_X, part.keys["ranks"], strict=True)
            ]
        )
        for index, case in enumerate(at):
            labels[case] = "fitted" if same and inside_X[index] else "extrapolated"
    return predicted_us, labels


def expert_case_us(model: ExpertModel, cases: ExpertCases) -> FloatArray:
    """Return the microseconds of the measured rank in every case, with the whole curves."""
    at = cases.case_N
    one_N = model.expert_us(cases.rows_N, cases.mean_X[at], cases.weight_us_X[at], cases.row_us_X[at])
    experts_X = np.bincount(at, weights=cases.weight_N * one_N, minlength=len(cases.time_us))
    gather_us_X = cases.token_mb_X * 1e6 * model.gather_us_per_byte()
    us_X: FloatArray = model.launch_us + model.slot_us * cases.slots_X + gather_us_X + experts_X
    return us_X
