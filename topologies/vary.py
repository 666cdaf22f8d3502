"""The same cluster with more or fewer hosts, faster or slower links: again a `ClusterSpec`.

A question such as "what if the NICs were 800G" is so answered by a cluster file, which every command takes. Lost parts
are those of `topologies.without`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from topologies.affinity import HostPaths
from topologies.errors import BadInput
from topologies.repair import with_nic_speeds, with_speeds
from topologies.spec import MAX_HOSTS, SCALE_UP, ClusterSpec, Host, HostGroup


def with_hosts(spec: ClusterSpec, hosts: int) -> ClusterSpec:
    """Return the first `hosts` hosts of a cluster, or all of them and more of the last kind."""
    if not 1 <= hosts <= MAX_HOSTS:
        raise BadInput(f"{spec.name}: {hosts} hosts; a cluster has 1 to {MAX_HOSTS}")
    names = spec.host_names()
    if hosts == len(names):
        return spec
    names += [names[-1]] * (hosts - len(names))
    return _renamed(spec, f"{hosts} hosts", layout=_layout(names[:hosts]))


def with_nic_gbps(spec: ClusterSpec, gbps: float) -> ClusterSpec:
    """Return the cluster with all NICs that GPUs use at a speed, GB/s per direction.

    PCIe links slower than that are raised to it: a faster NIC comes with the PCIe generation that feeds it.
    """

    def changed(host: Host) -> Host:
        paths = HostPaths(host)
        used = {paths.nics[nic] for rail in paths.rails for nic in rail.nics}
        slow = {i: gbps for i, link in enumerate(host.links) if link.kind == "pcie" and link.gbps < gbps}
        return with_speeds(with_nic_speeds(host, used, gbps), slow)

    return _with_all_hosts(spec, changed, f"NICs at {gbps:g} GB/s")


def with_scale_up(spec: ClusterSpec, factor: float) -> ClusterSpec:
    """Return the cluster with every NVLink and xGMI `factor` times as fast."""
    if factor == 1:
        return spec

    def changed(host: Host) -> Host:
        links = enumerate(host.links)
        return with_speeds(host, {i: link.gbps * factor for i, link in links if link.kind in SCALE_UP})

    return _with_all_hosts(spec, changed, f"scale-up x{factor:g}")


def _with_all_hosts(spec: ClusterSpec, changed: Callable[[Host], Host], what: str) -> ClusterSpec:
    return _renamed(spec, what, hosts={name: changed(host) for name, host in spec.hosts.items()})


def _layout(names: Sequence[str]) -> tuple[HostGroup, ...]:
    return tuple(HostGroup(host=name, count=len(list(run))) for name, run in groupby(names))


def _renamed(spec: ClusterSpec, what: str, **changes: object) -> ClusterSpec:
    """Return a description with some fields replaced, its name and provenance saying what; kinds not used go."""
    fields = {name: getattr(spec, name) for name in type(spec).model_fields} | changes
    used = {group.host for group in fields["layout"]}
    fields["hosts"] = {name: host for name, host in fields["hosts"].items() if name in used}
    fields["name"] = f"{spec.name}, {what}"[:200]
    fields["provenance"] = (*spec.provenance, f"taken otherwise: {what}")
    return ClusterSpec(**fields)
