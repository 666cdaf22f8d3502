"""The matrix that `nvidia-smi topo -m` prints, to a host.

Each cell says how two devices are joined: NVn (n NVLinks), PIX (one PCIe switch), PXB (several), PHB (a host bridge),
NODE (host bridges of one CPU), SYS (across CPUs). The levels nest, so the PCIe tree is rebuilt by grouping devices
level by level. The matrix holds no speeds: those of NVLink and PCIe follow from the system that the user names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations

from topologies import link_speeds
from topologies.affinity import HostPaths
from topologies.cluster_file import validate
from topologies.errors import BadInput
from topologies.reading import Reading
from topologies.spec import Host

LEVELS = ("PIX", "PXB", "PHB", "NODE", "SYS")
SYNONYMS = {"SOC": "SYS", "C2C": "SYS", "CNS": "NODE"}
MAX_NVLINKS_TO_EACH = 6  # of several peers on one board: 18 over 3 (H100); three GPUs seen of a switched host show more
MAX_LINES, MAX_DEVICES = 5_000, 256
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[()][A-B0-2]|[\x00\x0e\x0f]")
_DEVICE = re.compile(r"(?:GPU|NIC|mlx|bnxt|rdma|irdma|efa|hfi)[\w.+-]*")
_GPU = re.compile(r"GPU[0-9]{1,3}")
_CELL = re.compile(r"X|NV[0-9]{1,2}|" + "|".join((*LEVELS, *SYNONYMS)))
_CELLS = re.compile(rf"(?:{_CELL.pattern}){{2,}}")
_AFFINITY = re.compile(r"[0-9][0-9,-]*|N/A")


@dataclass(frozen=True)
class LinkFigures:
    """Speeds for what a matrix names but does not measure, GB/s per direction.

    Attributes:
        lane_gbps: one NVLink.
        pcie_gbps: every PCIe link; cpu_gbps: between CPUs.
        c2c_gbps: GPU to CPU where they are joined by C2C; None where GPUs sit on PCIe.
        source: where they come from, for a note.
    """

    lane_gbps: float
    pcie_gbps: float
    cpu_gbps: float
    c2c_gbps: float | None
    source: str


# NVLinks of a GPU -> figures of its generation by NCCL's constants, for looking at a matrix without naming a system
_GENERATIONS = (
    (6, LinkFigures(20.0, 12.0, 10.0, None, "taken as V100 with PCIe 3 (NCCL's constants)")),
    (12, LinkFigures(20.0, 24.0, 16.0, None, "taken as A100 with PCIe 4 (NCCL's constants)")),
    (18, LinkFigures(20.6, 48.0, 22.0, None, "taken as Hopper with PCIe 5 (NCCL's constants)")),
)


@dataclass
class _Matrix:
    """The cells read, by pair of devices, and the NUMA node (or else the CPUs) printed for each GPU."""

    devices: list[str] = field(default_factory=list)
    cells: dict[frozenset[str], str] = field(default_factory=dict)
    numa: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def is_matrix(content: bytes) -> bool:
    """Return whether a file looks like the output of `nvidia-smi topo -m`."""
    return re.search(rb"GPU0\b", content) is not None


def read_nvidia_smi(content: bytes, where: str, *, figures: LinkFigures | None = None) -> Reading:
    """Read the host of a matrix; without `figures` the speeds of the GPU generation that its NVLink counts suggest."""
    matrix = _parse(content.decode("utf-8", errors="replace"), where)
    gpus = [device for device in matrix.devices if _GPU.fullmatch(device)]
    lanes = _lanes(matrix, gpus)
    if figures is None:
        most = max(lanes.values(), default=0)
        figures = next((entry for limit, entry in _GENERATIONS if most <= limit), _GENERATIONS[-1][1])
    notes = [*matrix.notes, f"{where}: the matrix holds no speeds: {figures.source}"]
    host = _HostBuilder(where, matrix, figures).host(gpus, lanes)
    return Reading((host,), notes=(*notes, *_contradictions(host, matrix, where)))


# the text


def _parse(text: str, where: str) -> _Matrix:
    lines = [_words(_ANSI.sub("", line)) for line in text.splitlines()[: MAX_LINES + 1]]
    if len(lines) > MAX_LINES:
        raise BadInput(f"{where}: over the limit of {MAX_LINES} lines for a matrix")
    start = next((i for i, words in enumerate(lines) if _is_header(words)), None)
    if start is None:
        raise BadInput(f"{where}: no line of column names (GPU0 GPU1 ...) as `nvidia-smi topo -m` prints")
    matrix = _Matrix(_columns(lines[start]))
    rows = [words for words in lines[start + 1 :] if len(words) > 1 and _is_row(words, matrix.devices)]
    for name, *_ in rows:
        if name not in matrix.devices:
            matrix.devices.append(name)  # a header cut short: rows come in the order of the columns
    if len(matrix.devices) > MAX_DEVICES or len(set(matrix.devices)) < len(matrix.devices):
        raise BadInput(f"{where}: {len(matrix.devices)} columns, over the limit of {MAX_DEVICES} or with a name twice")
    for name, *words in rows:
        _read_row(matrix, name, words, where)
    _require_cells(matrix, where)
    _read_legend(matrix, lines)
    return matrix


def _words(line: str) -> list[str]:
    """Split a line; an empty column between tabs (no CPU affinity, say) stays as N/A; cells run together part."""
    if "\t" in line and _DEVICE.match(line):
        fields = [field.strip() or "N/A" for field in line.split("\t")]
    else:
        fields = line.split()
    apart = (_CELL.findall(field) if _CELLS.fullmatch(field) else field.split() for field in fields)
    return [word for words in apart for word in words]


def _is_header(words: list[str]) -> bool:
    return (
        bool(words) and _GPU.fullmatch(words[0]) is not None and not any(_CELL.fullmatch(word) for word in words[1:3])
    )


def _columns(words: list[str]) -> list[str]:
    tail = next((i for i, word in enumerate(words) if word in ("CPU", "NUMA", "GPU")), len(words))
    return words[:tail]


def _is_row(words: list[str], devices: list[str]) -> bool:
    if words[0] in devices:
        return True
    return _CELL.fullmatch(words[1]) is not None and _DEVICE.fullmatch(words[0]) is not None


def _read_row(matrix: _Matrix, name: str, words: list[str], where: str) -> None:
    devices = matrix.devices
    if (
        len(words) < len(devices)
        and re.fullmatch(r"NV[0-9]?|[A-Z]{1,3}", words[-1])
        and words[-1] not in ("X", *LEVELS)
    ):
        words = words[:-1]  # the line was cut inside a cell
    tail = next((i for i, word in enumerate(words[: len(devices)]) if _AFFINITY.fullmatch(word)), len(devices))
    for column, cell in zip(devices, words[:tail], strict=False):
        if not _CELL.fullmatch(cell) or (cell == "X") != (column == name):
            raise BadInput(
                f"{where}: row {name}, column {column}: {cell!r} is not what joins the two (columns may have shifted)"
            )
        if cell != "X":
            _set_cell(matrix, name, column, SYNONYMS.get(cell, cell), where)
    if len(words[:tail]) < len(devices):
        matrix.notes.append(f"{where}: row {name} is cut after {len(words[:tail])} of {len(devices)} cells")
    numa = [word for word in words[tail + 1 : tail + 2] if word.isdigit()]
    if numa or words[tail : tail + 1] not in ([], ["N/A"]):
        matrix.numa[name] = numa[0] if numa else f"CPUs {words[tail]}"


def _set_cell(matrix: _Matrix, name: str, column: str, cell: str, where: str) -> None:
    """Store a cell; of two that disagree the worse."""
    pair = frozenset((name, column))
    other = matrix.cells.setdefault(pair, cell)
    if other != cell:
        matrix.notes.append(
            f"{where}: {name} - {column} is {cell} in one row and {other} in the other; the worse is taken"
        )
        matrix.cells[pair] = max(cell, other, key=_badness)


def _badness(cell: str) -> tuple[int, int]:
    return (LEVELS.index(cell), 0) if cell in LEVELS else (-1, -int(cell[2:]))


def _require_cells(matrix: _Matrix, where: str) -> None:
    for a, b in combinations(matrix.devices, 2):
        if (_GPU.fullmatch(a) or _GPU.fullmatch(b)) and frozenset((a, b)) not in matrix.cells:
            raise BadInput(
                f"{where}: the cell {a} - {b} is missing from both rows (cut off?); print the whole matrix again"
            )


def _read_legend(matrix: _Matrix, lines: list[list[str]]) -> None:
    for words in lines:
        if len(words) == 2 and words[0].rstrip(":") in matrix.devices and words[0].endswith(":"):
            matrix.names[words[0].rstrip(":")] = words[1][:64]


# the host


def _lanes(matrix: _Matrix, gpus: list[str]) -> dict[str, int]:
    """Return the NVLinks of every GPU: the sum over peers where they are joined directly, else those to the switch."""
    counts = _nvlinks(matrix)
    if not counts:
        return {}
    to_peers = {gpu: [n for pair, n in counts.items() if gpu in pair] for gpu in gpus}
    if _direct(to_peers):
        return {gpu: sum(peers) for gpu, peers in to_peers.items()}
    return {gpu: max(peers, default=0) for gpu, peers in to_peers.items()}


def _nvlinks(matrix: _Matrix) -> dict[frozenset[str], int]:
    return {pair: int(cell[2:]) for pair, cell in matrix.cells.items() if cell.startswith("NV") and int(cell[2:]) > 0}


def _direct(to_peers: dict[str, list[int]]) -> bool:
    """Whether NVLinks go from GPU to GPU: pairs that would need more of them than a GPU has share a switch."""
    return all(
        sum(peers) <= link_speeds.MAX_NVLINKS and (len(peers) == 1 or max(peers, default=0) <= MAX_NVLINKS_TO_EACH)
        for peers in to_peers.values()
    )


class _HostBuilder:
    """Rebuilds the PCIe tree from the levels at which devices are grouped."""

    def __init__(self, where: str, matrix: _Matrix, figures: LinkFigures) -> None:
        self.where = where
        self.matrix = matrix
        self.figures = figures
        self.nodes: list[dict[str, object]] = []
        self.links: list[dict[str, object]] = []
        self.names: dict[str, str] = {}

    def host(self, gpus: list[str], lanes: dict[str, int]) -> Host:
        """Return the host of the matrix."""
        for i, gpu in enumerate(gpus):
            self.names[gpu] = self._node(f"gpu{i}", "gpu", lanes=lanes.get(gpu))
        for i, nic in enumerate(device for device in self.matrix.devices if device not in gpus):
            self.names[nic] = self._node(f"nic{i}", "nic", model=self.matrix.names.get(nic, nic))
        self._nvlink(gpus)
        sockets = self._sockets(gpus)
        cpus = [self._node(f"cpu{i}", "cpu") for i in range(len(sockets))]
        for cpu, devices in zip(cpus, sockets, strict=True):
            self._socket(cpu, devices)
        for a, b in combinations(cpus, 2):
            self._join(a, b, "qpi", self.figures.cpu_gbps)
        return validate(Host, {"nodes": self.nodes, "links": self.links}, self.where)

    def _node(self, name: str, kind: str, **fields: object) -> str:
        self.nodes.append({"name": name, "kind": kind, **fields})
        return name

    def _numbered(self, kind: str) -> str:
        return self._node(f"{kind}{sum(1 for node in self.nodes if node['kind'] == kind)}", kind)

    def _join(self, a: str, b: str, kind: str, gbps: float, lanes: int | None = None) -> None:
        self.links.append({"a": a, "b": b, "kind": kind, "gbps": gbps, "lanes": lanes})

    def _nvlink(self, gpus: list[str]) -> None:
        counts = _nvlinks(self.matrix)
        if _direct({gpu: [n for pair, n in counts.items() if gpu in pair] for gpu in gpus}):
            for a, b in combinations(gpus, 2):
                if lanes := counts.get(frozenset((a, b))):
                    self._join(self.names[a], self.names[b], "nvlink", lanes * self.figures.lane_gbps, lanes)
            return
        islands = _groups(gpus, lambda a, b: frozenset((a, b)) in counts)
        for number, island in enumerate(island for island in islands if len(island) > 1):
            switch = self._node(f"nvswitch{number or ''}", "nvswitch")
            for gpu in island:
                lanes = max(n for pair, n in counts.items() if gpu in pair)
                self._join(self.names[gpu], switch, "nvlink", lanes * self.figures.lane_gbps, lanes)

    def _within(self, level: str) -> Callable[[str, str], bool]:
        near = LEVELS[: LEVELS.index(level) + 1]
        return lambda a, b: self.matrix.cells.get(frozenset((a, b)), "SYS") in near

    def _sockets(self, gpus: list[str]) -> list[list[str]]:
        """Group devices by CPU: joined below SYS, or of the same NUMA node where no cell says SYS."""
        groups: list[list[str]] = []
        for group in _groups(self.matrix.devices, self._within("NODE")):
            home = next((other for other in groups if self._same_numa(group, other)), None)
            if home is None:
                groups.append(group)
            else:
                home += group
        if self.figures.c2c_gbps is None:
            return groups
        own = [
            group for group in groups if set(group) & set(gpus)
        ]  # GPUs on C2C: every cell is SYS, NICs sit on the CPUs
        loose = [group for group in groups if group not in own]
        for i, group in enumerate(loose):
            own[i * len(own) // len(loose)] += group
        return own

    def _same_numa(self, group: list[str], other: list[str]) -> bool:
        """Return whether GPUs print one NUMA node for both groups; what NVLink cells hide, NUMA nodes tell."""
        numa, cells = self.matrix.numa, self.matrix.cells
        same = {numa[device] for device in group if device in numa} & {
            numa[device] for device in other if device in numa
        }
        return bool(same) and not any(cells.get(frozenset((a, b))) == "SYS" for a in group for b in other)

    def _socket(self, cpu: str, devices: list[str]) -> None:
        for bridge in _groups(devices, self._within("PHB")):
            on_c2c = [device for device in bridge if self.figures.c2c_gbps and _GPU.fullmatch(device)]
            for gpu in on_c2c:
                self._join(self.names[gpu], cpu, "c2c", self.figures.c2c_gbps or 0.0)
            rest = [device for device in bridge if device not in on_c2c]
            if rest:
                root = self._numbered("root")
                self._join(root, cpu, "local", link_speeds.BOARD_GBPS)
                self._tree(root, rest)

    def _tree(self, root: str, devices: list[str]) -> None:
        for complex_ in _groups(devices, self._within("PXB")):
            switches = _groups(complex_, self._within("PIX"))
            top = root if len(switches) == 1 else self._below(root)
            for group in switches:
                parent = self._below(top) if len(group) > 1 or len(switches) > 1 else top
                for device in group:
                    self._join(self.names[device], parent, "pcie", self.figures.pcie_gbps)

    def _below(self, parent: str) -> str:
        switch = self._numbered("pci")
        self._join(switch, parent, "pcie", self.figures.pcie_gbps)
        return switch


def _groups(items: list[str], together: Callable[[str, str], bool]) -> list[list[str]]:
    """Return the connected groups of items, in the order of their first."""
    left, groups = list(items), []
    while left:
        group, queue = [], [left.pop(0)]
        while queue:
            item = queue.pop(0)
            group.append(item)
            joined = [other for other in left if together(item, other)]
            left = [other for other in left if other not in joined]
            queue += joined
        groups.append(sorted(group, key=items.index))
    return groups


def _contradictions(host: Host, matrix: _Matrix, where: str) -> list[str]:
    """Compare the tree with the cells it was built from: the cells of a tree nest, and some outputs do not."""
    paths = HostPaths(host)
    nics = [device for device in matrix.devices if not _GPU.fullmatch(device)]
    gpus = [device for device in matrix.devices if _GPU.fullmatch(device)]
    differ = [
        f"{gpu} - {nic} is {cell} but comes out as {paths.affinity[i][j]}"
        for i, gpu in enumerate(gpus)
        for j, nic in enumerate(nics)
        if (cell := matrix.cells[frozenset((gpu, nic))]) != paths.affinity[i][j] and paths.affinity[i][j] != "P2C"
    ]
    return [f"{where}: the cells contradict each other: {differ[0]} (and {len(differ) - 1} more)"] if differ else []
