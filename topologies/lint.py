"""What is wrong with the hosts and the fabric of a cluster, what it costs in all-to-all, and how to fix it.

A check compares the parts of a host with their siblings, and with the catalog system that the user names; a host that
is merely modest, but even, is not a finding. Every finding carries the repair as data, and its cost is the uniform
all-to-all of the repaired hosts less that of the hosts as they are: one scale-up domain for findings on NVLink, two of
them joined by a non-blocking fabric for findings on NICs and PCIe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from topologies import lint_nic, lint_scale_up
from topologies.affinity import HostPaths
from topologies.alltoall import sampled, uniform_alltoall
from topologies.build import build_cluster
from topologies.catalog import System
from topologies.errors import BadInput
from topologies.repair import Defect
from topologies.spec import ClusterSpec, Fabric, Host, HostGroup

Check = Callable[[HostPaths, System | None], Iterator[Defect]]
CHECKS: tuple[Check, ...] = (
    lint_scale_up.missing_links,
    lint_scale_up.uneven_links,
    lint_scale_up.below_class,
    lint_nic.no_near_nic,
    lint_nic.wrong_numa_side,
    lint_nic.uneven_sharing,
    lint_nic.slow_nic,
    lint_nic.fewer_than_class,
    lint_nic.slow_pcie,
)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        check: name of the check.
        where: kind of host, or fabric.
        parts: the nodes concerned.
        message: what is wrong, with the numbers.
        fix: what to do.
        cost_gbps: what every GPU loses in a uniform all-to-all, GB/s; None where no rate can be stated.
        now_gbps: that all-to-all as things are, GB/s per GPU; None as above.
        basis: what the all-to-all ran on.
    """

    check: str
    where: str
    parts: tuple[str, ...]
    message: str
    fix: str
    cost_gbps: float | None
    now_gbps: float | None
    basis: str


def lint(spec: ClusterSpec, system: System | None = None) -> list[Finding]:
    """Return the findings on a cluster, dearest first within each kind of host; empty when all is well.

    `system`, where the user names it, is the class that the hosts are held against.
    """
    findings: list[Finding] = []
    for name in sorted({group.host for group in spec.layout}):
        findings += _lint_host(spec, name, system)
    return findings + _lint_fabric(spec)


def _lint_host(spec: ClusterSpec, name: str, system: System | None) -> list[Finding]:
    host = spec.hosts[name]
    found: list[Finding] = []
    for check in CHECKS:
        found += [_price(spec, name, host, defect) for defect in check(HostPaths(host), system)]
    return sorted(found, key=lambda finding: -(finding.cost_gbps or 0.0))


def _price(spec: ClusterSpec, name: str, host: Host, defect: Defect) -> Finding:
    """State the cost of a defect: all-to-all on hosts of this kind, as they are and repaired."""
    domains = 2 if defect.scale_out else 1
    now, repaired = _rate(spec, host, domains), _rate(spec, defect.repaired, domains)
    basis = f"{domains * spec.domain_hosts} such host{'s' if domains * spec.domain_hosts > 1 else ''}"
    if defect.scale_out:
        assumed = _assumed_nic(host)
        basis += " on a non-blocking fabric" + (f", NICs taken as {assumed:g} GB/s" if assumed else "")
    cost = None if now is None or repaired is None else max(0.0, repaired - now)
    return Finding(defect.check, name, defect.parts, defect.message, defect.fix, cost, now, basis)


def _assumed_nic(host: Host) -> float | None:
    """Return the NIC speed to price with where the host does not state it: 200 Gb/s up to A100, else 400 Gb/s."""
    nics = [node for node in host.nodes if node.kind == "nic"]
    if not nics or all(node.gbps is not None for node in nics):
        return None
    most = max((node.lanes or 0 for node in host.nodes if node.kind == "gpu"), default=0)
    return 50.0 if most > 12 else 25.0


def _rate(spec: ClusterSpec, host: Host, domains: int) -> float | None:
    """Return the uniform all-to-all of hosts of one kind, GB/s per GPU; None where some pair is not joined."""
    assumed = _assumed_nic(host)
    nodes = tuple(
        node.model_copy(update={"gbps": assumed}) if assumed and node.kind == "nic" and node.gbps is None else node
        for node in host.nodes
    )
    cluster = build_cluster(
        ClusterSpec(
            name="lint",
            gpus=spec.gpus,
            hosts={"host": host.model_copy(update={"nodes": nodes})},
            layout=(HostGroup(host="host", count=domains * spec.domain_hosts),),
            domain_hosts=spec.domain_hosts,
            fabric=Fabric(radix=1024),
        ),
        strict=False,
    )
    try:
        return uniform_alltoall(cluster).gbps
    except BadInput:
        return None


def _lint_fabric(spec: ClusterSpec) -> list[Finding]:
    """Check the cluster as a whole: that every pair is joined, and what oversubscription costs."""
    cluster = sampled(build_cluster(spec, strict=False))
    try:
        now = uniform_alltoall(cluster)
    except BadInput as error:
        fix = "give every host a NIC on the fabric, or take a fabric with a spine"
        return [Finding("no-path", "fabric", (), str(error), fix, None, None, f"{cluster.num_ranks} ranks")]
    over = spec.fabric.oversubscription
    if over == 1 or spec.num_hosts == 1:
        return []
    fair = spec.model_copy(update={"fabric": spec.fabric.model_copy(update={"oversubscription": 1.0})})
    best = uniform_alltoall(sampled(build_cluster(fair, strict=False)))
    return [
        Finding(
            "oversubscribed",
            "fabric",
            (),
            f"leaves carry {over:g} times more below than above",
            f"add uplinks: {over:g} times as many make it non-blocking",
            max(0.0, best.gbps - now.gbps),
            now.gbps,
            f"{cluster.num_ranks} ranks",
        )
    ]
