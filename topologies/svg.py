"""A canvas that collects SVG shapes, and the colours of links by speed."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

# GB/s up to which a colour holds: slow links warm, fast ones cool
COLOURS = (
    (15.0, "#d97706"),
    (40.0, "#4d9a1f"),
    (80.0, "#0e9488"),
    (250.0, "#2563eb"),
    (600.0, "#6d28d9"),
    (float("inf"), "#be185d"),
)
ON_BOARD = 5000.0  # GB/s from which a link is part of a board rather than a link
INK, FAINT, PAPER = "#1f2937", "#6b7280", "#ffffff"
FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"


def colour(gbps: float) -> str:
    """Return the colour of a link by its speed, GB/s per direction."""
    return next(name for limit, name in COLOURS if gbps <= limit)


def stroke(gbps: float) -> float:
    """Return the width of a link by its speed: from 1.2 below 15 GB/s to 3.2 above 600."""
    return 1.2 + 0.4 * next(i for i, (limit, _) in enumerate(COLOURS) if gbps <= limit)


class Canvas:
    """An SVG picture: lines lie under boxes, boxes under text."""

    def __init__(self) -> None:
        self._layers: tuple[list[str], list[str], list[str]] = ([], [], [])

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str,
        edge: str,
        title: str = "",
        dashed: bool = False,
        radius: float = 4,
        back: bool = False,
    ) -> None:
        """Draw a box; `title` shows when the mouse rests on it; `back` puts it under the lines."""
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        shape = (
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius}" fill="{fill}" '
            f'stroke="{edge}" stroke-width="1.2"{dash}>'
            + (f"<title>{escape(title)}</title>" if title else "")
            + "</rect>"
        )
        layer = self._layers[0] if back else self._layers[1]
        if back:
            layer.insert(0, shape)
        else:
            layer.append(shape)

    def line(
        self,
        points: tuple[float, float, float, float],
        gbps: float,
        *,
        title: str = "",
        opacity: float = 1.0,
        bend: float = 0.0,
    ) -> None:
        """Draw a link from (x1, y1) to (x2, y2); with `bend` an S-curve that leaves and arrives vertically."""
        x1, y1, x2, y2 = points
        path = f"M{x1:.1f} {y1:.1f} "
        path += (
            f"C{x1:.1f} {y1 + bend:.1f} {x2:.1f} {y2 - bend:.1f} {x2:.1f} {y2:.1f}" if bend else f"L{x2:.1f} {y2:.1f}"
        )
        self._path(path, gbps, title, opacity)

    def arc(self, x1: float, x2: float, y: float, height: float, gbps: float, *, title: str = "") -> None:
        """Draw a link between two points of one height as an arc above them."""
        self._path(
            f"M{x1:.1f} {y:.1f} C{x1:.1f} {y - height:.1f} {x2:.1f} {y - height:.1f} {x2:.1f} {y:.1f}", gbps, title, 0.9
        )

    def _path(self, path: str, gbps: float, title: str, opacity: float) -> None:
        look = f'stroke="{colour(gbps)}" stroke-width="{stroke(gbps):.1f}" opacity="{opacity}"'
        if gbps >= ON_BOARD:
            look = f'stroke="{FAINT}" stroke-width="1.2"'
        self._layers[0].append(
            f'<path d="{path}" fill="none" {look}>' + (f"<title>{escape(title)}</title>" if title else "") + "</path>"
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 11,
        anchor: str = "middle",
        fill: str = INK,
        bold: bool = False,
    ) -> None:
        """Write one line of text with its baseline at y."""
        weight = ' font-weight="600"' if bold else ""
        self._layers[2].append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{fill}"{weight}>'
            f"{escape(words)}</text>"
        )

    def render(self, width: float, height: float, label: str) -> str:
        """Return the picture as an SVG document."""
        body = "\n".join(shape for layer in self._layers for shape in layer)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" font-family="{escape(FONT)}" role="img" aria-label={quoteattr(label)}>\n'
            f'<rect width="100%" height="100%" fill="{PAPER}"/>\n{body}\n</svg>\n'
        )
