"""The picture of a cluster: GPUs, NICs, switches, and every cable coloured by how much of the layer it is at work.

Hosts stand in one row above their leaf switches or, from five on, in two mirrored rows around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go

from app.whatif.charts.look import BAND, USE, figure, scale_bar, use_colour
from planner.link_use import LinkUse
from topologies import Cluster, Rank
from topologies.graph import KIND_NAMES

MAX_GPUS = 72  # that are drawn at once
ONE_ROW = 4
HEIGHT = {"nvswitch": 3.1, "gpu": 2.4, "pci": 1.75, "root": 1.75, "card": 1.75, "nic": 1.15, "cpu": 0.75}
STEPS = 12  # colours of links
LOOK = {
    "gpu": ("square", 13, "#0072B2"), "nic": ("square", 9, "#009E73"), "leaf": ("diamond", 15, "#CC79A7"),
    "spine": ("diamond-wide", 18, "#CC79A7"), "nvswitch": ("hexagon", 12, "#56B4E9"), "pci": ("circle", 4, "#8A939C"),
    "root": ("circle", 4, "#8A939C"), "card": ("circle", 4, "#8A939C"), "cpu": ("circle", 5, "#8A939C"),
}  # fmt: skip
LOST = ("x", 10, "#C8340A")
NAMES = {
    "gpu": "GPU",
    "lost": "lost GPU",
    "nic": "NIC",
    "leaf": "leaf switch",
    "spine": "spine",
    "nvswitch": "NVSwitch",
}


@dataclass
class _Cable:
    """Two directions of one link."""

    ends: tuple[int, int]
    links: list[int] = field(default_factory=list)


def hosts_shown(cluster: Cluster, first: int = 0) -> list[int]:
    """Return the hosts that one picture holds, from `first` on."""
    shown, gpus = list[int](), 0
    for host in range(first, cluster.spec.num_hosts):
        gpus += len(cluster.wiring.paths[int(cluster.wiring.host_paths[host])].gpus)
        if gpus > MAX_GPUS and shown:
            break
        shown.append(host)
    return shown


def cluster_map(cluster: Cluster, use: LinkUse, layer_us: float, hosts: Sequence[int]) -> go.Figure:
    """Draw some hosts of a cluster and the switches that join them."""
    place = _places(cluster, hosts)
    drawn = figure(600 if len(hosts) > ONE_ROW else 470, hovermode="closest", showlegend=True)
    cables = _cables(cluster, place)
    part = use.busy_us_N / max(layer_us, 1e-12)
    _draw_cables(drawn, cluster, cables, place, part, use)
    _draw_nodes(drawn, cluster, place)
    for row in {int(np.sign(place[f"h{host}"][1])) for host in hosts}:
        for host in (host for host in hosts if int(np.sign(place[f"h{host}"][1])) == row):
            x, y = place[f"h{host}"]
            drawn.add_annotation(x=x, y=y, text=f"<b>host {host}</b>", showarrow=False, font={"size": 12})
    drawn.update_xaxes(visible=False)
    drawn.update_yaxes(visible=False)
    return drawn


def _places(cluster: Cluster, hosts: Sequence[int]) -> dict[str, tuple[float, float]]:
    """Return x and y of every node of some hosts and of the switches; and `h3`, where the name of host 3 goes."""
    wiring, place = cluster.wiring, dict[str, tuple[float, float]]()
    per_row = len(hosts) if len(hosts) <= ONE_ROW else -(-len(hosts) // 2)
    kinds = dict(zip(wiring.node_names, wiring.node_kinds, strict=True))
    shared: dict[str, list[float]] = {}
    x = 0.0
    for position, host in enumerate(hosts):
        if position == per_row:
            x = 0.0
        side = 1.0 if position < per_row else -1.0
        paths = wiring.paths[int(wiring.host_paths[host])]
        width = max(len(paths.gpus), len({nic for rail in paths.rails for nic in rail.nics}), 2)
        used = {paths.nics[nic] for rail in paths.rails for nic in rail.nics}
        for kind in ("gpu", "nic", "nvswitch", "pci", "root", "card", "cpu"):
            names = [
                node.name
                for i, node in enumerate(paths.host.nodes)
                if node.kind == kind and (kind != "nic" or i in used)
            ]
            for i, name in enumerate(names):
                at = x + width * (i + 0.5) / len(names)
                if f"h{host}/{name}" in kinds:
                    place[f"h{host}/{name}"] = (at, side * HEIGHT[kind])
                else:  # the NVSwitch of a domain of several hosts
                    shared.setdefault(f"d{host // cluster.spec.domain_hosts}/{name} {side:g}", []).append(at)
        place[f"h{host}"] = (x + width / 2, side * 3.65)
        x += width + 1.2
    for name, found in shared.items():  # drawn as a bar in each row: ends of a bar have names of their own
        switch, side_text = name.split(" ")
        at = float(side_text) * HEIGHT["nvswitch"]
        place.setdefault(switch, (float(np.mean(found)), at))
        place[f"{name} left"], place[f"{name} right"] = (min(found) - 1.5, at), (max(found) + 1.5, at)
    leaves = sorted({leaf for host in hosts for leaf in wiring.leaf_of_rail[host] if leaf >= 0})
    right = max(at for at, _ in place.values()) + 0.5
    for i, leaf in enumerate(leaves):
        place[wiring.node_names[leaf]] = (right * (i + 0.5) / len(leaves), 0.0)
    if "spine" in kinds and leaves:
        place["spine"] = (right + 1.2, 0.0)
    return place


def _cables(cluster: Cluster, place: dict[str, tuple[float, float]]) -> list[_Cable]:
    found: dict[tuple[int, int], _Cable] = {}
    wiring = cluster.wiring
    for link, (a, b) in enumerate(zip(wiring.source.tolist(), wiring.target.tolist(), strict=True)):
        if wiring.node_names[a] in place and wiring.node_names[b] in place:
            ends = (min(a, b), max(a, b))
            found.setdefault(ends, _Cable(ends)).links.append(link)
    return list(found.values())


def _draw_cables(
    drawn: go.Figure,
    cluster: Cluster,
    cables: Sequence[_Cable],
    place: dict[str, tuple[float, float]],
    part_N: Any,
    use: LinkUse,
) -> None:
    names = cluster.wiring.node_names
    lines: dict[int, tuple[list[float | None], list[float | None]]] = {}
    hovered: list[tuple[float, float, str, float]] = []
    for cable in cables:
        part = float(max(part_N[cable.links]))
        if part <= 0 and cluster.link_kinds[cable.links[0]] in ("qpi", "c2c", "local"):
            continue
        xs, ys = _way(*_ends(cluster, [names[end] for end in cable.ends], place))
        line = lines.setdefault(0 if part <= 0 else 1 + min(int(part * STEPS), STEPS - 1), ([], []))
        line[0].extend([*xs, None])
        line[1].extend([*ys, None])
        words = _words(cluster, cable, part_N, use)
        hovered += [(*_along(xs, ys, at), words, part) for at in (0.25, 0.5, 0.75)]
    for step, (xs_, ys_) in sorted(lines.items()):
        colour, width = (BAND, 1.0) if step == 0 else (use_colour((step - 0.5) / STEPS), 1.6 + 3.4 * step / STEPS)
        drawn.add_scatter(x=xs_, y=ys_, mode="lines", line={"color": colour, "width": width}, hoverinfo="skip",
                          showlegend=False)  # fmt: skip
    drawn.add_scatter(
        x=[at[0] for at in hovered], y=[at[1] for at in hovered], text=[at[2] for at in hovered], mode="markers",
        hovertemplate="%{text}<extra></extra>", showlegend=False,
        marker={"size": 9, "opacity": 0, "color": [100 * at[3] for at in hovered], "cmin": 0, "cmax": 100,
                "colorscale": [list(stop) for stop in USE], "showscale": True,
                "colorbar": scale_bar("% of the layer's time at work")},
    )  # fmt: skip


def _ends(
    cluster: Cluster, names: Sequence[str], place: dict[str, tuple[float, float]]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the ends of a cable; a switch that hosts share is met straight above or below, on its bar."""
    a, b = (place[name] for name in names)
    if cluster.spec.domain_hosts == 1:
        return a, b
    bars = [name.startswith("d") for name in names]
    if bars[0]:
        a = (b[0], float(np.sign(b[1])) * HEIGHT["nvswitch"])
    if bars[1]:
        b = (a[0], float(np.sign(a[1])) * HEIGHT["nvswitch"])
    return a, b


def _way(a: tuple[float, float], b: tuple[float, float]) -> tuple[list[float], list[float]]:
    """Return a straight line, or an arc between two nodes of one height: a mesh would lie on top of itself."""
    if a[1] != b[1] or a[1] == 0.0:
        return [a[0], b[0]], [a[1], b[1]]
    t = np.linspace(0, 1, 13)
    outward = np.sign(a[1]) * min(0.12 * abs(a[0] - b[0]), 0.9)
    return (a[0] + (b[0] - a[0]) * t).tolist(), (a[1] + outward * np.sin(np.pi * t)).tolist()


def _along(xs: Sequence[float], ys: Sequence[float], part: float) -> tuple[float, float]:
    """Return the point of a way that lies behind a part of its steps."""
    at = np.linspace(0, 1, len(xs))
    return float(np.interp(part, at, xs)), float(np.interp(part, at, ys))


def _words(cluster: Cluster, cable: _Cable, part_N: Any, use: LinkUse) -> str:
    """Say what both directions of a cable carry."""
    first = cluster.links[cable.links[0]]
    said = [f"<b>{KIND_NAMES[first.kind]}</b>, {first.gbps:g} GB/s per direction"]
    for index in cable.links:
        link = cluster.links[index]
        said.append(
            f"{link.source} to {link.target}, predicted: dispatch {use.dispatch_bytes_N[index] / 1e6:,.2f} MB, "
            f"combine {use.combine_bytes_N[index] / 1e6:,.2f} MB; at work {use.busy_us_N[index]:,.1f} us "
            f"({part_N[index]:.0%})"
        )
    return "<br>".join(said)


def _draw_nodes(drawn: go.Figure, cluster: Cluster, place: dict[str, tuple[float, float]]) -> None:
    kinds = dict(zip(cluster.wiring.node_names, cluster.wiring.node_kinds, strict=True))
    rank_of = {rank.node: rank for rank in cluster.ranks}
    bars = [name.removesuffix(" left") for name in place if name.endswith(" left")]
    for bar in bars:
        (left, y), (right, _) = place[f"{bar} left"], place[f"{bar} right"]
        drawn.add_scatter(
            x=[left, right], y=[y, y], mode="lines", line={"color": LOOK["nvswitch"][2], "width": 9}, opacity=0.7,
            name=NAMES["nvswitch"], showlegend=bar == bars[0], hovertemplate=f"{bar.split()[0]}<extra></extra>",
        )  # fmt: skip
    for kind in LOOK:
        if kind == "nvswitch" and bars:
            continue
        nodes = [name for name in place if kinds.get(name) == kind and (kind != "gpu" or name in rank_of)]
        _dots(drawn, kind, [(*place[name], _told(name, rank_of.get(name))) for name in nodes])
    lost = [name for name in place if kinds.get(name) == "gpu" and name not in rank_of]
    _dots(drawn, "lost", [(*place[name], f"{name}, lost") for name in lost])


def _told(name: str, rank: Rank | None) -> str:
    if rank is None:
        return name
    return f"{name}, rank {rank.rank}" + ("" if rank.speed == 1 else f", at {rank.speed:.0%} of its speed")


def _dots(drawn: go.Figure, kind: str, dots: Sequence[tuple[float, float, str]]) -> None:
    if not dots:
        return
    symbol, size, colour = LOOK.get(kind, LOST)
    drawn.add_scatter(
        x=[dot[0] for dot in dots], y=[dot[1] for dot in dots], text=[dot[2] for dot in dots], mode="markers",
        name=NAMES.get(kind, kind), showlegend=kind in NAMES, hovertemplate="%{text}<extra></extra>",
        marker={"symbol": symbol, "size": size, "color": colour, "line": {"width": 0}},
    )  # fmt: skip
