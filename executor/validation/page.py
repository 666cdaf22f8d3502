"""A validation report as one HTML page without anything outside it: plots first, then tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from executor.validation.report import Case, ValidationReport

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#767676"  # Okabe and Ito's palette: told apart by the colour-blind too
MARGIN = 70  # of a plot, for the labels of its axes
PHASE_COLOURS = {"dispatch": "#0072b2", "compute": "#999999", "combine": "#56b4e9"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #1a1a1a; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: 3px 10px; border-bottom: 1px solid #ddd; }
td { text-align: right; font-variant-numeric: tabular-nums; } td:first-child, th { text-align: left; }
.bad { color: #b00020; font-weight: 600; } .note { color: #555; } svg { max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #e8e8e8; } td, th { border-color: #333; }
  .note { color: #aaa; } svg text { fill: #e8e8e8; } .bad { color: #ff8a80; } }
"""


def page(report: ValidationReport) -> str:
    """Return the page."""
    figures = report.summary()
    head = (
        f"<p>{escape(report.cluster)}, {escape(report.where)}; routing {escape(report.routing)},"
        f" {report.tokens_per_rank:,} tokens a rank, {report.row_bytes:,} bytes a row; {report.repeats} repeats;"
        f" {escape(report.date)}; torch {escape(report.versions['torch'])}.<br><b>Dispatch + combine: predicted and"
        f" measured differ by {figures['median_error']:.1%} (median), {figures['p95_error']:.1%} (95th percentile)"
        f" over {len(report.cases)} cases.</b> {_links_line(report)} {_order_line(report)}</p>"
    )
    body = [
        head,
        _slow(report),
        "<h2>Predicted against measured time of dispatch + combine, ms</h2>",
        scatter(report.cases),
        "<h2>Where the time goes: predicted above, measured below, ms</h2>",
        bars(report.cases),
        _case_table(report.cases),
        "<h2>Ranks: time of dispatch + combine, ms</h2>",
        '<p class="note">Predicted is an upper bound: as long as the slowest link that a rank may use is busy.</p>',
        _rank_table(report.cases),
        "<h2>Links: bytes of a step</h2>",
        _link_table(report.cases),
        "<h2>Calibration, fitted to probes</h2>",
        _calibration(report),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(report.cluster)}: predicted and'
        f" measured</title><style>{STYLE}</style></head><body><h1>Predicted and measured</h1>{''.join(body)}"
        "</body></html>\n"
    )


def scatter(cases: Sequence[Case], size: int = 420) -> str:
    """Return a picture of predicted over measured; the line is where they are equal."""
    points = [(case.exchange_us("measured") / 1e3, case.exchange_us("predicted") / 1e3, case) for case in cases]
    top = 1.08 * max(max(x, y) for x, y, _ in points)

    def at(value: float) -> float:
        return MARGIN + value / top * (size - MARGIN - 20)

    dots = "".join(
        f'<circle cx="{at(x):.1f}" cy="{size - at(y):.1f}" r="5" fill="{ORANGE if case.plan == "ours" else BLUE}"'
        f' fill-opacity="0.75"><title>{escape(case.plan)}, {escape(case.exchange)}, layer {case.layer}: predicted'
        f" {y:.1f} ms, measured {x:.1f} ms</title></circle>"
        for x, y, case in points
    )
    ticks = "".join(
        f'<text x="{at(value):.0f}" y="{size - MARGIN + 18}" text-anchor="middle" font-size="12">{value:,.0f}</text>'
        f'<text x="64" y="{size - at(value) + 4:.0f}" text-anchor="end" font-size="12">{value:,.0f}</text>'
        for value in (top * part for part in (0.25, 0.5, 0.75))
    )
    end, middle = size - MARGIN, size / 2
    return (
        f'<svg viewBox="0 0 {size} {size}" width="{size}" role="img">'
        f'<line x1="{MARGIN}" y1="{end}" x2="{size - 20}" y2="20" stroke="{GREY}"/>'
        f'<path d="M{MARGIN} 20V{end}H{size - 20}" fill="none" stroke="{GREY}"/>{ticks}{dots}'
        f'<text x="{middle}" y="{size - 20}" text-anchor="middle" font-size="13">measured</text>'
        f'<text x="14" y="{middle}" text-anchor="middle" font-size="13" transform="rotate(-90 14 {middle})">'
        "predicted</text>"
        '</svg><p class="note">Orange: this plan. Blue: baselines.</p>'
    )


def bars(cases: Sequence[Case], width: int = 1000) -> str:
    """Return a picture of the phases of every case: a bar predicted, a bar measured."""
    longest = max(max(case.total_us("predicted"), case.total_us("measured")) for case in cases)
    label, row = 250, 40
    parts = []
    for place, case in enumerate(cases):
        top = 30 + place * row
        name = f"{case.plan}, {case.exchange}, layer {case.layer}"
        parts.append(f'<text x="{label - 8}" y="{top + 17}" text-anchor="end" font-size="13">{escape(name)}</text>')
        for line, which in enumerate(("predicted_us", "measured_us")):
            x = float(label)
            for phase in case.phases:
                us = float(getattr(phase, which))
                long = us / longest * (width - label - 90)
                opacity = 0.55 if line == 0 else 1.0
                parts.append(
                    f'<rect x="{x:.1f}" y="{top + line * 14}" width="{long:.1f}" height="12" fill-opacity="{opacity}"'
                    f' fill="{PHASE_COLOURS[phase.phase]}"><title>{phase.phase}: {us / 1e3:.1f} ms</title></rect>'
                )
                x += long
            total = sum(float(getattr(phase, which)) for phase in case.phases)
            parts.append(f'<text x="{x + 6:.0f}" y="{top + line * 14 + 10}" font-size="11">{total / 1e3:.0f}</text>')
    legend = "".join(
        f'<rect x="{label + i * 110}" y="6" width="12" height="12" fill="{colour}"/>'
        f'<text x="{label + 18 + i * 110}" y="16" font-size="12">{phase}</text>'
        for i, (phase, colour) in enumerate(PHASE_COLOURS.items())
    )
    height = 40 + row * len(cases)
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">{legend}{"".join(parts)}</svg>'


def _links_line(report: ValidationReport) -> str:
    errors = report.link_errors()
    if not errors:
        return "Bytes on links were not counted."
    return f"Bytes on links: predicted = counted within {max(errors):.1%} on all {len(errors)} counts."


def _order_line(report: ValidationReport) -> str:
    wrong = report.misranked()
    if not wrong:
        return "Whenever two plans measure over 5 % apart, the prediction has them in the same order."
    one, other = wrong[0]
    return (
        f'<span class="bad">{len(wrong)} pairs of plans are in another order than predicted, such as'
        f" {escape(one.plan)} and {escape(other.plan)} under {escape(one.exchange)}.</span>"
    )


def _slow(report: ValidationReport) -> str:
    """Return what is wrong: links that disagree with the graph, and rows that are not the plan's."""
    lines = [
        f"{escape(link.link)} disagrees with the graph: its best flow reached {link.reached:.0%} of the link's rate,"
        f" {link.usual:.0%} is usual for its kind"
        for link in report.disagreeing
    ]
    lines += [
        f"{escape(case.plan)}, layer {case.layer}: {escape(text)}" for case in report.cases for text in case.problems
    ]
    return "".join(f'<p class="bad">{line}</p>' for line in lines)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _case_table(cases: Sequence[Case]) -> str:
    rows = []
    for case in cases:
        phases = (f"{phase.predicted_us / 1e3:.1f} / {phase.measured_us / 1e3:.1f}" for phase in case.phases)
        cells = [case.plan, str(case.layer), case.exchange, *phases]
        slowest = max((p for p in case.phases if p.phase != "compute"), key=lambda phase: phase.predicted_us)
        rows.append(
            [*cells, f"{case.error:+.1%}", f"{case.rows:,}", "no" if case.problems else "yes", slowest.bottleneck]
        )
    columns = ("plan", "layer", "exchange", "dispatch ms (predicted / measured)", "compute", "combine", "error")
    return _table((*columns, "rows sent", "rows as planned", "predicted bottleneck"), rows)


def _rank_table(cases: Sequence[Case]) -> str:
    ranks = len(cases[0].phases[0].measured_us_by_rank)
    rows = []
    for case in cases:
        moved = [phase for phase in case.phases if phase.phase != "compute"]
        predicted = [sum(phase.predicted_us_by_rank[rank] for phase in moved) for rank in range(ranks)]
        measured = [sum(phase.measured_us_by_rank[rank] for phase in moved) for rank in range(ranks)]
        cells = (f"{p / 1e3:.0f} / {m / 1e3:.0f}" for p, m in zip(predicted, measured, strict=True))
        rows.append([f"{case.plan}, {case.exchange}, layer {case.layer}", *cells])
    return _table(("predicted / measured", *(f"rank {rank}" for rank in range(ranks))), rows)


def _link_table(cases: Sequence[Case]) -> str:
    """Return the busiest links of every case."""
    rows = []
    for case in cases:
        for link in sorted(case.links, key=lambda one: -one.counted_bytes)[:6]:
            off = link.predicted_bytes / link.counted_bytes - 1 if link.counted_bytes else 0.0
            figures = (f"{link.predicted_bytes:,.0f}", f"{link.counted_bytes:,.0f}", f"{off:+.1%}")
            rows.append((f"{case.plan}, {case.exchange}, layer {case.layer}", link.link, *figures))
    if not rows:
        return '<p class="note">Only a lab counts bytes by link.</p>'
    columns = ("case (its six busiest links)", "link", "predicted, with headers", "counted by the kernel", "off by")
    return _table(columns, rows)


def _calibration(report: ValidationReport) -> str:
    made = report.calibration
    rows = [(f"efficiency of {kind} links", f"{value:.3f}") for kind, value in made.efficiency.items()]
    rows += [(f"start of {family}", f"{value / 1e3:.2f} ms") for family, value in made.start_us.items()]
    rows += [
        (f"handling in {family}", f"{value * 1e3:.3f} ns/byte") for family, value in made.handling_us_per_byte.items()
    ]
    note = (
        f"<p>{made.probes} probes (one-to-one flows, uniform exchanges; none of them a plan's): the fit is off by"
        f" {made.median_error:.1%} (median), {made.largest_error:.1%} at most. Experts: {escape(report.compute)}.</p>"
    )
    return note + _table(("fitted", "value"), rows)
