"""ValidationReport: predicted beside measured, as JSON; every number says which of the two it is.

{"format": "epplan.validation", "version": 1, "where": ..., "cluster": ..., "model": {...}, "cases": [...], ...}
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from topologies import BadInput
from topologies.files import read_text

FORMAT = "epplan.validation"
MAX_REPORT_BYTES = 256 * 2**20
CLOSE = 0.05  # plans whose measured times differ by less are not ranked


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Phase(_Strict):
    """One phase of one case: predicted, and the median over repeats of the slowest rank; microseconds."""

    phase: Literal["dispatch", "compute", "combine"]
    predicted_us: float
    measured_us: float
    quartiles_us: tuple[float, float]
    predicted_us_by_rank: tuple[float, ...]
    measured_us_by_rank: tuple[float, ...]
    bottleneck: str

    @property
    def error(self) -> float:
        """Predicted over measured - 1."""
        return self.predicted_us / self.measured_us - 1 if self.measured_us else 0.0


class LinkBytes(_Strict):
    """Bytes of a step on one link: predicted from rows and headers, and counted by the kernel."""

    link: str
    predicted_bytes: float
    counted_bytes: float


class Case(_Strict):
    """One plan under one exchange on one layer."""

    plan: str
    layer: int
    exchange: str
    phases: tuple[Phase, ...]
    rows: int
    links: tuple[LinkBytes, ...] = ()
    problems: tuple[str, ...] = ()

    def total_us(self, which: Literal["predicted", "measured"]) -> float:
        """Return the time of all phases."""
        return sum(phase.predicted_us if which == "predicted" else phase.measured_us for phase in self.phases)

    def exchange_us(self, which: Literal["predicted", "measured"]) -> float:
        """Return the time of dispatch and combine."""
        moved = [phase for phase in self.phases if phase.phase != "compute"]
        return sum(phase.predicted_us if which == "predicted" else phase.measured_us for phase in moved)

    @property
    def error(self) -> float:
        """Predicted over measured - 1, of dispatch and combine."""
        return self.exchange_us("predicted") / self.exchange_us("measured") - 1


class Disagreement(_Strict):
    """A link that does not carry what the graph says: the part of its rate that its best flow reached."""

    link: str
    reached: float
    usual: float


class Calibration(_Strict):
    """What the probes taught: fitted."""

    probes: int
    median_error: float
    largest_error: float
    efficiency: dict[str, float]
    start_us: dict[str, float]
    handling_us_per_byte: dict[str, float]


class ValidationReport(_Strict):
    """What `epplan validate` found.

    Attributes:
        where: lab, this machine, or the hosts of a job.
        scale: lab bandwidth over the graph's; 1 outside a lab.
        compute: whether experts computed or a wait stood for them (`emulated`).
        tokens_per_rank, row_bytes: of a step.
        cases: plans by exchanges.
        disagreeing: links that do not carry what the graph says.

    """

    format: Literal["epplan.validation"] = "epplan.validation"
    version: Literal[1] = 1
    date: str
    where: str
    versions: dict[str, str]
    cluster: str
    policy: str
    scale: float = Field(gt=0)
    compute: Literal["emulated", "none"]
    routing: str
    tokens_per_rank: int
    row_bytes: int
    repeats: int
    calibration: Calibration
    cases: tuple[Case, ...] = Field(min_length=1)
    disagreeing: tuple[Disagreement, ...]

    def errors(self) -> list[float]:
        """Return the absolute errors of dispatch + combine, case by case."""
        return [abs(case.error) for case in self.cases]

    def link_errors(self, least_bytes: float = 64 * 1024) -> list[float]:
        """Return |predicted / counted - 1| of every link that carried enough to tell."""
        return [
            abs(link.predicted_bytes / link.counted_bytes - 1)
            for case in self.cases
            for link in case.links
            if link.counted_bytes >= least_bytes
        ]

    def misranked(self) -> list[tuple[Case, Case]]:
        """Return plans of one layer and exchange that measure over 5 % apart and are predicted the other way round."""
        wrong = []
        for one in self.cases:
            for other in self.cases:
                if (one.layer, one.exchange) != (other.layer, other.exchange):
                    continue
                apart = other.total_us("measured") > one.total_us("measured") * (1 + CLOSE)
                if apart and other.total_us("predicted") < one.total_us("predicted"):
                    wrong.append((one, other))
        return wrong

    def fastest(self, layer: int, which: Literal["predicted", "measured"]) -> Case:
        """Return the fastest case of a layer."""
        return min((case for case in self.cases if case.layer == layer), key=lambda case: case.total_us(which))

    def summary(self) -> dict[str, float]:
        """Return the figures that tell how far prediction and measurement are apart."""
        errors, links = self.errors(), self.link_errors()
        return {
            "median_error": float(np.median(errors)),
            "p95_error": float(np.quantile(errors, 0.95)),
            "largest_error": max(errors),
            "largest_link_error": max(links, default=0.0),
            "misranked": float(len(self.misranked())),
        }


def load_report(path: str | Path) -> ValidationReport:
    """Read a report; raises BadInput that names the file and the field."""
    try:
        return ValidationReport.model_validate_json(read_text(path, limit_bytes=MAX_REPORT_BYTES))
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{path}: {'.'.join(map(str, first['loc'])) or 'report'}: {first['msg']}") from error
