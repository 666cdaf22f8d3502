"""Reports of measurements: both formats in one form, and a line for anything else."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from app.whatif.reports import read_report
from executor.validation.report import Calibration, Case, Disagreement, LinkBytes, Phase, ValidationReport
from topologies import BadInput


def validation() -> ValidationReport:
    """Two plans on one layer: predicted 100 and 90, measured 110 and 80 for dispatch; one link off by 10 %."""

    def case(plan: str, predicted: float, measured: float) -> Case:
        phases = tuple(
            Phase(phase=name, predicted_us=predicted, measured_us=measured, quartiles_us=(measured - 5, measured + 5),
                  predicted_us_by_rank=(predicted,), measured_us_by_rank=(measured,), bottleneck="nic")
            for name in ("dispatch", "combine", "compute")
        )  # fmt: skip
        links = (LinkBytes(link="nic h0/nic0 -> leaf0.0", predicted_bytes=1.1e6, counted_bytes=1e6),)
        return Case(plan=plan, layer=3, exchange="dedup", phases=phases, rows=10, links=links)

    return ValidationReport(
        date=datetime(2026, 1, 2, tzinfo=UTC).isoformat(), where="lab", versions={}, cluster="c", policy="pxn",
        scale=0.01, compute="none", routing="r", tokens_per_rank=64, row_bytes=128, repeats=5,
        calibration=Calibration(probes=3, median_error=0.1, largest_error=0.2, efficiency={}, start_us={},
                                handling_us_per_byte={}),
        cases=(case("linear", 100, 110), case("ours", 90, 80)),
        disagreeing=(Disagreement(link="nic h1/nic0 -> leaf0.0", reached=0.25, usual=0.93),),
    )  # fmt: skip


def run_json() -> dict[str, Any]:
    """As `epplan run --json` prints it, in short."""
    phase = {"mean_us": 9.0, "provenance": "fitted", "error": None}
    return {
        "model": "tiny", "cluster": "hgx-h100:1", "ranks": 4, "hosts": 1, "device": "cpu", "dtype": "float32",
        "exchange": "pairwise", "hidden": 8, "intermediate": 8, "tokens": [64, 64, 64, 64], "notes": [],
        "conforms": True, "problems": [],
        "phases": [
            phase | {"phase": "dispatch", "backward": False, "low_us": 8.0, "high_us": 10.0, "predicted_us": 12.0},
            phase | {"phase": "route", "backward": True, "low_us": 1.0, "high_us": 2.0, "predicted_us": None},
        ],
        "probe_errors": {}, "layers": [{"layer": 1}],
    }  # fmt: skip


def test_a_validation_report(tmp_path):
    path = tmp_path / "x"
    path.write_text(validation().model_dump_json())
    report = read_report(path, "report.json")
    first, compute = report.phases[0], report.phases[-1]
    assert (compute.phase, compute.predicted_us, compute.error) == ("compute", None, None)  # no experts ran
    assert (first.plan, first.exchange, first.layer, first.phase) == ("linear", "dedup", 3, "dispatch")
    assert (first.predicted_us, first.measured_us, first.low_us, first.high_us) == (100, 110, 105, 115)
    assert first.error == pytest.approx(100 / 110 - 1)
    assert report.links[1].predicted_bytes / report.links[1].counted_bytes == pytest.approx(1.1)
    assert report.problems == ("nic h1/nic0 -> leaf0.0 reached 25% of its rate, where 93% is usual",)


def test_a_run(tmp_path):
    path = tmp_path / "x"
    path.write_text(json.dumps(run_json()))
    report = read_report(path, "run.json")
    assert [(row.phase, row.measured_us, row.error) for row in report.phases] == [
        ("dispatch", 10.0, pytest.approx(0.2)),
        ("route backward", 2.0, None),
    ]
    assert report.facts["conformance"] == "every row as planned"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "run.json: not valid JSON"),
        ("[" * 10_000, "run.json: JSON nested too deeply"),
        ("[1, 2]", "run.json: neither a report of"),
        ('{"format": "epplan.plan"}', "run.json: neither a report of"),
        ('{"format": "epplan.validation", "version": 1}', "Field required"),
        ('{"phases": 3, "layers": 1, "conforms": 1, "exchange": 1}', "run.json: "),
    ],
)
def test_anything_else_is_one_line(tmp_path, text, said):
    path = tmp_path / "x"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        read_report(path, "run.json")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
