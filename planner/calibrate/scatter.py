"""A picture of predicted against measured times, as SVG: one dot a row, colours by system and operation."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd

from planner.calibrate.accuracy import Comparison, error_groups

WIDTH, HEIGHT = 760, 620
LEFT, TOP, SIDE = 84, 64, 470
COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#65a30d", "#dc2626")
MAX_DOTS = 6000
_STYLE = (
    "text{font-family:Inter,Helvetica,Arial,sans-serif;fill:#1f2937}.axis{stroke:#9ca3af;stroke-width:1}"
    ".grid{stroke:#e5e7eb;stroke-width:1}.tick{font-size:11px;fill:#4b5563}.label{font-size:13px}"
    ".title{font-size:17px;font-weight:600}.sub{font-size:12px;fill:#4b5563}.ideal{stroke:#111827;stroke-width:1.2}"
    ".band{stroke:#6b7280;stroke-width:1;stroke-dasharray:4 4}"
)


def scatter_svg(comparison: Comparison, profile_name: str) -> str:
    """Return the picture as one self-contained SVG document; both axes logarithmic, the dashed lines at +-10 %."""
    rows = comparison.rows
    if len(rows) > MAX_DOTS:
        rows = rows.iloc[np.linspace(0, len(rows) - 1, MAX_DOTS).round().astype(int)]
    low = float(np.floor(2 * np.log10(min(rows["measured_us"].min(), rows["predicted_us"].min()))) / 2)
    high = float(np.ceil(2 * np.log10(max(rows["measured_us"].max(), rows["predicted_us"].max()))) / 2)
    frame = _Frame(low, max(high, low + 0.5))
    _, everything = error_groups(comparison)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text class="title" x="{LEFT}" y="30">Predicted against measured: {escape(comparison.table)}</text>',
        f'<text class="sub" x="{LEFT}" y="50">profile {escape(profile_name)}, {everything.n:,} rows: mean error '
        f"{everything.mape:.1%}, median {everything.median:.1%}, 95th percentile {everything.p95:.1%}</text>",
        *frame.axes(),
        *_dots(rows, comparison, frame),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Frame:
    """The square plot between two powers of ten."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def x(self, log10_us: float) -> float:
        """Return the abscissa of a measured time."""
        return LEFT + SIDE * (log10_us - self.low) / (self.high - self.low)

    def y(self, log10_us: float) -> float:
        """Return the ordinate of a predicted time."""
        return TOP + SIDE * (1 - (log10_us - self.low) / (self.high - self.low))

    def axes(self) -> list[str]:
        """Return grid, ticks, labels, the ideal and the lines at +-10 %."""
        parts = [f'<clipPath id="plot"><rect x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}"/></clipPath>']
        for power in range(int(np.ceil(self.low)), int(np.floor(self.high)) + 1):
            x, y, text = self.x(power), self.y(power), _microseconds(10.0**power)
            parts += [
                f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{TOP + SIDE}"/>',
                f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{LEFT + SIDE}" y2="{y:.1f}"/>',
                f'<text class="tick" x="{x:.1f}" y="{TOP + SIDE + 18}" text-anchor="middle">{text}</text>',
                f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>',
            ]
        for factor, kind in ((1.0, "ideal"), (1.1, "band"), (1 / 1.1, "band")):
            shift = float(np.log10(factor))
            parts.append(
                f'<line class="{kind}" clip-path="url(#plot)" '
                f'x1="{self.x(self.low):.1f}" y1="{self.y(self.low + shift):.1f}" '
                f'x2="{self.x(self.high):.1f}" y2="{self.y(self.high + shift):.1f}"/>'
            )
        middle = TOP + SIDE / 2
        return [
            *parts,
            f'<rect class="axis" x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="none"/>',
            f'<text class="label" x="{LEFT + SIDE / 2}" y="{TOP + SIDE + 44}" text-anchor="middle">measured</text>',
            f'<text class="label" x="24" y="{middle}" text-anchor="middle" '
            f'transform="rotate(-90 24 {middle})">predicted</text>',
        ]


def _microseconds(us: float) -> str:
    if us < 1e3:
        return f"{us:g} us"
    return f"{us / 1e3:g} ms" if us < 1e6 else f"{us / 1e6:g} s"


def _dots(rows: pd.DataFrame, comparison: Comparison, frame: _Frame) -> list[str]:
    names = [name for name in comparison.group_by if name not in ("ranks", "size") and rows[name].nunique() > 1]
    series = rows[names].astype(str).agg(" ".join, axis=1) if names else rows["system"].astype(str)
    parts, legend = [], []
    for number, (name, mine) in enumerate(rows.groupby(series, sort=True)):
        colour = COLOURS[number % len(COLOURS)]
        hollow = number >= len(COLOURS)
        paint = f'fill="none" stroke="{colour}"' if hollow else f'fill="{colour}" fill-opacity="0.55"'
        points = zip(np.log10(mine["measured_us"]), np.log10(mine["predicted_us"]), strict=True)
        dots = "".join(f'<circle cx="{frame.x(m):.1f}" cy="{frame.y(p):.1f}" r="3"/>' for m, p in points)
        parts.append(f"<g {paint}>{dots}</g>")
        y = TOP + 10 + 38 * number
        error = mine["error"].abs()
        legend += [
            f'<circle cx="{LEFT + SIDE + 22}" cy="{y}" r="5" {paint}/>',
            f'<text class="label" x="{LEFT + SIDE + 34}" y="{y + 4}">{escape(str(name))[:24]}</text>',
            f'<text class="sub" x="{LEFT + SIDE + 34}" y="{y + 19}">n = {len(mine)}, mean {error.mean():.1%}</text>',
        ]
    y = TOP + SIDE - 14
    legend += [
        f'<line class="band" x1="{LEFT + SIDE + 14}" y1="{y}" x2="{LEFT + SIDE + 34}" y2="{y}"/>',
        f'<text class="sub" x="{LEFT + SIDE + 40}" y="{y + 4}">10 % off</text>',
    ]
    return parts + legend
