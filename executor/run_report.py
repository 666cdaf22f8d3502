"""The result of `epplan run` as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from executor.machine_model import Prediction, Way
from executor.measure import PHASES, PhaseTimes
from executor.run_job import RunJob
from executor.run_rank import LayerRun, RunResult
from planner.provenance import Provenance, weakest

WAYS: tuple[Way, ...] = (
    *((phase, False) for phase in PHASES),
    *((phase, True) for phase in reversed(PHASES)),
)
"""Phases in the order in which a step runs them."""


@dataclass(frozen=True)
class PhaseRow:
    """One phase, mean over layers, in microseconds.

    Attributes:
        low_us, mean_us, high_us: of the ranks' medians, measured; the phase is over with the last rank.
        predicted_us: until the last rank is done; None where the phase is not predicted.
        provenance: of the prediction.

    """

    phase: str
    backward: bool
    low_us: float
    mean_us: float
    high_us: float
    predicted_us: float | None
    provenance: Provenance | None

    @property
    def error(self) -> float | None:
        """Predicted / measured - 1."""
        return None if self.predicted_us is None else self.predicted_us / self.high_us - 1


def phase_rows(layers: Sequence[LayerRun]) -> list[PhaseRow]:
    """Return the phases that were met, in the order of a step, as means over layers."""
    rows = []
    for phase, backward in WAYS:
        if all(phase in _of_way(run.times, backward) for run in layers):
            us_LR = np.array([run.times.median_us_R(phase, backward=backward) for run in layers])
            found = [run.predicted[phase, backward] for run in layers if (phase, backward) in run.predicted]
            rows.append(
                PhaseRow(
                    phase,
                    backward,
                    float(us_LR.min(axis=1).mean()),
                    float(us_LR.mean()),
                    float(us_LR.max(axis=1).mean()),
                    float(np.mean([prediction.us for prediction in found])) if found else None,
                    weakest(prediction.provenance for prediction in found) if found else None,
                )
            )
    return rows


def _of_way(times: PhaseTimes, backward: bool) -> Any:
    return times.backward if backward else times.forward


def problems(result: RunResult) -> list[str]:
    """Return what does not conform, each naming a layer and a rank."""
    return [f"layer {run.layer}: {problem}" for run in result.layers for problem in run.verdict.problems]


def print_report(job: RunJob, result: RunResult, notes: Sequence[str], console: Console) -> None:
    """Print the phases, the rows of every rank, and the verdict."""
    R, plan = job.plan.num_ranks, job.plan
    console.print(
        f"{plan.model.name}: {len(job.layers)} of {len(plan.layers)} layers of the plan for {plan.cluster.name} on "
        f"{R} ranks of {result.hosts} host{'s' if result.hosts > 1 else ''} ({result.device}, {job.dtype}), "
        f"{job.exchange}, {max(result.tokens_R)} tokens a rank, "
        f"{plan.model.hidden} x {plan.model.intermediate}, {job.steps} steps"
    )
    for note in notes:
        console.print(f"note: {note}")
    console.print(_phase_table(result))
    console.print(_rank_table(result))
    errors = [f"{_name(*way)} {error:.1%}" for way, error in result.probe_errors.items()]
    console.print(
        f"predictions are fitted to probes of this machine, not to the plan; error of the fit: {', '.join(errors)}"
    )
    wrong = problems(result)
    if not wrong:
        rows = sum(run.verdict.rows for run in result.layers)
        console.print(
            f"conformance: all {rows:,} rows that crossed between ranks in one step of {len(result.layers)} layers are "
            "the planner's, on every pair of ranks"
        )


def _name(phase: str, backward: bool) -> str:
    return f"{phase} backward" if backward else phase


def _phase_table(result: RunResult) -> Table:
    table = Table(
        title=f"Per layer (mean of {len(result.layers)}), us: measured, phases isolated, median of the steps",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("phase")
    for column in ("fastest rank", "mean", "slowest rank", "predicted", "error"):
        table.add_column(column, justify="right")
    table.add_column("prediction is")
    for row in phase_rows(result.layers):
        predicted = ("-", "-", "-")
        if row.predicted_us is not None and row.error is not None:
            predicted = (f"{row.predicted_us:,.0f}", f"{row.error:+.1%}", str(row.provenance))
        measured = (f"{us:,.0f}" for us in (row.low_us, row.mean_us, row.high_us))
        table.add_row(_name(row.phase, row.backward), *measured, *predicted)
    return table


def _rank_table(result: RunResult) -> Table:
    table = Table(title="Per rank, one step of all these layers", title_justify="left", header_style="bold")
    for column in ("rank", "tokens", "rows sent", "rows received", "rows at its experts", "compute us (measured)"):
        table.add_column(column, justify="right")
    sent_LR, received_LR, rows_LR = (
        np.array([getattr(run.loads, name) for run in result.layers]) for name in ("sent_R", "received_R", "rows_R")
    )
    compute_us_R = np.sum([run.times.median_us_R("compute") for run in result.layers], axis=0)
    for rank, tokens in enumerate(result.tokens_R):
        rows = (f"{int(per_LR[:, rank].sum()):,}" for per_LR in (sent_LR, received_LR, rows_LR))
        table.add_row(str(rank), f"{tokens:,}", *rows, f"{compute_us_R[rank]:,.0f}")
    return table


def as_json(job: RunJob, result: RunResult, notes: Sequence[str]) -> dict[str, Any]:
    """Return everything that was found; times in microseconds."""
    return {
        "model": job.plan.model.name,
        "cluster": job.plan.cluster.name,
        "ranks": job.plan.num_ranks,
        "hosts": result.hosts,
        "device": result.device,
        "dtype": job.dtype,
        "exchange": job.exchange,
        "hidden": job.plan.model.hidden,
        "intermediate": job.plan.model.intermediate,
        "tokens": result.tokens_R,
        "notes": list(notes),
        "conforms": not problems(result),
        "problems": problems(result),
        "phases": [vars(row) | {"error": row.error} for row in phase_rows(result.layers)],
        "probe_errors": {_name(*way): error for way, error in result.probe_errors.items()},
        "layers": [_layer_json(run) for run in result.layers],
    }


def _layer_json(run: LayerRun) -> dict[str, Any]:
    def predicted(prediction: Prediction) -> dict[str, Any]:
        return {"us": prediction.us, "provenance": prediction.provenance}

    return {
        "layer": run.layer,
        "measured": run.times.as_json(),
        "predicted": {_name(*way): predicted(prediction) for way, prediction in run.predicted.items()},
        "rows_sent": run.loads.sent_R.tolist(),
        "rows_received": run.loads.received_R.tolist(),
        "rows_at_experts": run.loads.rows_R.tolist(),
        "rows_crossing": run.verdict.rows,
        "problems": list(run.verdict.problems),
    }
