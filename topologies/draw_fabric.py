"""The picture of several hosts: GPUs and NICs of each, in one or two rows around the leaf switches that join them."""

from __future__ import annotations

from itertools import groupby

from topologies.affinity import HostPaths
from topologies.draw_host import EDGE, FILL
from topologies.graph import Cluster
from topologies.spec import SCALE_UP
from topologies.svg import FAINT, Canvas

MAX_HOSTS = 18  # up to which all are drawn, such as the trays of a rack
FEW_HOSTS = 8  # drawn of more, or one domain; the rest is counted in words
ONE_ROW = 4
DEVICE, GAP, PAD, SPINE_WIDTH = 27.0, 18.0, 10.0, 56.0
BAR_Y, GPU_Y, NIC_Y, HOST_HEIGHT, BAND = 24.0, 66.0, 112.0, 150.0, 210.0


def draw_fabric(canvas: Canvas, cluster: Cluster, left: float, top: float) -> tuple[float, float]:
    """Draw the first hosts of a cluster and their fabric; return the width and height reached."""
    return _FabricPicture(canvas, cluster, left, top).draw()


class _FabricPicture:
    """Hosts in a row above the leaves and, from five on, a mirrored row below them."""

    def __init__(self, canvas: Canvas, cluster: Cluster, left: float, top: float) -> None:
        self.canvas, self.cluster, self.left, self.top = canvas, cluster, left, top
        spec = cluster.spec
        many = spec.num_hosts > MAX_HOSTS
        self.shown = min(MAX_HOSTS, max(FEW_HOSTS, spec.domain_hosts)) if many else spec.num_hosts
        self.per_row = self.shown if self.shown <= ONE_ROW else (self.shown + 1) // 2
        self.x: list[float] = []
        x = left
        for host in range(self.shown):
            if host == self.per_row:
                x = left
            self.x.append(x)
            x += self._width(host) + GAP
        self.width = max(x + self._width(host) for host, x in enumerate(self.x))
        self.band_y = top + HOST_HEIGHT

    def _paths(self, host: int) -> HostPaths:
        return self.cluster.wiring.paths[int(self.cluster.wiring.host_paths[host])]

    def _width(self, host: int) -> float:
        paths = self._paths(host)
        return max(2 * PAD + DEVICE * max(len(paths.gpus), len(self._used(paths)) / 2), 90.0)

    def _used(self, paths: HostPaths) -> list[int]:
        return [nic for rail in paths.rails for nic in rail.nics]

    def _y(self, host: int, offset: float, height: float = 0.0) -> float:
        """Return the top of something `offset` below the outer edge of a host; hosts of the lower row are mirrored."""
        if host < self.per_row:
            return self.top + offset
        return self.band_y + BAND + HOST_HEIGHT - offset - height

    def _spread(self, host: int, count: int) -> list[float]:
        inner = self._width(host) - 2 * PAD
        return [self.x[host] + PAD + inner * (i + 0.5) / max(count, 1) for i in range(count)]

    def draw(self) -> tuple[float, float]:
        """Draw everything; return the width and height reached."""
        leaves = self._leaves()
        for host in range(self.shown):
            self._host(host, leaves)
        self._domains()
        rows = 2 if self.shown > self.per_row else 1
        height = self.band_y + BAND + (HOST_HEIGHT if rows == 2 else -40)
        hidden = self.cluster.spec.num_hosts - self.shown
        if hidden:
            self.canvas.text(self.left, height + 18, f"and {hidden} more hosts", size=13, anchor="start", fill=FAINT)
            height += 20
        return self.width + 8 + SPINE_WIDTH, height

    def _leaves(self) -> dict[int, tuple[float, float]]:
        """Draw the leaf switches of the hosts shown, threaded by the spine; return their middles."""
        wiring = self.cluster.wiring
        used = sorted({leaf for host in range(self.shown) for leaf in wiring.leaf_of_rail[host] if leaf >= 0})
        if not used:
            return {}
        y = self.band_y + BAND / 2
        step = (self.width - self.left) / len(used)
        width = min(step - 8, 96.0)
        middles = {leaf: (self.left + step * (i + 0.5), y) for i, leaf in enumerate(used)}
        uplinks = [float(wiring.gbps[wiring.spine_up[leaf]]) for leaf in used if wiring.spine_up[leaf] >= 0]
        if uplinks and len(used) > 1:
            self._spine(min(uplinks), middles[used[0]][0], y)
        for leaf, (x, _) in middles.items():
            self.canvas.box(
                x - width / 2, y - 13, width, 26, fill="#f1f5f9", edge="#334155", title=wiring.node_names[leaf]
            )
            self.canvas.text(x, y + 4, wiring.node_names[leaf].removesuffix(".0"), size=11, bold=True)
        return middles

    def _spine(self, gbps: float, left: float, y: float) -> None:
        """Draw the spine as a bar behind the leaves, with its name at the right end."""
        self.canvas.line((left, y, self.width + 8, y), gbps, title=f"spine, {gbps:g} GB/s to each leaf")
        self.canvas.box(self.width + 8, y - 13, SPINE_WIDTH, 26, fill="#e2e8f0", edge="#334155")
        self.canvas.text(self.width + 8 + SPINE_WIDTH / 2, y + 4, "spine", bold=True)

    def _host(self, host: int, leaves: dict[int, tuple[float, float]]) -> None:
        paths = self._paths(host)
        width = self._width(host)
        self.canvas.box(
            self.x[host],
            self._y(host, 0, HOST_HEIGHT - 6),
            width,
            HOST_HEIGHT - 6,
            fill="#fafafa",
            edge="#d1d5db",
            radius=8,
            back=True,
        )
        label_y = self._y(host, 6, 10) + 10
        self.canvas.text(self.x[host] + PAD, label_y, f"host {host}", size=11, anchor="start", bold=True)
        gpus = self._spread(host, len(paths.gpus))
        nics = dict(zip(self._used(paths), self._spread(host, len(self._used(paths))), strict=True))
        self._devices(host, gpus, list(nics.values()))
        bar = self._y(host, BAR_Y, 18) + (18 if host < self.per_row else 0)
        for gpu, x in enumerate(gpus):
            gbps = sum(
                link.gbps
                for link in paths.host.links
                if link.kind in SCALE_UP and paths.host.nodes[paths.gpus[gpu]].name in (link.a, link.b)
            )
            if gbps:
                edge = self._y(host, GPU_Y, 24) + (0 if host < self.per_row else 24)
                self.canvas.line((x, bar, x, edge), gbps, title=f"{gbps:g} GB/s")
        for rail, entry in enumerate(paths.rails):
            self._rail(host, rail, [nics[nic] for nic in entry.nics], gpus, leaves)

    def _devices(self, host: int, gpus: list[float], nics: list[float]) -> None:
        paths = self._paths(host)
        near = {gpu for rail in paths.rails for gpu in rail.owners}
        for gpu, x in enumerate(gpus):
            self.canvas.box(
                x - 11,
                self._y(host, GPU_Y, 24),
                22,
                24,
                fill=FILL["gpu"],
                edge=EDGE["gpu"],
                dashed=gpu not in near,
                title=f"GPU {gpu}" + ("" if gpu in near else ", no near NIC"),
            )
            self.canvas.text(x, self._y(host, GPU_Y, 24) + 16, str(gpu), size=10)
        size = min(22.0, (self._width(host) - 2 * PAD) / max(len(nics), 1) - 2)
        for x in nics:
            self.canvas.box(
                x - size / 2, self._y(host, NIC_Y, 16), size, 16, fill=FILL["nic"], edge=EDGE["nic"], radius=2
            )

    def _rail(
        self, host: int, rail: int, nics: list[float], gpus: list[float], leaves: dict[int, tuple[float, float]]
    ) -> None:
        """Draw the PCIe ways from the owners of a rail to its NICs, and the NICs' links to their leaf."""
        paths, upper = self._paths(host), host < self.per_row
        entry = paths.rails[rail]
        for x_nic, nic in zip(nics, entry.nics, strict=True):
            for gpu in entry.owners:
                way = paths.pci_path(gpu, paths.nics[nic]) or ()
                gbps = min((paths.host.links[cable // 2].gbps for cable in way), default=0.0)
                start = self._y(host, GPU_Y, 24) + (24 if upper else 0)
                end = self._y(host, NIC_Y, 16) + (0 if upper else 16)
                self.canvas.line((gpus[gpu], start, x_nic, end), gbps, title=f"{gbps:g} GB/s PCIe")
            leaf = self.cluster.wiring.leaf_of_rail[host][rail]
            speed = paths.host.nodes[paths.nics[nic]].gbps
            if leaf in leaves and speed:
                x, y = leaves[leaf]
                start = self._y(host, NIC_Y, 16) + (16 if upper else 0)
                bend = BAND / 3 if upper else -BAND / 3
                self.canvas.line(
                    (x_nic, start, x, y + (-13 if upper else 13)),
                    speed,
                    bend=bend,
                    opacity=0.75,
                    title=f"host {host} rail {rail}: {speed:g} GB/s",
                )

    def _domains(self) -> None:
        """Draw the crossbar or mesh of every domain across its hosts in a row."""
        per = self.cluster.spec.domain_hosts
        rows = (range(self.per_row), range(self.per_row, self.shown))
        for row in rows:
            for domain, group in groupby(row, key=lambda host: host // per):
                hosts = list(group)
                kinds = {link.kind for link in self._paths(hosts[0]).host.links} & SCALE_UP
                if not kinds:
                    continue
                switched = bool(self._paths(hosts[0]).host.of_kind("nvswitch"))
                label = "NVSwitch" if switched else f"{'xGMI' if 'xgmi' in kinds else 'NVLink'} mesh"
                end = self.x[hosts[-1]] + self._width(hosts[-1])
                x = self.x[hosts[0]] + PAD
                self.canvas.box(
                    x, self._y(hosts[0], BAR_Y, 18), end - PAD - x, 18, fill=FILL["nvswitch"], edge=EDGE["nvswitch"]
                )
                self.canvas.text(
                    (x + end - PAD) / 2, self._y(hosts[0], BAR_Y, 18) + 13, f"{label}, domain {domain}", size=10
                )
