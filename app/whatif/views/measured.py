"""Measured: a report of `epplan validate` or `epplan run --json`, predicted beside measured."""

from __future__ import annotations

import os
from pathlib import Path

import streamlit as st

from app.whatif.charts.measured import phase_bars, scatter
from app.whatif.frame import show
from app.whatif.parts import chart, figures, table
from app.whatif.reports import Report
from app.whatif.state import Session
from app.whatif.uploads import ENDINGS, LIMIT_MB
from app.whatif.words import plain
from topologies.errors import EpplanError
from topologies.files import read_bytes

FOLDER = "EPPLAN_APP_REPORTS"  # set by `epplan app --reports`


def page(mine: Session) -> None:
    """Let the user choose a report, and show it."""
    st.title("Predicted and measured", anchor=False)
    with st.container(border=True):
        _choose(mine)
    if mine.report is None:
        st.info(
            "No report yet. `epplan validate plan.json -o report.json` measures a plan and its rivals, and "
            "`epplan run plan.json --json > run.json` one plan; both can be opened here.",
            icon=":material/straighten:",
        )
        return
    _report(mine.uploads.report(mine.report))


def _choose(mine: Session) -> None:
    offered = _offered()
    left, right = st.columns([2, 1], gap="medium") if offered else (st.container(), None)

    def uploaded() -> None:
        given = st.session_state["upload report"]
        if given is not None:
            _take(mine, given.name, given.getvalue())

    left.file_uploader(
        "Report (JSON)", list(ENDINGS["report"]), key="upload report", on_change=uploaded,
        max_upload_size=LIMIT_MB["report"],
    )  # fmt: skip
    if right is not None:

        def picked() -> None:
            path = offered.get(st.session_state["picked report"])
            if path is not None:
                try:
                    _take(mine, path.name, read_bytes(path, limit_bytes=LIMIT_MB["report"] * 10**6))
                except EpplanError as error:
                    mine.complaint = plain(str(error))

        right.selectbox("or one of this server's", list(offered), index=None, key="picked report", on_change=picked)


def _take(mine: Session, name: str, data: bytes) -> None:
    try:
        upload = mine.uploads.add("report", name, data)
        mine.uploads.report(upload.reference)
    except EpplanError as error:
        mine.complaint = plain(str(error))
    else:
        mine.report = upload.reference


def _offered() -> dict[str, Path]:
    """Return the reports in the folder that the server was started with, by name."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return {}
    return {path.name: path for path in sorted(Path(folder).glob("*.json")) if path.is_file()}


def _report(report: Report) -> None:
    st.subheader(plain(report.title), anchor=False)
    errors = sorted(abs(row.error) for row in report.phases if row.error is not None)
    links = [one for one in report.links if one.counted_bytes >= 64 * 1024]
    byte_errors = sorted(abs(one.predicted_bytes / one.counted_bytes - 1) for one in links)
    figures(
        ("phases", f"{len(report.phases)}", "measured", report.spread),
        ("median error of a phase", _percent(errors, 0.5), "predicted / measured", "|predicted / measured - 1|"),
        ("95th percentile", _percent(errors, 0.95), "predicted / measured", "Of the same errors."),
        ("worst bytes on a link", _percent(byte_errors, 1.0), "predicted / counted", "Links above 64 KiB."),
    )
    for problem in report.problems:
        st.warning(plain(problem), icon=":material/warning:")
    left, right = st.columns(2, gap="medium")
    with left:
        chart(phase_bars(report), "measured-phases", "Mean of every phase, predicted and measured")
    with right:
        chart(scatter(report), "measured-scatter", "Predicted against measured, every phase of every case")
    st.caption(f"Predictions: {plain(report.provenance)}. Bars of the measurement: {report.spread}.")
    st.subheader("Errors by phase", anchor=False)
    _errors(report)
    st.subheader("Every phase", anchor=False)
    _phases(report)
    if report.links:
        _links(report)
    with st.expander("What, where, how"):
        table([{"fact": name, "value": value} for name, value in report.facts.items()], "report-facts")


def _percent(errors: list[float], part: float) -> str:
    return f"{errors[min(int(part * len(errors)), len(errors) - 1)]:.1%}" if errors else "-"


def _errors(report: Report) -> None:
    """Say for every exchange and phase how far predictions were off."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in report.phases:
        errors = groups.setdefault((row.exchange, row.phase), [])
        if row.error is not None:
            errors.append(row.error)
    table(
        [
            {
                "exchange": exchange,
                "phase": phase,
                "compared": len(errors),
                "median |error|": _percent(sorted(map(abs, errors)), 0.5),
                "largest |error|": _percent(sorted(map(abs, errors)), 1.0),
                "mean predicted / measured": f"{1 + sum(errors) / len(errors):.3f}" if errors else "not predicted",
            }
            for (exchange, phase), errors in groups.items()
        ],
        "measured-errors",
    )


def _phases(report: Report) -> None:
    table(
        [
            {
                "plan": row.plan,
                "exchange": row.exchange,
                "layer": "mean" if row.layer is None else str(row.layer),
                "phase": row.phase,
                "predicted us": None if row.predicted_us is None else round(row.predicted_us, 1),
                "measured us": round(row.measured_us, 1),
                "measured, low us": round(row.low_us, 1),
                "measured, high us": round(row.high_us, 1),
                "error %": None if row.error is None else round(100 * row.error, 1),
            }
            for row in report.phases
        ],
        "measured-phases",
    )


def _links(report: Report) -> None:
    st.subheader("Bytes on links", anchor=False)
    table(
        [
            {
                "plan": one.plan,
                "exchange": one.exchange,
                "layer": one.layer,
                "link": one.link,
                "predicted MB": round(one.predicted_bytes / 1e6, 4),
                "counted MB": round(one.counted_bytes / 1e6, 4),
                "error %": round(100 * (one.predicted_bytes / one.counted_bytes - 1), 2) if one.counted_bytes else None,
            }
            for one in report.links
        ],
        "measured-links",
    )


show(page)
