"""The picture of one host: devices in a row, the PCIe tree and the CPUs below them, NVLink or xGMI above."""

from __future__ import annotations

from topologies.graph import Cluster
from topologies.spec import SCALE_UP, Host, HostLink, HostNode
from topologies.svg import FAINT, INK, Canvas

FILL = {
    "gpu": "#dcfce7",
    "nic": "#fef3c7",
    "pci": "#f3f4f6",
    "root": "#f3f4f6",
    "card": "#fef9e7",
    "cpu": "#e0e7ff",
    "nvswitch": "#ede9fe",
}
EDGE = {
    "gpu": "#15803d",
    "nic": "#b45309",
    "pci": "#9ca3af",
    "root": "#9ca3af",
    "card": "#d4a017",
    "cpu": "#4338ca",
    "nvswitch": "#6d28d9",
}
SLOT, DEVICE_WIDTH, DEVICE_HEIGHT, LAYER, SCALE_UP_HEIGHT = 60.0, 52.0, 40.0, 62.0, 120.0


def draw_host(canvas: Canvas, cluster: Cluster, left: float, top: float) -> tuple[float, float]:
    """Draw the only host of a cluster; return the width and height reached."""
    host = cluster.spec.hosts[cluster.spec.layout[0].host]
    return _HostPicture(canvas, host, left, top).draw()


class _HostPicture:
    """Places devices by a walk down the PCIe tree from the CPUs, and bridges in the middle of what they join."""

    def __init__(self, canvas: Canvas, host: Host, left: float, top: float) -> None:
        self.canvas, self.host, self.left = canvas, host, left
        self.nodes = {node.name: node for node in host.nodes}
        self.device_y = top + SCALE_UP_HEIGHT
        self.switch_y = top + 14
        self.neighbours: dict[str, list[str]] = {name: [] for name in self.nodes}
        for link in host.links:
            if link.kind not in SCALE_UP and link.kind != "qpi":
                self.neighbours[link.a].append(link.b)
                self.neighbours[link.b].append(link.a)
        self.x: dict[str, float] = {}
        self.depth: dict[str, int] = {}
        self.slots = 0

    def draw(self) -> tuple[float, float]:
        """Draw everything; return the width and height reached."""
        for name, node in self.nodes.items():
            if node.kind == "cpu":
                self._place(name, 0)
        for name, node in self.nodes.items():
            if name not in self.x and node.kind in ("gpu", "nic"):
                self._place(name, 0)
        levels = max((depth for name, depth in self.depth.items() if self._inner(name)), default=0)
        self.bottom = self.device_y + DEVICE_HEIGHT + (levels + 1) * LAYER
        width = self.left + self.slots * SLOT
        self._scale_up()
        for link in self.host.links:
            if link.kind not in SCALE_UP:
                self._cable(link)
        for name in self.x:
            self._part(self.nodes[name])
        return width, self.bottom + 36

    def _inner(self, name: str) -> bool:
        return self.nodes[name].kind not in ("gpu", "nic", "nvswitch")

    def _place(self, name: str, depth: int) -> None:
        """Give a part its place: a device the next slot, an inner part the middle of its children."""
        self.depth[name] = depth
        self.x[name] = 0.0
        if not self._inner(name):
            self.x[name] = self.left + (self.slots + 0.5) * SLOT
            self.slots += 1
            return
        below = [child for child in self._children(name) if child not in self.x]
        for child in below:
            if child not in self.x:
                self._place(child, depth + 1)
        if not below:
            self.slots += 1
        spread = [self.x[child] for child in below] or [self.left + (self.slots - 0.5) * SLOT]
        self.x[name] = (min(spread) + max(spread)) / 2

    def _children(self, name: str) -> list[str]:
        order = list(self.nodes)
        return sorted(
            (child for child in self.neighbours[name] if self.nodes[child].kind != "cpu"),
            key=lambda child: order.index(self._first_device(child, {name})),
        )

    def _first_device(self, name: str, seen: set[str]) -> str:
        """Return the first device in a subtree, for an order that follows the GPUs."""
        if not self._inner(name):
            return name
        seen.add(name)
        order = list(self.nodes)
        below = [
            self._first_device(child, seen)
            for child in self.neighbours[name]
            if child not in seen and self.nodes[child].kind != "cpu"
        ]
        return min(below, key=order.index, default=name)

    def _y(self, name: str) -> float:
        """Return the middle of a part: CPUs at the bottom, bridges the higher the deeper in the tree."""
        if not self._inner(name):
            return self.device_y + DEVICE_HEIGHT / 2
        return self.bottom - self.depth[name] * LAYER

    def _cable(self, link: HostLink) -> None:
        if link.a not in self.x or link.b not in self.x:
            return
        title = f"{link.a} - {link.b}: {link.kind} {link.gbps:g} GB/s"
        a, b = sorted((link.a, link.b), key=self._y)
        if link.kind == "qpi" and abs(self.x[a] - self.x[b]) > 0:
            if self._adjacent_cpus(a, b):
                self.canvas.line((self.x[a], self._y(a), self.x[b], self._y(b)), link.gbps, title=title)
            return
        self.canvas.line((self.x[a], self._y(a), self.x[b], self._y(b)), link.gbps, title=title, bend=LAYER / 2.4)

    def _adjacent_cpus(self, a: str, b: str) -> bool:
        low, high = sorted((self.x[a], self.x[b]))
        return not any(
            node.kind == "cpu" and low < self.x[name] < high for name, node in self.nodes.items() if name in self.x
        )

    def _scale_up(self) -> None:
        for switch in (name for name, node in self.nodes.items() if node.kind == "nvswitch"):
            ends = [link.b if link.a == switch else link.a for link in self.host.links if switch in (link.a, link.b)]
            low, high = min(self.x[end] for end in ends), max(self.x[end] for end in ends)
            self.canvas.box(
                low - DEVICE_WIDTH / 2,
                self.switch_y,
                high - low + DEVICE_WIDTH,
                26,
                fill=FILL["nvswitch"],
                edge=EDGE["nvswitch"],
            )
            self.canvas.text((low + high) / 2, self.switch_y + 17, "NVSwitch", bold=True)
        for link in self.host.links:
            if link.kind not in SCALE_UP:
                continue
            title = f"{link.a} - {link.b}: {link.kind} {link.gbps:g} GB/s"
            ends = [end for end in (link.a, link.b) if end in self.x]
            if len(ends) == 1:
                x = self.x[ends[0]]
                self.canvas.line((x, self.switch_y + 26, x, self.device_y), link.gbps, title=title)
            else:
                apart = abs(self.x[link.a] - self.x[link.b])
                height = 24 + 110 * apart / max(SLOT * self.slots, 1.0)
                self.canvas.arc(self.x[link.a], self.x[link.b], self.device_y, height, link.gbps, title=title)

    def _part(self, node: HostNode) -> None:
        x, y = self.x[node.name], self._y(node.name)
        device = node.kind in ("gpu", "nic")
        width, height = (DEVICE_WIDTH, DEVICE_HEIGHT) if device else (SLOT * 1.6 if node.kind == "cpu" else 46, 24)
        title = " ".join(
            filter(None, (node.name, node.model, node.busid, f"{node.gbps:g} GB/s" if node.gbps else None))
        )
        self.canvas.box(
            x - width / 2, y - height / 2, width, height, fill=FILL[node.kind], edge=EDGE[node.kind], title=title
        )
        if device:
            self.canvas.text(x, y - 3, node.name, bold=True, fill=INK)
            self.canvas.text(x, y + 12, self._caption(node), size=9, fill=FAINT)
        else:
            self.canvas.text(x, y + 4, node.name, size=10)

    def _caption(self, node: HostNode) -> str:
        if node.kind == "gpu":
            return "" if node.lanes is None else f"{node.lanes} links"
        return "speed ?" if node.gbps is None else f"{node.gbps:g} GB/s"
