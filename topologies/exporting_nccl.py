"""A host as NCCL's topology XML (NCCL_TOPO_FILE), the format that `topologies.nccl_xml` reads.

Format: NVIDIA/nccl src/graph/xml.cc. What a host does not say is left to NCCL, which asks the machine: CPU affinity,
GPUs' compute capability where the model is not known. NCCL takes link speeds from its own constants, so that of a link
is written as the PCIe generation and width, or the number of NVLinks, that come nearest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from xml.sax.saxutils import quoteattr

from topologies import link_speeds
from topologies.catalog import gpu_entries
from topologies.errors import BadInput
from topologies.spec import SCALE_UP, Host, HostLink, HostNode

SWITCH_BUSID, SWITCH_CLASS = "fffffff:ff:ff.0", "0x068000"
CLASSES = {"gpu": "0x030200", "nic": "0x020000", "card": "0x020000", "pci": "0x060400"}
COMPUTE_CAPABILITY = (("gb3", 103), ("b3", 103), ("gb2", 100), ("b2", 100), ("h", 90), ("a100", 80), ("v100", 70))
GCN = (("mi355", "gfx950"), ("mi35", "gfx950"), ("mi3", "gfx942"), ("mi2", "gfx90a"))
"""First letters of a catalog GPU's key, and what NCCL or RCCL call its architecture."""
GENERATIONS = (2.5, 5.0, 8.0, 16.0, 32.0, 64.0)  # GT/s
# GB/s between two CPUs -> attributes of a CPU of which NCCL thinks so
CPUS = (
    (40.0, 'arch="x86_64" vendor="GenuineIntel" familyid="6" modelid="207"'),
    (22.0, 'arch="x86_64" vendor="GenuineIntel" familyid="6" modelid="143"'),
    (16.0, 'arch="x86_64" vendor="AuthenticAMD" familyid="175" modelid="1"'),
    (10.0, 'arch="x86_64" vendor="GenuineIntel" familyid="6" modelid="85"'),
    (6.0, 'arch="arm64" vendor="" familyid="0" modelid="0"'),
)


def nccl_xml(host: Host, where: str) -> str:
    """Return the topology file of a host; raise BadInput, naming `where`, for one that no PCI tree can show."""
    return _Writer(host, where).document()


@dataclass
class _Writer:
    """Walks the PCI tree of a host from its CPUs."""

    host: Host
    where: str
    _lines: list[str] = field(default_factory=list)
    _links: dict[str, list[tuple[str, HostLink]]] = field(default_factory=lambda: defaultdict(list))
    _busids: dict[str, str] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    def document(self) -> str:
        for link in self.host.links:
            self._links[link.a].append((link.b, link))
            self._links[link.b].append((link.a, link))
        self._name_buses()
        cpus = [node for node in self.host.nodes if node.kind == "cpu"]
        if not cpus:
            raise BadInput(f"{self.where}: the host has no CPU, below which a NCCL file hangs everything")
        speed = max((link.gbps for link in self.host.links if link.kind == "qpi"), default=CPUS[0][0])
        look = min(CPUS, key=lambda entry: abs(entry[0] - speed))[1]
        for number, cpu in enumerate(cpus):
            self._put(1, f'<cpu host_hash="0x1" numaid="{number}" {look}>')
            self._children(cpu, 2)
            self._put(1, "</cpu>")
        lost = [n.name for n in self.host.nodes if n.kind in ("gpu", "nic") and n.name not in self._seen]
        if lost:
            raise BadInput(f"{self.where}: {lost[0]} hangs below no CPU; a NCCL file cannot show it")
        return "\n".join(['<system version="1">', *self._lines, "</system>"]) + "\n"

    def _name_buses(self) -> None:
        """Give every part a PCI address, its own where it has one that no other has."""
        free = (f"{domain:04x}:{bus:02x}:00.0" for domain in range(0x1000, 0x2000) for bus in range(256))
        taken: set[str] = set()
        for node in self.host.nodes:
            own = node.busid if node.busid is not None and node.busid not in taken else next(free)
            taken.add(own)
            self._busids[node.name] = own

    def _put(self, depth: int, text: str) -> None:
        self._lines.append("  " * depth + text)

    def _children(self, parent: HostNode, depth: int) -> None:
        """Write what hangs below a node by PCIe, board wiring or C2C."""
        self._seen.add(parent.name)
        nodes = {node.name: node for node in self.host.nodes}
        for name, link in self._links[parent.name]:
            node = nodes[name]
            shared = node.kind == "nic" and link.kind == "local"  # a port without a PCI address may hang below each CPU
            if link.kind not in ("pcie", "local", "c2c") or (name in self._seen and not shared) or node.kind == "cpu":
                continue
            if node.kind == "root":  # NCCL knows no host bridges: what hangs below one hangs below its CPU
                self._children(node, depth)
            elif shared:
                self._nic(node, link, depth)
            else:
                self._pci(node, link, depth)

    def _pci(self, node: HostNode, link: HostLink, depth: int) -> None:
        end = node
        if node.kind == "card":
            inner = [n for n in self.host.nodes if n.name in {peer for peer, _ in self._links[node.name]}]
            end = next((n for n in inner if n.kind == "gpu"), node)
        look = f'class="{CLASSES[end.kind]}"{_device(end)}{_pcie(link)}'
        self._put(depth, f'<pci busid="{self._busids[node.name]}" {look}>')
        if node.kind == "gpu":
            self._gpu(node, depth + 1)
        elif node.kind == "nic" and node.gbps is not None:  # without a speed NCCL asks the port itself
            self._nic(node, link, depth + 1)
        self._seen.add(node.name)
        self._children(node, depth + 1)
        self._put(depth, "</pci>")

    def _nic(self, node: HostNode, link: HostLink, depth: int) -> None:
        self._seen.add(node.name)
        dev = self._order("nic").index(node.name)
        speed = "" if node.gbps is None else f' speed="{round(node.gbps * 8000)}"'
        name = node.model or node.name
        latency = f' latency="{link.latency_us:g}"' if link.latency_us else ""
        net = f'<net name={quoteattr(name)} dev="{dev}"{speed} port="1"{latency} guid="{dev + 1:#x}" gdr="1"/>'
        self._put(depth, f"<nic>{net}</nic>")

    def _gpu(self, node: HostNode, depth: int) -> None:
        self._seen.add(node.name)
        dev = self._order("gpu").index(node.name)
        model = node.model or ""
        capability = next((value for start, value in COMPUTE_CAPABILITY if model.startswith(start)), None)
        gcn = next((value for start, value in GCN if model.startswith(start)), None)
        sm = "" if capability is None else f' sm="{capability}"'
        chip = "" if gcn is None else f' gcn="{gcn}"'
        one_gbps = {"nvlink": link_speeds.nvlink_gbps(capability or 80), "xgmi": link_speeds.xgmi_gbps(gcn or "")}
        self._put(depth, f'<gpu dev="{dev}"{sm}{chip} rank="{dev}" gdr="1">')
        for peer, link in self._links[node.name]:
            if link.kind in SCALE_UP:
                lanes = link.lanes or min(max(1, round(link.gbps / one_gbps[link.kind])), link_speeds.MAX_NVLINKS)
                switch = next(n.kind for n in self.host.nodes if n.name == peer) == "nvswitch"
                target, tclass = (SWITCH_BUSID, SWITCH_CLASS) if switch else (self._busids[peer], CLASSES["gpu"])
                self._put(depth + 1, f'<{link.kind} target="{target}" count="{lanes}" tclass="{tclass}"/>')
            elif link.kind == "c2c":
                lanes = link.lanes or 1
                self._put(depth + 1, f'<c2c bw="{round(link.gbps * 1000 / lanes)}" count="{lanes}"/>')
        self._put(depth, "</gpu>")

    def _order(self, kind: str) -> list[str]:
        return [node.name for node in self.host.nodes if node.kind == kind]


def _device(node: HostNode) -> str:
    """Return the PCI ids of a GPU that the catalog knows."""
    ids = gpu_entries()[node.model].pci_ids if node.kind == "gpu" and node.model in gpu_entries() else ()
    vendor = "0x1002" if (node.model or "").startswith("mi") else "0x10de"
    return f' vendor="{vendor}" device="{ids[0]}"' if ids else ""


def _pcie(link: HostLink) -> str:
    """Return the attributes of a PCIe link whose speed is nearest, as NCCL or else as the standard counts it."""
    assumed = link_speeds.pcie_gbps(link_speeds.PCIE_DEFAULT_GTS, link_speeds.PCIE_DEFAULT_WIDTH)
    if link.kind != "pcie" or (link.lanes is None and link.gbps == assumed):
        return ""
    width = link.lanes or link_speeds.PCIE_DEFAULT_WIDTH
    exact = [gts for gts in GENERATIONS if abs(link_speeds.pcie_gbps(gts, width) - link.gbps) < 1e-6]
    gts = exact[0] if exact else _nearest(width, link.gbps)
    return f' link_speed="{gts:.1f} GT/s PCIe" link_width="{width}"'


def _nearest(width: int, gbps: float, generations: Iterable[float] = GENERATIONS) -> float:
    return min(generations, key=lambda gts: abs(gts * width / 8 - gbps))
