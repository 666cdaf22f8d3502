"""A defect of a host and the host without it; small edits of hosts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from topologies.spec import Host, HostLink, HostNode


@dataclass(frozen=True)
class Defect:
    """What a check found on one kind of host.

    Attributes:
        check: name of the check.
        parts: names of the nodes concerned.
        message, fix: for the user.
        repaired: the host with this one thing put right.
        scale_out: whether it shows between hosts (NICs, PCIe) rather than inside a domain.
    """

    check: str
    parts: tuple[str, ...]
    message: str
    fix: str
    repaired: Host
    scale_out: bool


def with_speeds(host: Host, gbps: dict[int, float]) -> Host:
    """Return a host whose links at some positions have other speeds, GB/s."""
    links = tuple(link.model_copy(update={"gbps": gbps[i]}) if i in gbps else link for i, link in enumerate(host.links))
    return host.model_copy(update={"links": links})


def with_nic_speeds(host: Host, nodes: Iterable[int], gbps: float) -> Host:
    """Return a host whose NICs at some positions run at a speed, GB/s."""
    chosen = set(nodes)
    changed = (node.model_copy(update={"gbps": gbps}) if i in chosen else node for i, node in enumerate(host.nodes))
    return host.model_copy(update={"nodes": tuple(changed)})


def with_own_nics(host: Host, gpus: Iterable[str], gbps: float | None) -> Host:
    """Return a host in which each of some GPUs has one NIC more, on a PCIe switch of its own with it."""
    nodes, links = list(host.nodes), list(host.links)
    speed = max((link.gbps for link in host.links if link.kind == "pcie"), default=gbps or 1.0)
    for gpu in gpus:
        nodes.append(HostNode(name=f"nic for {gpu}", kind="nic", gbps=gbps))
        links.append(HostLink(a=gpu, b=f"nic for {gpu}", kind="pcie", gbps=max(speed, gbps or 0.0)))
    return Host(nodes=tuple(nodes), links=tuple(links))


def names(parts: Iterable[str]) -> str:
    """Join names for a message, many of them shortened.

    >>> names(["gpu1"]), names(["gpu1", "gpu2"])
    ('gpu1', 'gpu1 and gpu2')
    """
    listed = list(parts)
    if len(listed) > 8:
        listed = [*listed[:7], f"{len(listed) - 7} more"]
    return " and ".join(filter(None, [", ".join(listed[:-1]), listed[-1]]))
