"""Checks on NICs and on the PCIe links between them and the GPUs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from topologies.affinity import NEAR, HostPaths
from topologies.catalog import System
from topologies.repair import Defect, names, with_nic_speeds, with_own_nics, with_speeds
from topologies.spec import Host, HostLink, NodeKind

TOLERANCE = 0.9  # NCCL takes PCIe at 80 % of signalling: a 400 Gb/s NIC on PCIe 5 x16 shows as 48 of 50 GB/s


def _gpu_names(paths: HostPaths, gpus: list[int]) -> tuple[str, ...]:
    return tuple(paths.host.nodes[paths.gpus[gpu]].name for gpu in gpus)


def _typical_nic(paths: HostPaths) -> float | None:
    """Return the speed of the fastest NIC that a GPU uses, GB/s; None where the file states none."""
    used = [paths.host.nodes[paths.nics[nic]].gbps for rail in paths.rails for nic in rail.nics]
    return max((gbps for gbps in used if gbps is not None), default=None)


def no_near_nic(paths: HostPaths, system: System | None) -> Iterator[Defect]:  # noqa: ARG001 - the signature of a check
    """Find GPUs that reach no NIC without crossing a CPU while their siblings do."""
    nearest = [paths.nearest(gpu)[0] for gpu in range(len(paths.gpus))]
    far = [gpu for gpu, kind in enumerate(nearest) if kind not in NEAR]
    if not far or len(far) == len(nearest):
        return
    parts = _gpu_names(paths, far)
    kinds = "/".join(sorted({nearest[gpu] for gpu in far}))
    near = "/".join(sorted(set(nearest) & set(NEAR)))
    yield Defect(
        "gpu-without-near-nic",
        parts,
        f"{names(parts)}: no near NIC (best path {kinds}; siblings {near})",
        "put a NIC under the PCIe switch of each; until then they send through a neighbour on NVLink (PXN)",
        with_own_nics(paths.host, parts, _typical_nic(paths)),
        scale_out=True,
    )


def wrong_numa_side(paths: HostPaths, system: System | None) -> Iterator[Defect]:  # noqa: ARG001 - the signature of a check
    """Find hosts without near NICs where NICs crowd on the CPU of some GPUs and others have none on theirs."""
    nearest = [paths.nearest(gpu) for gpu in range(len(paths.gpus))]
    far = [gpu for gpu, (kind, _) in enumerate(nearest) if kind == "SYS"]
    local = {nic for kind, nics in nearest if kind in ("PHB", "NODE") for nic in nics}
    if not far or len(local) < 2 or any(kind in NEAR for kind, _ in nearest):
        return
    parts = _gpu_names(paths, far)
    crowded = tuple(paths.host.nodes[paths.nics[nic]].name for nic in sorted(local))
    moved = sorted(local)[len(local) // 2 :]
    yield Defect(
        "nic-wrong-numa",
        (*parts, *crowded),
        f"{names(crowded)} sit on the other NUMA side than {names(parts)}",
        "move half of the NICs to slots of the other CPU",
        _moved(paths, moved, far[0]),
        scale_out=True,
    )


def _moved(paths: HostPaths, nics: list[int], gpu: int) -> Host:
    """Return the host with NICs moved to the CPU of a GPU."""
    names_moved = {paths.host.nodes[paths.nics[nic]].name for nic in nics}
    index = paths.host.index()
    cpus = [node for node in range(len(paths.host.nodes)) if paths.host.nodes[node].kind == "cpu"]
    home = min(cpus, key=lambda node: len(paths.pci_path(gpu, node) or range(99)))
    links = []
    for link in paths.host.links:
        end = link.a if link.a in names_moved else link.b if link.b in names_moved else None
        other = None if end is None else (link.b if end == link.a else link.a)
        if end is None or other is None or paths.host.nodes[index[other]].kind == "nvswitch":
            links.append(link)
        else:
            links.append(link.model_copy(update={"a": end, "b": paths.host.nodes[home].name}))
    return paths.host.model_copy(update={"links": tuple(links)})


def uneven_sharing(paths: HostPaths, system: System | None) -> Iterator[Defect]:  # noqa: ARG001 - the signature of a check
    """Find GPUs that share NICs while siblings have their own."""
    share = {
        gpu: len(rail.nics) / len(rail.owners)
        for rail in paths.rails
        for gpu in rail.owners
        if paths.nearest(gpu)[0] in NEAR
    }
    poor = sorted(gpu for gpu, part in share.items() if part < min(1.0, max(share.values())))
    if not poor:
        return
    parts = _gpu_names(paths, poor)
    yield Defect(
        "shared-nic",
        parts,
        f"{names(parts)} share NICs ({min(share.values()):.2g} of one each); siblings have their own",
        "give each a NIC under its PCIe switch, or spread the GPUs over the NICs",
        with_own_nics(paths.host, parts[1:], _typical_nic(paths)),
        scale_out=True,
    )


def slow_nic(paths: HostPaths, system: System | None) -> Iterator[Defect]:
    """Find NICs that GPUs use and that run below their siblings, or below the system that the user names."""
    typical = _typical_nic(paths)
    if typical is None:
        return
    per_gpu = 0.0 if system is None else system.nics.gbps
    wanted = max(typical, per_gpu) if system is not None and len(paths.nics) <= len(paths.gpus) else typical
    used = [paths.nics[nic] for rail in paths.rails for nic in rail.nics]
    slow = [node for node in used if (paths.host.nodes[node].gbps or wanted) < TOLERANCE * wanted]
    if not slow:
        return
    parts = tuple(paths.host.nodes[node].name for node in slow)
    found = "/".join(sorted({f"{paths.host.nodes[node].gbps:g}" for node in slow}))
    yield Defect(
        "slow-nic",
        parts,
        f"{names(parts)} at {found} GB/s, below {wanted:g} GB/s",
        "check the port's rate (ibstat, ethtool), its cable and the switch port",
        with_nic_speeds(paths.host, slow, wanted),
        scale_out=True,
    )


def fewer_than_class(paths: HostPaths, system: System | None) -> Iterator[Defect]:
    """Find hosts with fewer NICs for their GPUs than the system that the user names."""
    if system is None or not paths.rails:
        return
    used = sum(len(rail.nics) for rail in paths.rails)
    wanted = system.nics.per_host * len(paths.gpus) // system.gpus_per_host
    gbps = _typical_nic(paths)
    have = used * (gbps or system.nics.gbps)
    if have >= TOLERANCE * wanted * system.nics.gbps or used >= wanted:
        return
    sharing = [gpu for rail in paths.rails for gpu in rail.owners[1:]]
    yield Defect(
        "fewer-nics",
        _gpu_names(paths, sharing),
        f"{used} NICs for {len(paths.gpus)} GPUs; the system named has {wanted}",
        "look for NICs that are down or not passed through, or name the system that this is",
        with_own_nics(paths.host, _gpu_names(paths, sharing), gbps),
        scale_out=True,
    )


def slow_pcie(paths: HostPaths, system: System | None) -> Iterator[Defect]:  # noqa: ARG001 - the signature of a check
    """Find PCIe links slower than their siblings' at the same place, or than the NIC behind them."""
    wanted = _sibling_speeds(paths)
    for nic in {nic for rail in paths.rails for nic in rail.nics}:
        node = paths.host.nodes[paths.nics[nic]]
        for i, link in enumerate(paths.host.links):
            if _stated(link) and node.name in (link.a, link.b) and node.gbps is not None:
                wanted[i] = max(wanted.get(i, 0.0), node.gbps)
    slow = {i: gbps for i, gbps in wanted.items() if paths.host.links[i].gbps < TOLERANCE * gbps}
    if not slow:
        return
    cables = [paths.host.links[i] for i in sorted(slow)]
    listed = names(f"{link.a} - {link.b} ({link.gbps:g} GB/s, x{link.lanes})" for link in cables)
    yield Defect(
        "slow-pcie",
        tuple(dict.fromkeys(end for link in cables for end in (link.a, link.b))),
        f"PCIe below {'/'.join(sorted({f'{gbps:g}' for gbps in slow.values()}))} GB/s: {listed}",
        "compare LnkSta with LnkCap in lspci -vv: a card or riser that trained down needs reseating or a wider slot",
        with_speeds(paths.host, slow),
        scale_out=True,
    )


def _stated(link: HostLink) -> bool:
    """Return whether a link is PCIe of a width that the source states, not one assumed."""
    return link.kind == "pcie" and link.lanes is not None


def _sibling_speeds(paths: HostPaths) -> dict[int, float]:
    """Return, for the PCIe links from GPUs to their CPU and from NICs to their GPU, the best speed among siblings.

    Siblings are links at the same place of ways of the same length.
    """
    tops: tuple[NodeKind, ...] = ("cpu", "root")
    ends = [node for kind in tops for node in paths.host.of_kind(kind)]
    places: dict[tuple[str, int, int], set[int]] = defaultdict(set)
    for gpu in range(len(paths.gpus)):
        ways = [paths.pci_path(gpu, node) for node in ends]
        rail = paths.rail_of_gpu[gpu]
        own = paths.rails[rail].nics if rail >= 0 and gpu in paths.rails[rail].owners else ()
        chains = [("gpu", min((way for way in ways if way), key=len, default=()))]
        chains += [("nic", (paths.pci_path(gpu, paths.nics[nic]) or ())[::-1]) for nic in own]
        for device, chain in chains:
            for hop, cable in enumerate(chain):
                if _stated(paths.host.links[cable // 2]):
                    places[device, len(chain), hop].add(cable // 2)
    best: dict[int, float] = defaultdict(float)
    for links in places.values():
        for i in links:
            best[i] = max(best[i], *(paths.host.links[j].gbps for j in links))
    return dict(best)
