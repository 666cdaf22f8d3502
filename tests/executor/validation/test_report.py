"""The report: what it concludes from given numbers, and that it survives JSON and HTML."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from executor.validation.page import page
from executor.validation.report import Calibration, Case, LinkBytes, Phase, ValidationReport, load_report
from topologies import BadInput


def case(plan: str, predicted: float, measured: float, **more: object) -> Case:
    phases = [
        Phase(
            phase=name, predicted_us=predicted * part, measured_us=measured * part, quartiles_us=(measured, measured),
            predicted_us_by_rank=(predicted * part, 1.0), measured_us_by_rank=(measured * part, 1.0), bottleneck="nic",
        )
        for name, part in (("dispatch", 0.5), ("compute", 0.0), ("combine", 0.5))
    ]  # fmt: skip
    return Case(plan=plan, layer=3, exchange="dedup", phases=tuple(phases), rows=17, **more)


def report_of(*cases: Case) -> ValidationReport:
    return ValidationReport(
        date="2026-11-21", where="lab", versions={"torch": "2.13.0"}, cluster="<two> hosts", policy="pxn",
        scale=0.001, compute="none", routing="a.npz", tokens_per_rank=8, row_bytes=64, repeats=3,
        calibration=Calibration(
            probes=9, median_error=0.01, largest_error=0.1, efficiency={"nic": 0.9}, start_us={"dedup dispatch": 1.0},
            handling_us_per_byte={"dedup dispatch": 0.001},
        ),
        cases=cases, disagreeing=(),
    )  # fmt: skip


def test_errors_and_order() -> None:
    """Measured 100, 120, 122; predicted 110, 100, 130: the first two are in the wrong order, the last two too close."""
    report = report_of(case("linear", 110, 100), case("eplb", 100, 120), case("ours", 130, 122))
    assert report.errors() == pytest.approx([0.1, 1 / 6, 8 / 122])
    assert [(one.plan, other.plan) for one, other in report.misranked()] == [("linear", "eplb")]
    assert report.fastest(3, "measured").plan == "linear"
    assert report.fastest(3, "predicted").plan == "eplb"


def test_links_with_little_traffic_do_not_count() -> None:
    links = (
        LinkBytes(link="a", predicted_bytes=102_000, counted_bytes=100_000),
        LinkBytes(link="b", predicted_bytes=1, counted_bytes=100),
    )
    assert report_of(case("ours", 1, 1, links=links)).link_errors() == pytest.approx([0.02])


def test_json_round_trip_and_broken_files(tmp_path: Path) -> None:
    report, path = report_of(case("ours", 110, 100)), tmp_path / "report.json"
    path.write_text(report.model_dump_json())
    assert load_report(path) == report
    path.write_text(report.model_dump_json().replace('"scale":0.001', '"scale":-1'))
    with pytest.raises(BadInput, match="scale"):
        load_report(path)
    path.write_text("{")
    with pytest.raises(BadInput, match=r"report\.json"):
        load_report(path)


VOID = ("meta", "br", "rect", "circle", "line", "path")


class Balanced(HTMLParser):
    """Counts open tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for _, value in attrs:
            assert "://" not in (value or ""), "the page is to need nothing outside it"

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_escapes_names() -> None:
    text = page(report_of(case("ours", 110, 100), case("linear", 100, 120, problems=("rank 0 sent <3>",))))
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert "&lt;two&gt; hosts" in text
    assert "rank 0 sent &lt;3&gt;" in text
    assert "another order than predicted" in text
