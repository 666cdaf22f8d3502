"""Predicted beside measured: the errors of a profile on a table, by system, ranks and size.

Errors are |predicted / measured - 1|, as fractions (0.06 is 6 %).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd

from planner.calibrate.cases import Cases, build_cases
from planner.calibrate.exchanges import predict_cases
from planner.calibrate.experts import ExpertCases, build_expert_cases, predict_experts
from planner.calibrate.systems import system_figures
from planner.calibrate.tables import Table
from planner.exchange_model import FloatArray
from planner.provenance import Provenance
from planner.timing import TimingProfile
from topologies.errors import BadInput

# upper ends of the size classes, with what they count
BYTES = ((65536.0, "<64KiB"), (2.0**24, "64KiB-16MiB"), (np.inf, ">=16MiB"))  # of a rank's send buffer
TOKENS = ((65.0, "<=64 tokens"), (1025.0, "65-1024 tokens"), (np.inf, ">1024 tokens"))  # of a rank
PER_EXPERT = ((16.0, "<16 tokens/expert"), (256.0, "16-255 tokens/expert"), (np.inf, ">=256 tokens/expert"))


@dataclass(frozen=True, eq=False)
class Comparison:
    """Every usable row of a table with its prediction.

    Attributes:
        table: file name. kind: of the table.
        rows: the columns that name a case, `size` (class), `measured_us`, `predicted_us`, `error` (signed fraction) and
            `provenance`.
        group_by: the columns that form groups.

    """

    table: str
    kind: str
    rows: pd.DataFrame
    group_by: tuple[str, ...]


@dataclass(frozen=True)
class Errors:
    """Errors of one group of rows, as fractions, and how its numbers came about."""

    key: dict[str, str | int]
    n: int
    mape: float
    median: float
    p95: float
    worst: float
    provenance: dict[str, int]


def compare(profile: TimingProfile, table: Table) -> Comparison:
    """Predict every row of a table; raises BadInput where the profile can predict none of them."""
    if table.kind == "experts":
        expert_cases = build_expert_cases(table)
        keys, measured_us = expert_cases.keys, expert_cases.time_us
        predicted_us, labels = _experts(profile, expert_cases)
        group_by = ["system", "kernel", "dtype", "ranks", "size"]
        size = _size_class(expert_cases.mean_X, PER_EXPERT)
    else:
        cases = build_cases(table)
        keys, measured_us = cases.keys, cases.time_us
        predicted_us, labels = _exchanges(profile, cases)
        by_bytes = table.kind in ("nccl", "executor")
        size = (
            _size_class(keys["size"].to_numpy(float), BYTES)
            if by_bytes
            else _size_class(keys["tokens"].to_numpy(float), TOKENS)
        )
        group_by = [
            "system",
            *(["op"] if keys["op"].nunique() > 1 else []),
            *(["dtype"] if keys["dtype"].nunique() > 1 else []),
        ]
        group_by += ["ranks", "size"]
    found = np.isfinite(predicted_us)
    if not found.any():
        raise BadInput(
            f"{table.name}: profile {profile.name} has no model of {_what(keys)}, and no vendor figures fit it"
        )
    rows = keys.assign(
        tokens_or_bytes=keys["size"] if "size" in keys else keys.get("tokens", 0),
        size=size,
        ranks=keys["ranks"].astype(int),
        measured_us=measured_us,
        predicted_us=predicted_us,
        error=predicted_us / measured_us - 1,
        provenance=labels,
    )[found].reset_index(drop=True)
    return Comparison(table.name, table.kind, rows, tuple(group_by))


def _what(keys: pd.DataFrame) -> str:
    first = keys.iloc[0]
    return f"{first['kernel']} on {first['system']}"


def _size_class(values: FloatArray, classes: tuple[tuple[float, str], ...]) -> list[str]:
    ends = [end for end, _ in classes]
    return [classes[int(i)][1] for i in np.searchsorted(ends, values, side="right").clip(max=len(classes) - 1)]


def _exchanges(profile: TimingProfile, cases: Cases) -> tuple[FloatArray, list[Provenance]]:
    """Predict with the fitted models and, where there is none of a kernel, with the vendor figures of the system."""
    predicted_us, labels = predict_cases(profile.exchanges, cases)
    for case in np.flatnonzero(np.isnan(predicted_us)):
        key = cases.keys.iloc[case]
        figures = system_figures(str(key["system"]))
        regime = profile.regime(float(cases.message_bytes[case]))
        far = int(key["hosts"]) > 1
        kind, gbps = (figures.inter_kind, figures.inter_link_gbps) if far else ("nvlink", figures.link_gbps)
        if gbps is None or kind not in regime.efficiency:
            continue
        alpha_us = regime.alpha_inter_us if far and kind == "nic" else regime.alpha_intra_us
        kilobytes = cases.values["inter_wire" if far else "wire"][case]
        predicted_us[case] = alpha_us + kilobytes / (regime.efficiency[kind] * gbps)
        labels[case] = _unfitted(profile)
    return predicted_us, labels


def _experts(profile: TimingProfile, cases: ExpertCases) -> tuple[FloatArray, list[Provenance]]:
    if profile.experts:
        return predict_experts(profile.experts, cases)
    constants = profile.compute
    at = cases.case_N
    row_us_X = cases.row_us_X / constants.flop_efficiency
    slot_us_X = cases.weight_us_X / constants.hbm_efficiency + constants.half_rows * row_us_X
    one_N = slot_us_X[at] + row_us_X[at] * cases.rows_N
    experts_us = np.bincount(at, weights=cases.weight_N * one_N, minlength=len(cases.time_us)).astype(float)
    predicted_us: FloatArray = constants.launch_us + experts_us
    return predicted_us, [_unfitted(profile)] * len(cases.time_us)


def _unfitted(profile: TimingProfile) -> Provenance:
    return "vendor" if profile.status == "uncalibrated" else "extrapolated"


def error_groups(comparison: Comparison) -> tuple[list[Errors], Errors]:
    """Return the errors of every group, in the order of their keys, and of all rows together."""
    groups = []
    for values, rows in comparison.rows.groupby(list(comparison.group_by), sort=True):
        parts = zip(comparison.group_by, values, strict=True)
        key = {name: int(str(value)) if name == "ranks" else str(value) for name, value in parts}
        groups.append(_errors(key, rows))
    return groups, _errors({}, comparison.rows)


def _errors(key: dict[str, str | int], rows: pd.DataFrame) -> Errors:
    error = rows["error"].abs().to_numpy(float)
    return Errors(
        key=key,
        n=len(rows),
        mape=float(error.mean()),
        median=float(np.median(error)),
        p95=float(np.quantile(error, 0.95)),
        worst=float(error.max()),
        provenance=dict(sorted(Counter(rows["provenance"].tolist()).items())),
    )
