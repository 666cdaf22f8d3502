"""Pictures of a cluster: one host in full, with its PCIe tree and NVLinks, or hosts around their leaf switches."""

from __future__ import annotations

from collections import Counter

from topologies.alltoall import sampled, uniform_alltoall
from topologies.draw_fabric import draw_fabric
from topologies.draw_host import EDGE, FILL, draw_host
from topologies.errors import BadInput
from topologies.graph import KIND_NAMES, Cluster
from topologies.svg import FAINT, Canvas, colour, stroke

MARGIN, HEADER, LEGEND_ROW = 24.0, 64.0, 20.0


def draw(cluster: Cluster) -> str:
    """Return an SVG picture of a cluster, its links coloured by GB/s per direction."""
    canvas = Canvas()
    if cluster.spec.num_hosts == 1:
        width, height = draw_host(canvas, cluster, MARGIN, HEADER)
    else:
        width, height = draw_fabric(canvas, cluster, MARGIN, HEADER)
    width = max(width, 620.0)
    _header(canvas, cluster)
    height = _legend(canvas, cluster, height + 26)
    return canvas.render(width + MARGIN, height + MARGIN / 2, f"topology of {cluster.name}")


def _header(canvas: Canvas, cluster: Cluster) -> None:
    models = Counter("GPU of unknown model" if gpu.name == "unknown" else gpu.name for gpu in cluster.gpus)
    gpus = ", ".join(f"{count} x {name}" for name, count in models.items())
    canvas.text(MARGIN, 30, cluster.name, size=20, anchor="start", bold=True)
    facts = [
        gpus,
        f"{cluster.num_hosts} host{'s' * (cluster.num_hosts > 1)}",
        f"{cluster.num_domains} scale-up domain{'s' * (cluster.num_domains > 1)}",
    ]
    if cluster.num_hosts > 1:
        fabric = cluster.spec.fabric
        over = f", {fabric.oversubscription:g}:1 oversubscribed" if fabric.oversubscription > 1 else ""
        facts.append(f"{fabric.kind} fabric{over}")
    try:
        facts.append(f"uniform all-to-all up to {uniform_alltoall(sampled(cluster)).gbps:.3g} GB/s per GPU")
    except BadInput:
        facts.append("some ranks are cut off")
    canvas.text(MARGIN, 50, "  |  ".join(facts), size=12, anchor="start", fill=FAINT)


def _legend(canvas: Canvas, cluster: Cluster, y: float) -> float:
    """Draw a line for every kind and speed of link, and return the height below it."""
    wiring = cluster.wiring
    several = cluster.spec.num_hosts > 1
    hidden = ("local", "qpi", "c2c") if several else ("local",)
    drawn = [kind for kind in KIND_NAMES if kind not in hidden]
    seen = {
        (kind, round(gbps, 1)) for kind, gbps in zip(wiring.kinds, wiring.gbps.tolist(), strict=True) if kind in drawn
    }
    entries = sorted(seen, key=lambda entry: (drawn.index(entry[0]), -entry[1]))[:12]
    canvas.text(MARGIN, y + 4, "GB/s per direction:", size=11, anchor="start", fill=FAINT)
    for i, (kind, gbps) in enumerate(entries):
        x, row = MARGIN + 120 + (i % 3) * 165, y + (i // 3) * LEGEND_ROW
        canvas.box(x, row - stroke(gbps), 26, 2 * stroke(gbps), fill=colour(gbps), edge=colour(gbps), radius=1)
        canvas.text(x + 34, row + 4, f"{gbps:g}  {KIND_NAMES[kind]}", anchor="start")
    y += ((len(entries) + 2) // 3) * LEGEND_ROW
    if several:
        for i, (kind, words) in enumerate((("nic", "NIC"), ("gpu", "GPU (dashed: no near NIC)"))):
            canvas.box(MARGIN + 120 + i * 165, y - 6, 26, 12, fill=FILL[kind], edge=EDGE[kind], radius=2)
            canvas.text(MARGIN + 154 + i * 165, y + 4, words, anchor="start")
        y += LEGEND_ROW
    return y
