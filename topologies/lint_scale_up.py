"""Checks on NVLink and xGMI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from topologies.affinity import HostPaths
from topologies.catalog import System
from topologies.repair import Defect, names
from topologies.spec import SCALE_UP, Host, HostLink


def _lanes(paths: HostPaths) -> list[int]:
    """Return the links of every GPU: as counted on it, else as its cables bundle."""
    nodes = [paths.host.nodes[gpu] for gpu in paths.gpus]
    cables = Counter[str]()
    for link in paths.host.links:
        if link.kind in SCALE_UP:
            cables[link.a] += link.lanes or 1
            cables[link.b] += link.lanes or 1
    return [cables[node.name] if node.lanes is None else node.lanes for node in nodes]


def _peers(paths: HostPaths, gpu: int) -> dict[str, HostLink]:
    name = paths.host.nodes[paths.gpus[gpu]].name
    return {
        link.b if link.a == name else link.a: link
        for link in paths.host.links
        if link.kind in SCALE_UP and name in (link.a, link.b)
    }


def _repaired(paths: HostPaths, gpus: list[int]) -> Host:
    """Return the host in which some GPUs are joined as their best sibling is: to its switch, or to every GPU."""
    model = max(range(len(paths.gpus)), key=lambda gpu: sum(link.gbps for link in _peers(paths, gpu).values()))
    template = _peers(paths, model)
    switch = next((peer for peer in template if _is_switch(paths, peer)), None)
    best = max(template.values(), key=lambda link: link.gbps)
    cables = {frozenset((link.a, link.b)): link for link in paths.host.links}
    for gpu in gpus:
        name = paths.host.nodes[paths.gpus[gpu]].name
        others = [paths.host.nodes[other].name for other in paths.gpus if paths.host.nodes[other].name != name]
        for peer in [switch] if switch else others:
            pair = frozenset((name, peer))
            if pair not in cables or cables[pair].gbps < best.gbps:
                cables[pair] = best.model_copy(update={"a": name, "b": peer})
    return paths.host.model_copy(update={"links": tuple(cables.values())})


def _is_switch(paths: HostPaths, name: str) -> bool:
    return any(node.name == name and node.kind == "nvswitch" for node in paths.host.nodes)


def missing_links(paths: HostPaths, system: System | None) -> Iterator[Defect]:  # noqa: ARG001 - the signature of a check
    """Find GPUs without NVLink whose siblings have it: NCCL falls back to few channels for all of them."""
    lanes = _lanes(paths)
    bare = [gpu for gpu, count in enumerate(lanes) if count == 0]
    if not bare or len(bare) == len(lanes):
        return
    parts = tuple(paths.host.nodes[paths.gpus[gpu]].name for gpu in bare)
    yield Defect(
        "gpu-without-nvlink",
        parts,
        f"{names(parts)} without NVLink or xGMI; siblings have {max(lanes)} links",
        "check nvidia-smi nvlink --status, the fabric manager and the board; reset or swap the GPU",
        _repaired(paths, bare),
        scale_out=False,
    )


def uneven_links(paths: HostPaths, system: System | None) -> Iterator[Defect]:  # noqa: ARG001 - the signature of a check
    """Find GPUs with fewer links than their siblings: links that are down."""
    lanes = _lanes(paths)
    short = [gpu for gpu, count in enumerate(lanes) if 0 < count < max(lanes)]
    if not short:
        return
    parts = tuple(paths.host.nodes[paths.gpus[gpu]].name for gpu in short)
    counts = ", ".join(f"{paths.host.nodes[paths.gpus[gpu]].name} has {lanes[gpu]}" for gpu in short[:8])
    yield Defect(
        "uneven-nvlink",
        parts,
        f"uneven links: {counts}; siblings have {max(lanes)}",
        "check nvidia-smi nvlink --status for links that are down; reseat or reset, then dump the topology again",
        _repaired(paths, short),
        scale_out=False,
    )


def below_class(paths: HostPaths, system: System | None) -> Iterator[Defect]:
    """Find hosts whose GPUs all have fewer links than the system that the user names."""
    if system is None or system.scale_up.layout != "switch":
        return
    lanes, wanted = _lanes(paths), system.scale_up.lanes
    if (
        not lanes
        or min(lanes) == 0
        or max(lanes) >= wanted
        or not any(_is_switch(paths, peer) for peer in _peers(paths, 0))
    ):
        return
    faster = {i: link.gbps * wanted / max(lanes) for i, link in enumerate(paths.host.links) if link.kind in SCALE_UP}
    links = tuple(
        link.model_copy(update={"gbps": faster[i]}) if i in faster else link for i, link in enumerate(paths.host.links)
    )
    parts = tuple(paths.host.nodes[gpu].name for gpu in paths.gpus)
    yield Defect(
        "nvlink-below-class",
        parts,
        f"GPUs have {max(lanes)} links; the system named has {wanted}",
        "check nvidia-smi nvlink --status, or name the system that this is",
        paths.host.model_copy(update={"links": links}),
        scale_out=False,
    )
