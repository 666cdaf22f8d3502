"""How the time of a search grows, as an SVG picture: seconds a layer by ranks and by experts, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from topologies.svg import FAINT, Canvas

WIDTH, HEIGHT, SIDE, TOP = 860.0, 400.0, 260.0, 84.0
LEFTS = (80.0, 520.0)
SERIES = (("seconds_a_layer", "search", "#2563eb"), ("fast_seconds_a_layer", "fast mode", "#d97706"))


def growth_svg(by_ranks: Sequence[Mapping[str, Any]], by_experts: Sequence[Mapping[str, Any]]) -> str:
    """Return the picture of both series of growth cases."""
    canvas = Canvas()
    canvas.text(LEFTS[0], 28, "Seconds a layer on one core, measured (two-level)", size=16, anchor="start", bold=True)
    for left, cases, axis, title in (
        (LEFTS[0], by_ranks, "ranks", "by ranks, 256 experts"),
        (LEFTS[1], by_experts, "experts", "by experts, 32 ranks"),
    ):
        canvas.text(left + SIDE / 2, 52, title, size=12, fill=FAINT)
        _plot(canvas, left, sorted(cases, key=lambda case: case[axis]), axis)
    return canvas.render(WIDTH, HEIGHT, "Seconds a layer of search and fast mode by ranks and by experts")


def _plot(canvas: Canvas, left: float, cases: Sequence[Mapping[str, Any]], axis: str) -> None:
    """Draw one square plot; each dot is a case, with its seconds beside it."""
    x_of = _axis([case[axis] for case in cases], left, left + SIDE)
    every = [case[name] for case in cases for name, *_ in SERIES]
    y_of = _axis(every, TOP + SIDE, TOP)
    canvas.box(left - 20, TOP - 20, SIDE + 40, SIDE + 34, fill="#ffffff", edge="#d1d5db", radius=0, back=True)
    for case in cases:
        canvas.text(x_of(case[axis]), TOP + SIDE + 32, f"{case[axis]}", size=11, fill=FAINT)
        for name, _, fill in SERIES:
            x, y = x_of(case[axis]), y_of(case[name])
            canvas.box(x - 3, y - 3, 6, 6, fill=fill, edge=fill, radius=3, title=f"{case[name]:.3g} s")
            canvas.text(x, y - 8, f"{case[name]:.2g}", size=10, fill=fill)
    for place, (_, label, fill) in enumerate(SERIES):
        canvas.text(left + 4 + 70 * place, TOP + SIDE + 52, label, size=11, anchor="start", fill=fill, bold=True)


def _axis(values: Sequence[float], first: float, last: float) -> Callable[[float], float]:
    """Return where a value lies between two ends, on a logarithmic axis over all values."""
    low, high = np.log(min(values)), np.log(max(values))
    return lambda value: float(first + (np.log(value) - low) / max(high - low, 1e-9) * (last - first))
