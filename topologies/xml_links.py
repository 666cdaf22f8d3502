"""The NVLink and xGMI links that the <gpu> elements of a NCCL topology file list."""

from __future__ import annotations

import re
from collections import defaultdict

from topologies import link_speeds
from topologies.errors import BadInput
from topologies.spec import LinkKind
from topologies.xml_document import Element

HIDDEN_SWITCH = "fffffff:ff:ff"
SWITCH_CLASS, CPU_CLASS = "0x068000", "0x068001"
SWITCH = "nvswitch"


class ScaleUpReader:
    """Collects the scale-up links of one host.

    Attributes:
        links: (GPU, GPU or the NVSwitch) to kind, GB/s per direction and number of links.
        notes: what was left out.
    """

    def __init__(self, where: str, lane_gbps: float | None) -> None:
        self.where = where
        self.links: dict[tuple[str, str], tuple[LinkKind, float, int]] = {}
        self.notes: list[str] = []
        self._lane_gbps = lane_gbps

    @property
    def switched(self) -> bool:
        """Whether any GPU is on an NVSwitch."""
        return any(peer == SWITCH for _, peer in self.links)

    def read(self, gpus: dict[str, Element | None]) -> dict[str, int]:
        """Collect the links of GPUs given by PCI address; return the number of links that each lists.

        A link between two GPUs counts as far as both list it: what one alone lists, NCCL sees in one direction only.
        """
        listed: dict[tuple[str, str], int] = defaultdict(int)
        kinds: dict[str, tuple[LinkKind, float]] = {}
        total: dict[str, int] = {}
        for gpu, element in gpus.items():
            found = [] if element is None else [("nvlink", link) for link in element.all("nvlink")]
            found += [] if element is None else [("xgmi", link) for link in element.all("xgmi")]
            if element is None:
                continue
            total[gpu] = 0
            for tag, link in found:
                count = self._count(link)
                peer = self._peer(gpu, link, gpus)
                total[gpu] += count
                kinds[gpu] = self._kind(tag, element)
                if peer is not None and count:
                    listed[gpu, peer] += count
        self._pair_up(listed, kinds)
        return total if any(total.values()) else {}

    def _pair_up(self, listed: dict[tuple[str, str], int], kinds: dict[str, tuple[LinkKind, float]]) -> None:
        for (gpu, peer), count in listed.items():
            if (peer, gpu) in self.links:
                continue
            kind, gbps = kinds[gpu]
            back = count if peer == SWITCH else listed.get((peer, gpu), 0)
            if back != count:
                self.notes.append(f"{self.where}: {gpu} lists {count} links to {peer}, which lists {back} back")
            both = min(count, back)
            if both:
                self.links[gpu, peer] = (kind, both * gbps, both)

    def _peer(self, gpu: str, link: Element, gpus: dict[str, Element | None]) -> str | None:
        """Return the other end of a link: a GPU of the host, the NVSwitch, or None where the link leads nowhere."""
        target = (link.get("target") or "").lower()
        tclass = (link.get("tclass") or "").lower()
        if not target:
            raise BadInput(f"{self.where}: a <{link.tag}> of {gpu} has no target")
        if target == gpu:
            self.notes.append(
                f"{self.where}: the {link.tag} of GPU {gpu} targets that GPU itself and joins it to no other"
            )
            return None
        if target in gpus:
            return target
        if target.startswith(HIDDEN_SWITCH) or tclass.startswith(SWITCH_CLASS):
            return SWITCH
        what = "a CPU" if tclass.startswith(CPU_CLASS) else f"{target}, which is no GPU of the host"
        self.notes.append(f"{self.where}: a link of {gpu} leads to {what}; ignored")
        return None

    def _kind(self, tag: str, gpu: Element) -> tuple[LinkKind, float]:
        """Return the kind of a GPU's links and the GB/s of one."""
        if tag == "xgmi":
            return "xgmi", self._lane_gbps or link_speeds.xgmi_gbps(gpu.get("gcn") or "")
        text = gpu.get("sm") or "80"
        if not re.fullmatch(r"[0-9]{1,4}", text):
            raise BadInput(f"{self.where}: <gpu> sm={text!r} is not a compute capability such as 90")
        return "nvlink", self._lane_gbps or link_speeds.nvlink_gbps(int(text))

    def _count(self, link: Element) -> int:
        text = link.get("count") or ""
        if not re.fullmatch(r"[0-9]{1,3}", text):
            raise BadInput(f"{self.where}: <{link.tag}> count={link.get('count')!r} is not a number of links")
        return int(text)
