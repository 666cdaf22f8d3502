"""MachineModel: what the phases of a step should take on this machine, fitted to measured steps.

    dispatch, combine   start + us per KB of the busiest rank            planner.calibrate, kernels executor-*
    compute             start + us per active expert + us per row

Ranks that share cores slow each other down (`executor.sharing`): the steps that are fitted and those that are predicted
are both brought to what the busiest rank would take alone. What comes from here is `fitted`, or `extrapolated` beyond
the sizes of the fit.

Shapes: R ranks, X measured steps, J terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from executor.loads import Loads
from executor.measure import PhaseTimes
from executor.sharing import finish_R
from planner.calibrate.cases import build_cases
from planner.calibrate.exchanges import FitSource, fit_exchanges, predict_cases
from planner.calibrate.tables import Table
from planner.exchange_model import ExchangeModel
from planner.placement import FloatArray, IntArray
from planner.provenance import Provenance
from planner.timing import Exchange

SLACK = 2.0  # rows this many times outside the fitted ones still count as fitted (as planner.calibrate has it)
Way = tuple[str, bool]  # phase, and whether backward


@dataclass(frozen=True)
class Machine:
    """Where the ranks sit, and how many cores they share (R or more where none shares)."""

    domain_R: IntArray
    rail_R: IntArray
    cores: float

    @property
    def crowding(self) -> float:
        """How much slower a rank is while all ranks are at work."""
        return max(len(self.domain_R) / self.cores, 1.0)

    def busiest(self, work_R: FloatArray) -> float:
        """Return the work after which, done alone, the last rank would be done with its own while sharing cores."""
        return float(finish_R(work_R, self.cores).max()) / self.crowding


@dataclass(frozen=True)
class Prediction:
    """Microseconds of one phase until its last rank is done, and where the number comes from."""

    us: float
    provenance: Provenance


@dataclass(frozen=True)
class _Compute:
    """Time of a rank's experts: start + us per active expert + us per row, on cores of its own."""

    start_us: float
    active_us: float
    row_us: float


@dataclass(frozen=True)
class MachineModel:
    """What was fitted to the probes of one machine.

    Attributes:
        exchange, ranks, row_bytes: of the probes, and of what they can predict.
        machine: on which the ranks sit.
        exchanges: models of dispatch and combine, forward and backward.
        compute: by whether backward.
        rows: fewest and most rows of a rank among the probes.
        errors: median relative error of each phase on the probes themselves.

    """

    exchange: Exchange
    ranks: int
    row_bytes: float
    machine: Machine
    exchanges: tuple[ExchangeModel, ...]
    compute: Mapping[bool, _Compute]
    rows: tuple[float, float]
    errors: Mapping[Way, float]

    def predict(self, loads: Loads) -> dict[Way, Prediction]:
        """Return what each phase of a step takes that was probed."""
        found = {("compute", backward): self._compute(backward, loads) for backward in self.compute}
        ops = [model.op for model in self.exchanges]
        cases = build_cases(_table(self, [(op, loads, 1.0) for op in ops]))
        predicted_us, labels = predict_cases(self.exchanges, cases)
        for op, us, label in zip(ops, predicted_us, labels, strict=True):
            found[_way(op)] = Prediction(float(us), label)
        return found

    def _compute(self, backward: bool, loads: Loads) -> Prediction:
        fit, crowding = self.compute[backward], self.machine.crowding
        work_R = fit.start_us + fit.active_us * loads.active_R + fit.row_us * loads.rows_R
        inside = self.rows[0] / SLACK <= loads.rows_R.max() <= self.rows[1] * SLACK
        return Prediction(crowding * self.machine.busiest(work_R), "fitted" if inside else "extrapolated")


def fit_machine(
    measured: Sequence[tuple[Loads, PhaseTimes]], exchange: Exchange, machine: Machine, row_bytes: float
) -> MachineModel:
    """Fit every phase that was timed to steps of even load; `row_bytes` is the size of a row on the wire."""
    rows_X = np.array([loads.rows_R.mean() for loads, _ in measured])
    span = float(rows_X.min()), float(rows_X.max())
    draft = MachineModel(exchange, len(machine.domain_R), row_bytes, machine, (), {}, span, {})
    exchanges = _fit_exchanges(draft, measured)
    errors = {_way(model.op): model.fit.median for model in exchanges}
    active_X = np.array([loads.active_R.mean() for loads, _ in measured])
    terms_XJ = machine.crowding * np.stack([np.ones(len(measured)), active_X, rows_X], axis=1)
    compute = {}
    for backward in (False, True):
        us_X = _time_us_X(measured, ("compute", backward))
        if us_X is not None:
            us_J, _ = nnls(terms_XJ / us_X[:, None], np.ones(len(us_X)))  # relative errors, all alike
            compute[backward] = _Compute(*map(float, us_J))
            errors["compute", backward] = float(np.median(np.abs(terms_XJ @ us_J / us_X - 1)))
    return replace(draft, exchanges=tuple(exchanges), compute=compute, errors=errors)


def _fit_exchanges(draft: MachineModel, measured: Sequence[tuple[Loads, PhaseTimes]]) -> list[ExchangeModel]:
    cases = []
    for way in [(phase, backward) for phase in ("dispatch", "combine") for backward in (False, True)]:
        us_X = _time_us_X(measured, way)
        if us_X is not None:
            cases += [(_op(way), loads, float(us)) for (loads, _), us in zip(measured, us_X, strict=True)]
    origin = FitSource(table="probes of this machine", date=datetime.now(UTC).date().isoformat())
    return fit_exchanges(build_cases(_table(draft, cases)), origin)


def _time_us_X(measured: Sequence[tuple[Loads, PhaseTimes]], way: Way) -> FloatArray | None:
    """Return until when the last rank was done with a phase in every step; None where it was not timed."""
    phase, backward = way
    if any(phase not in (times.backward if backward else times.forward) for _, times in measured):
        return None
    return np.array([max(times.median_us_R(phase, backward=backward)) for _, times in measured])


def _op(way: Way) -> str:
    return f"{way[0]} backward" if way[1] else way[0]


def _way(op: str) -> Way:
    return op.removesuffix(" backward"), op.endswith(" backward")


def _table(model: MachineModel, cases: Sequence[tuple[str, Loads, float]]) -> Table:
    """Return a table of kind `executor` of (operation, loads, microseconds)."""
    frame = pd.DataFrame(
        {
            "exchange": model.exchange,
            "phase": [op for op, _, _ in cases],
            "ranks": float(model.ranks),
            "domains": 1.0,  # of one machine: all links are alike, whatever the plan's cluster
            "bytes_out_max": [model.machine.busiest(loads.wire_bytes_R(model.row_bytes)) for _, loads, _ in cases],
            "time_us": [us for _, _, us in cases],
            "system": "this machine",
            "dtype": "any",
        }
    )
    return Table("probes of this machine", "executor", frame)
