"""NCCL's topology XML (NCCL_TOPO_DUMP_FILE, NCCL_TOPO_FILE) and RCCL's dialect of it, to hosts.

Full dumps list GPUs, NVLinks and network ports; static files of clouds only the PCI tree, where GPUs and NICs are known
by their PCI class; dumps fused over NVLink hosts (MNNVL) hold several hosts. As in NCCL, all NVSwitches of a host are
one ideal crossbar, hidden ones (fffffff:ff:ff.0) included. Format: NVIDIA/nccl src/graph/xml.cc, ROCm/rccl
src/graph/xml.cc.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from typing import get_args

from topologies import link_speeds
from topologies.cluster_file import validate
from topologies.errors import BadInput
from topologies.reading import Reading, gpu_by_pci_id
from topologies.spec import Host, LinkKind, NodeKind
from topologies.xml_document import Element, parse_xml
from topologies.xml_links import SWITCH, ScaleUpReader

MAX_BYTES = 8 * 2**20
GPU_VENDORS = ("0x10de", "0x1002", "0xffff", "0x0000")  # NVIDIA, AMD, and what static files put for any
GPU_CLASSES = ("0x03", "0x12")
NIC_CLASSES = ("0x0200", "0x0207")


def is_topology_xml(content: bytes) -> bool:
    """Return whether a file looks like XML at all."""
    return content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<", b"\xff\xfe", b"\xfe\xff"))


def read_nccl_xml(content: bytes, where: str, *, lane_gbps: float | None = None) -> Reading:
    """Read the hosts of a topology file.

    Args:
        content: the file.
        where: its name, for errors and notes.
        lane_gbps: GB/s of one NVLink or xGMI link, instead of NCCL's constant for the GPU.
    """
    root = parse_xml(content, where)
    if root.tag == "graphs":
        raise BadInput(f"{where}: a NCCL graph file (NCCL_GRAPH_DUMP_FILE); the topology is in NCCL_TOPO_DUMP_FILE")
    if root.tag != "system":
        raise BadInput(f"{where}: the root element is <{root.tag}>, not <system> as in a NCCL topology file")
    by_host: dict[str, list[Element]] = {}
    for cpu in root.all("cpu"):
        by_host.setdefault(cpu.get("host_hash") or "", []).append(cpu)
    if not by_host:
        raise BadInput(f"{where}: <system> holds no <cpu>")
    readers = [_HostReader(where, lane_gbps) for _ in by_host]
    hosts = tuple(reader.host(cpus) for reader, cpus in zip(readers, by_host.values(), strict=True))
    joined = len(hosts) > 1 and all(host.of_kind("nvswitch") for host in hosts)
    notes = [note for reader in readers for note in reader.notes]
    if joined:
        notes.append(f"{where}: {len(hosts)} hosts fused by NVLink (MNNVL): one scale-up domain")
    return Reading(hosts, joined, tuple(dict.fromkeys(notes)))


@dataclass
class _Part:
    """A part of the host as read; its key (a PCI address, mostly) becomes a name once all parts are known.

    Attributes:
        kind: kind of `HostNode`.
        model, busid, gbps: fields of `HostNode`.
        order: where it stands among its kind.
        element: the <gpu> element of a GPU, which lists its links.
    """

    kind: NodeKind
    model: str | None = None
    busid: str | None = None
    gbps: float | None = None
    order: tuple[int, str] = (0, "")
    element: Element | None = None


class _HostReader:
    """Reads the <cpu> elements of one host into parts and links."""

    def __init__(self, where: str, lane_gbps: float | None) -> None:
        self.where = where
        self.notes: list[str] = []
        self._lane_gbps = lane_gbps
        self._parts: dict[str, _Part] = {}
        self._links: dict[frozenset[str], tuple[LinkKind, float, float, int | None]] = {}
        self._busids: set[str] = set()
        self._pci_cross: list[tuple[str, str]] = []
        self._cpu_gbps: list[float] = []

    def host(self, cpus: list[Element]) -> Host:
        """Return the host that some <cpu> elements describe."""
        for cpu in cpus:
            self._read_cpu(cpu)
        self._join_cpus()
        self._join_bridges()
        if not any(part.kind == "gpu" for part in self._parts.values()):
            raise BadInput(f"{self.where}: no GPU: no <gpu>, and no PCI function of class 0x03 or 0x12")
        lanes = self._scale_up()
        self._prune()
        return self._assemble(lanes)

    # parts

    def _add(self, key: str, part: _Part) -> str:
        if key in self._parts:
            raise BadInput(f"{self.where}: busid {key!r} is given twice in one host")
        self._parts[key] = part
        return key

    def _join(
        self, a: str, b: str, kind: LinkKind, gbps: float, *, latency_us: float = 0.0, lanes: int | None = None
    ) -> None:
        self._links.setdefault(frozenset((a, b)), (kind, gbps, latency_us, lanes))

    def _read_cpu(self, cpu: Element) -> None:
        number = sum(1 for part in self._parts.values() if part.kind == "cpu")
        model = " ".join(filter(None, (cpu.get("vendor"), cpu.get("arch")))) or None
        key = self._add(f"cpu {number}", _Part("cpu", model=model, order=(number, "")))
        family = self._integer(cpu, "familyid", default=0, least=-1)
        self._cpu_gbps.append(
            link_speeds.cpu_link_gbps(
                cpu.get("arch") or "x86_64",
                cpu.get("vendor") or "",
                family,
                self._integer(cpu, "modelid", default=0, least=-1),
            )
        )
        self._read_children(cpu, key, key)

    def _read_children(self, element: Element, key: str, cpu: str) -> None:
        for child in element.children:
            if child.tag == "pci":
                self._read_pci(child, key, cpu)
            elif child.tag == "nic":
                for net in child.all("net"):
                    port, latency_us = self._read_net(net, None), self._latency(net)
                    self._join(port, key, "local", link_speeds.BOARD_GBPS, latency_us=latency_us)
            elif child.tag == "pcilink":
                self._pci_cross.append((key, self._target(child)))

    def _read_pci(self, pci: Element, parent: str, cpu: str) -> None:
        busid = (pci.get("busid") or "").lower()
        if not busid or busid in self._busids:
            raise BadInput(
                f"{self.where}: " + (f"busid {busid!r} is given twice in one host" if busid else "a <pci> has no busid")
            )
        self._busids.add(busid)
        gpus, nets = pci.all("gpu"), [net for nic in pci.all("nic") for net in nic.all("net")]
        gbps, lanes = self._pci_speed(pci)
        ends = [self._read_gpu(pci, gpu, busid if i == 0 else f"{busid} #{i}") for i, gpu in enumerate(gpus)]
        ends += [self._read_net(net, busid) for net in nets]
        if not ends:
            ends = self._by_class(pci, busid)
        if len(ends) == 1:
            latency_us = max(map(self._latency, nets), default=0.0)
            self._join(ends[0], parent, "pcie", gbps, latency_us=latency_us, lanes=lanes)
            inner = ends[0]
        else:
            inner = self._add(f"{busid} card" if ends else busid, _Part("card" if ends else "pci", busid=busid))
            self._join(inner, parent, "pcie", gbps, lanes=lanes)
            for end in ends:
                self._join(end, inner, "local", link_speeds.BOARD_GBPS)
        self._parts[inner].busid = busid
        for gpu, end in zip(gpus, ends, strict=False):
            self._join_c2c(gpu, end, parent, cpu)
        self._read_children(Element("pci", {}, [child for child in pci.children if child.tag != "nic"]), inner, cpu)

    def _by_class(self, pci: Element, busid: str) -> list[str]:
        """Recognise a PCI function that lists nothing inside by its class, as static files need."""
        pci_class, vendor = (pci.get("class") or "").lower(), (pci.get("vendor") or "0x0000").lower()
        if pci_class.startswith(GPU_CLASSES) and vendor in GPU_VENDORS:
            return [self._read_gpu(pci, None, busid)]
        if pci_class.startswith(NIC_CLASSES) or pci.all("nic"):
            return [self._add(busid, _Part("nic", busid=busid, order=(0, busid)))]
        return []

    def _read_gpu(self, pci: Element, gpu: Element | None, key: str) -> str:
        device = pci.get("device")
        model = gpu_by_pci_id(device)
        if gpu is None:
            self.notes.append(f"{self.where}: static file: GPUs recognised by their PCI class")
        if model is None and device is not None:
            self.notes.append(f"{self.where}: device id {device} is no GPU of the catalog")
        order = -1 if gpu is None else self._integer(gpu, "dev", default=-1, least=-1)
        return self._add(key, _Part("gpu", model, order=(order, key), element=gpu))

    def _read_net(self, net: Element, busid: str | None) -> str:
        """Add a network port; one that hangs below several CPUs is the same port each time."""
        name, dev = net.get("name"), self._integer(net, "dev", default=-1, least=-1)
        key = f"net {name} {dev} {net.get('guid')} {net.get('port')}"
        gbps = link_speeds.net_gbps(self._integer(net, "speed", default=0, least=-1))
        if key in self._parts and busid is None and self._parts[key].busid is None:
            return key
        if key in self._parts:
            raise BadInput(f"{self.where}: network port {name!r} (dev {dev}) is given twice in one host")
        return self._add(key, _Part("nic", name, busid, gbps, order=(dev, busid or name or "")))

    # links

    def _pci_speed(self, pci: Element) -> tuple[float, int | None]:
        """Return GB/s and width; the width is None when the file does not state the speed and NCCL would assume it."""
        width = self._integer(pci, "link_width", default=0, least=-1)
        stated = re.match(r"([0-9]+(?:\.[0-9]+)?)\s*GT/s", pci.get("link_speed") or "")
        gts = float(stated[1]) if stated else 0.0
        known = link_speeds.pcie_speed_known(gts) and width > 0
        gbps = link_speeds.pcie_gbps(gts, width if width > 0 else link_speeds.PCIE_DEFAULT_WIDTH)
        return gbps, width if known else None

    def _join_c2c(self, gpu: Element, key: str, parent: str, cpu: str) -> None:
        for c2c in gpu.all("c2c"):
            gbps = self._integer(c2c, "bw", default=0) * self._integer(c2c, "count", default=1) / 1000
            if gbps > 0:
                if parent == cpu:  # C2C takes the place of the PCIe link to the same CPU
                    self._links.pop(frozenset((key, cpu)), None)
                self._join(key, cpu, "c2c", gbps, lanes=self._integer(c2c, "count", default=1))

    def _join_cpus(self) -> None:
        cpus = [key for key, part in self._parts.items() if part.kind == "cpu"]
        for (a, key_a), (b, key_b) in combinations(enumerate(cpus), 2):
            self._join(key_a, key_b, "qpi", min(self._cpu_gbps[a], self._cpu_gbps[b]))

    def _join_bridges(self) -> None:
        """Join what <pcilink> joins: PCIe switches side by side."""
        for key, target in self._pci_cross:
            if target == key:
                raise BadInput(f"{self.where}: a <pcilink> of {key!r} leads to itself")
            if target in self._parts:
                self._join(key, target, "pcie", link_speeds.pcie_gbps(16.0, 16))
            else:
                self.notes.append(f"{self.where}: <pcilink> to {target!r}, which is not in the file; ignored")

    def _scale_up(self) -> dict[str, int]:
        """Join GPUs by what their elements list; return the links counted on each."""
        found = ScaleUpReader(self.where, self._lane_gbps)
        elements = {key: part.element for key, part in self._parts.items() if part.kind == "gpu"}
        lanes = found.read(elements)
        if found.switched:
            self._add(SWITCH, _Part("nvswitch"))
        for (a, b), (kind, gbps, count) in found.links.items():
            self._join(a, b, kind, gbps, lanes=count)
        self.notes += found.notes
        return lanes

    # the host

    def _prune(self) -> None:
        """Drop bridges that lead to no device."""
        while True:
            degree = Counter(end for pair in self._links for end in pair)
            idle = {key for key, part in self._parts.items() if part.kind == "pci" and degree[key] < 2}
            if not idle:
                return
            self._parts = {key: part for key, part in self._parts.items() if key not in idle}
            self._links = {pair: link for pair, link in self._links.items() if not pair & idle}

    def _assemble(self, lanes: dict[str, int]) -> Host:
        names: dict[str, str] = {}
        nodes: list[dict[str, object]] = []
        for kind in get_args(NodeKind):
            keys = [key for key, part in self._parts.items() if part.kind == kind]
            for number, key in enumerate(sorted(keys, key=lambda key: self._parts[key].order)):
                part = self._parts[key]
                names[key] = SWITCH if kind == "nvswitch" else f"{kind}{number}"
                node = {"name": names[key], "kind": kind, "model": part.model, "busid": part.busid, "gbps": part.gbps}
                nodes.append(node | {"lanes": lanes.get(key)})
        place = {str(node["name"]): i for i, node in enumerate(nodes)}
        links = []
        for pair, (kind, gbps, latency_us, count) in self._links.items():
            a, b = sorted((names[end] for end in pair), key=lambda name: place[name])
            links.append({"a": a, "b": b, "kind": kind, "gbps": gbps, "latency_us": latency_us, "lanes": count})
        links.sort(key=lambda link: (place[str(link["a"])], place[str(link["b"])]))
        return validate(Host, {"nodes": nodes, "links": links}, self.where)

    # attributes

    def _integer(self, element: Element, name: str, *, default: int, least: int = 0) -> int:
        text = element.get(name)
        if text is None:
            return default
        if not re.fullmatch(r"-?[0-9]{1,12}", text) or int(text) < least:
            raise BadInput(f"{self.where}: <{element.tag}> {name}={text!r} is not a whole number from {least}")
        return int(text)

    def _latency(self, net: Element) -> float:
        text = net.get("latency") or "0"
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
            raise BadInput(f"{self.where}: <net> latency={text!r} is not a number of microseconds")
        return float(text)

    def _target(self, element: Element) -> str:
        target = element.get("target")
        if target is None:
            raise BadInput(f"{self.where}: a <{element.tag}> has no target")
        return target.lower()
