"""Reports of measurements in one form, for the page Measured; `read_report` is all that knows their formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from executor.validation.report import ValidationReport, load_report
from topologies.errors import BadInput
from topologies.files import read_text
from topologies.json_text import parse_json

MAX_BYTES = 16 * 2**20
MAX_VALUES = 200_000  # each may be wrong, and pydantic keeps a note of each


@dataclass(frozen=True)
class PhaseRow:
    """A phase of one plan on one layer (None: mean of several); `predicted_us` is None where nobody predicted it."""

    plan: str
    exchange: str
    layer: int | None
    phase: str
    predicted_us: float | None
    measured_us: float
    low_us: float
    high_us: float

    @property
    def error(self) -> float | None:
        """Predicted / measured - 1."""
        return None if self.predicted_us is None or not self.measured_us else self.predicted_us / self.measured_us - 1


@dataclass(frozen=True)
class LinkRow:
    """Bytes of a step on one link: predicted, and counted by the kernel."""

    plan: str
    exchange: str
    layer: int
    link: str
    predicted_bytes: float
    counted_bytes: float


@dataclass(frozen=True)
class Report:
    """What was measured, where, and how far predictions were off.

    Attributes:
        facts: what to know of it, by name.
        spread: what `low_us` and `high_us` are.
        provenance: of the predictions.
        problems: what did not conform, or does not carry what it should.

    """

    title: str
    facts: dict[str, str]
    phases: tuple[PhaseRow, ...]
    links: tuple[LinkRow, ...]
    spread: str
    provenance: str
    problems: tuple[str, ...]


def read_report(path: Path, name: str) -> Report:
    """Read the JSON of `epplan validate` or of `epplan run --json`; raises BadInput for anything else."""
    document = parse_json(read_text(path, limit_bytes=MAX_BYTES), name, max_values=MAX_VALUES)
    if isinstance(document, dict) and document.get("format") == "epplan.validation":
        return _of_validation(load_report(path))
    if isinstance(document, dict) and {"phases", "layers", "conforms", "exchange"} <= set(document):
        try:
            return _of_run(_Run.model_validate(document))
        except ValidationError as error:
            first = error.errors()[0]
            raise BadInput(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    raise BadInput(f"{name}: neither a report of `epplan validate` nor the output of `epplan run --json`")


def _of_validation(report: ValidationReport) -> Report:
    figures = report.summary()
    facts = {
        "where": report.where,
        "cluster": report.cluster,
        "routing": report.routing,
        "tokens per rank": f"{report.tokens_per_rank:,}",
        "expert compute": report.compute,
        "bandwidth": f"{report.scale:g} x the graph's",
        "date": report.date,
        "median error": f"{figures['median_error']:.1%} (dispatch + combine)",
        "95th percentile": f"{figures['p95_error']:.1%}",
        "largest error of bytes on a link": f"{figures['largest_link_error']:.1%}",
        "pairs of plans ranked otherwise": f"{figures['misranked']:.0f}",
    }
    phases, links, problems = [], [], []
    for case in report.cases:
        problems += [f"{case.plan}, layer {case.layer}: {problem}" for problem in case.problems]
        for phase in case.phases:
            low, high = phase.quartiles_us
            foretold = phase.phase != "compute" or report.compute != "none"  # no experts ran: a few us of copying
            predicted_us = phase.predicted_us if foretold else None
            phases.append(
                PhaseRow(case.plan, case.exchange, case.layer, phase.phase, predicted_us, phase.measured_us, low, high)
            )
        links += [
            LinkRow(case.plan, case.exchange, case.layer, one.link, one.predicted_bytes, one.counted_bytes)
            for one in case.links
        ]
    problems += [
        f"{one.link} reached {one.reached:.0%} of its rate, where {one.usual:.0%} is usual"
        for one in report.disagreeing
    ]
    return Report(
        f"Validation on {report.where}: {report.cluster}", facts, tuple(phases), tuple(links),
        "quartiles over repeats", "fitted to probes, never to a plan", tuple(problems),
    )  # fmt: skip


class _Phase(BaseModel):
    """As `epplan run --json` prints it."""

    model_config = ConfigDict(extra="ignore")

    phase: str
    backward: bool
    low_us: float
    high_us: float
    predicted_us: float | None


class _Run(BaseModel):
    """The parts of `epplan run --json` that are shown."""

    model_config = ConfigDict(extra="ignore")

    model: str
    cluster: str
    ranks: int
    hosts: int
    device: str
    dtype: str
    exchange: str
    tokens: list[int]
    conforms: bool
    problems: list[str]
    phases: list[_Phase]
    layers: list[dict[str, Any]]


def _of_run(run: _Run) -> Report:
    facts = {
        "model": run.model,
        "cluster of the plan": run.cluster,
        "ranks": f"{run.ranks} on {run.hosts} host{'s' * (run.hosts > 1)}",
        "device": f"{run.device}, {run.dtype}",
        "tokens per rank": f"{max(run.tokens, default=0):,}",
        "layers": str(len(run.layers)),
        "conformance": "every row as planned" if run.conforms else "what ran is not the plan",
    }
    phases = tuple(
        PhaseRow(
            "this plan", run.exchange, None, f"{one.phase} backward" if one.backward else one.phase,
            one.predicted_us, one.high_us, one.low_us, one.high_us,
        )
        for one in run.phases
    )  # fmt: skip
    return Report(
        f"Run of a plan for {run.cluster} on {run.ranks} ranks", facts, phases, (),
        "fastest and slowest rank", "fitted to probes of this machine", tuple(run.problems),
    )  # fmt: skip
