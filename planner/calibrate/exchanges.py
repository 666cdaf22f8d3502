"""Fitting exchange models to tables, and predicting tables with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.calibrate.cases import KERNELS, KEYS, ONE_PROTOCOL, Cases
from planner.calibrate.regimes import fit_regimes
from planner.calibrate.systems import system_figures
from planner.exchange_model import ExchangeModel, FloatArray
from planner.placement import BoolArray
from planner.provenance import FitReport, Provenance, Span
from topologies.errors import BadInput

RANGE_SLACK = 2.0  # a message this many times outside the fitted sizes still counts as inside


@dataclass(frozen=True)
class FitSource:
    """What the report of a fit says of where it came from: table, origin, date, and the rows that the user chose."""

    table: str
    date: str
    source: str = ""
    selection: str = ""

    def report(self, predicted_us: FloatArray, time_us: FloatArray) -> FitReport:
        """Return the report of a fit that predicts these measurements so."""
        error = np.abs(predicted_us / time_us - 1)
        return FitReport(
            table=self.table,
            source=self.source,
            date=self.date,
            selection=self.selection,
            rows=len(time_us),
            mape=round(float(error.mean()), 5),
            median=round(float(np.median(error)), 5),
            p95=round(float(np.quantile(error, 0.95)), 5),
        )


def fit_exchanges(cases: Cases, origin: FitSource) -> list[ExchangeModel]:
    """Fit one model to each kernel, system, operation and row type among the cases."""
    models = []
    for key, rows in cases.keys.groupby(KEYS, sort=True):
        kernel, system, op, dtype = (str(part) for part in key)
        if kernel not in KERNELS:
            raise BadInput(
                f"{origin.table}: unknown exchange {kernel.removeprefix('executor-')[:40]!r}; "
                "known: pairwise, dedup, two-level"
            )
        mask = np.zeros(len(cases.keys), dtype=bool)
        mask[rows.index.to_numpy()] = True
        models.append(_fit_one(kernel, system, op, dtype, cases.where(mask), origin))
    return models


def _fit_one(kernel: str, system: str, op: str, dtype: str, cases: Cases, origin: FitSource) -> ExchangeModel:
    exchange, terms = KERNELS[kernel]
    figures = system_figures(system)
    draft = ExchangeModel(
        kernel=kernel,
        exchange=exchange,
        system=system,
        op=op,
        dtype=dtype,
        host_ranks=figures.host_ranks,
        link_gbps=figures.link_gbps,
        inter_link_gbps=figures.inter_link_gbps,
        inter_kind=figures.inter_kind,
        regimes=fit_regimes(terms, cases.values, cases.message_bytes, cases.time_us, one_range=kernel in ONE_PROTOCOL),
        spans=_spans(cases),
        fit=origin.report(np.ones(1), np.ones(1)),
    )
    predicted = draft.predict_us(cases.values, cases.message_bytes)
    return draft.model_copy(update={"fit": origin.report(predicted, cases.time_us)})


def _spans(cases: Cases) -> dict[str, Span]:
    quantities = {
        "ranks": cases.keys["ranks"].to_numpy(float),
        "hosts": cases.keys["hosts"].to_numpy(float),
        "message_bytes": cases.message_bytes,
    }
    return {name: Span(low=float(np.min(values)), high=float(np.max(values))) for name, values in quantities.items()}


def predict_cases(models: Sequence[ExchangeModel], cases: Cases) -> tuple[FloatArray, list[Provenance]]:
    """Return predicted microseconds of every case and the label of each; NaN where no model knows it.

    A model knows its kernel and op, inside a host or across hosts, where it was fitted on such cases.
    """
    predicted_us = np.full(len(cases.time_us), np.nan)
    labels: list[Provenance] = ["extrapolated"] * len(cases.time_us)
    for key, rows in cases.keys.groupby(KEYS, sort=True):
        kernel, system, op, dtype = (str(part) for part in key)
        model = nearest_model(models, kernel, system, op, dtype)
        if model is None:
            continue
        at = rows.index.to_numpy()
        mask = np.zeros(len(predicted_us), dtype=bool)
        mask[at] = True
        part = cases.where(mask)
        known = _known_tiers(model, part.keys["hosts"].to_numpy(float))
        predicted_us[at] = np.where(known, model.predict_us(part.values, part.message_bytes), np.nan)
        same = model.system == system and model.dtype == dtype
        for index, case in enumerate(at):
            inside = same and covers(
                model,
                ranks=int(part.keys["ranks"].iloc[index]),
                hosts=int(part.keys["hosts"].iloc[index]),
                message_bytes=float(part.message_bytes[index]),
            )
            labels[case] = "fitted" if inside else "extrapolated"
    return predicted_us, labels


def nearest_model(
    models: Sequence[ExchangeModel], kernel: str, system: str, op: str, dtype: str
) -> ExchangeModel | None:
    """Return the model of a kernel and op whose system and row type fit best; None where there is none at all."""
    candidates = [model for model in models if model.kernel == kernel and model.op == op]
    return max(candidates, key=lambda m: (m.system == system, m.dtype == dtype), default=None)


def _known_tiers(model: ExchangeModel, hosts_X: FloatArray) -> BoolArray:
    """Return which cases are inside a host, or across hosts, as some that the model was fitted on are."""
    fitted = model.spans["hosts"]
    return np.where(hosts_X > 1, fitted.high > 1, fitted.low <= 1)


def covers(model: ExchangeModel, *, ranks: int, hosts: int, message_bytes: float) -> bool:
    """Return whether a case lies within what the model was fitted on."""
    return (
        model.spans["ranks"].holds(ranks)
        and model.spans["hosts"].holds(hosts)
        and model.spans["message_bytes"].holds(message_bytes, RANGE_SLACK)
    )
