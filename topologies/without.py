"""A cluster with parts that are lost: hosts, GPUs, NICs.

    hgx-h100:4 without host3,host1/gpu2,host0/nic4

Parts are numbered as in the whole cluster, so that names stay valid however much is lost. The ranks that are left are
numbered anew. A lost NIC stays cabled, and its GPUs use those that are left: through a neighbour on NVLink where there
is one, as NCCL does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from topologies.build import build_cluster
from topologies.errors import BadInput
from topologies.graph import Cluster
from topologies.spec import ClusterSpec, Host, HostGroup

WORD = " without "
PART = re.compile(r"host([0-9]{1,4})(?:/(\S{1,200}))?")
NUMBERED = re.compile(r"(gpu|nic)([0-9]{1,4})")


@dataclass(frozen=True)
class _Losses:
    """Hosts by number, GPUs as (host, index of the GPU), NICs as (host, name of the node)."""

    hosts: frozenset[int]
    gpus: frozenset[tuple[int, int]]
    nics: frozenset[tuple[int, str]]


def split_without(text: str) -> tuple[str, tuple[str, ...]]:
    """Split a cluster's name into the whole cluster and the parts that it lacks.

    >>> split_without("hgx-h100:4 without host3,host0/nic4")
    ('hgx-h100:4', ('host3', 'host0/nic4'))
    """
    base, _, parts = text.partition(WORD)
    return base, tuple(part for part in re.split(r"[,\s]+", parts) if part)


def joined_name(base: str, parts: Iterable[str]) -> str:
    """Return the name of a cluster without some parts, as `load_cluster` reads it."""
    listed = ",".join(sorted(set(parts)))
    return f"{base}{WORD}{listed}" if listed else base


def without(cluster: Cluster, parts: Sequence[str]) -> Cluster:
    """Return the cluster without hosts (`host3`), GPUs (`host1/gpu2`) or NICs (`host0/nic4`).

    Raises BadInput where a part is not there, or no rank is left.
    """
    if not parts:
        return cluster
    base, lost_before = split_without(cluster.name)
    losses = _read(cluster, parts)
    whole = build_cluster(_with_lost_nics(cluster.spec, losses.nics)) if losses.nics else cluster
    rank_of_node = {rank.node: rank.rank for rank in whole.ranks}
    left = [
        rank_of_node[rank.node]
        for rank, (host, gpu) in zip(cluster.ranks, cluster.places.tolist(), strict=True)
        if host not in losses.hosts and (host, gpu) not in losses.gpus
    ]
    if not left:
        raise BadInput(f"{cluster.name} without {', '.join(parts)}: no rank is left")
    speed_of_node = {rank.node: rank.speed for rank in cluster.ranks}
    remaining = whole.subset(left)
    remaining = remaining.with_speeds(speed_of_node[rank.node] for rank in remaining.ranks)
    return replace(remaining, name=joined_name(base, (*lost_before, *parts)))


def _read(cluster: Cluster, parts: Sequence[str]) -> _Losses:
    kinds = cluster.spec.host_names()
    hosts: set[int] = set()
    gpus: set[tuple[int, int]] = set()
    nics: set[tuple[int, str]] = set()
    for part in parts:
        match = PART.fullmatch(part)
        if match is None:
            raise BadInput(f"{part[:80]!r} names no part of a cluster; write host3, host1/gpu2 or host0/nic4")
        host, inside = int(match[1]), match[2]
        if host >= len(kinds):
            raise BadInput(f"{part[:80]}: {cluster.name} has hosts 0 to {len(kinds) - 1}")
        if inside is None:
            hosts.add(host)
            continue
        description = cluster.spec.hosts[kinds[host]]
        node = description.nodes[_node(description, part, inside)]
        if node.kind == "gpu":
            gpus.add((host, [description.nodes[i].name for i in description.of_kind("gpu")].index(node.name)))
        else:
            nics.add((host, node.name))
    return _Losses(frozenset(hosts), frozenset(gpus), frozenset(nics))


def _node(host: Host, part: str, inside: str) -> int:
    """Return the node that a part names: by its own name, or as the n-th GPU or NIC."""
    numbered = NUMBERED.fullmatch(inside)
    gpus, nics = host.of_kind("gpu"), host.of_kind("nic")
    for index in (*gpus, *nics):
        if host.nodes[index].name == inside:
            return index
    if numbered is not None:
        listed = gpus if numbered[1] == "gpu" else nics
        if int(numbered[2]) < len(listed):
            return listed[int(numbered[2])]
    raise BadInput(f"{part[:80]}: that host has gpu0 to gpu{len(gpus) - 1}" + (
        f" and nic0 to nic{len(nics) - 1}" if nics else ", and no NIC"
    ))  # fmt: skip


def _with_lost_nics(spec: ClusterSpec, lost: Iterable[tuple[int, str]]) -> ClusterSpec:
    """Return the description with these NICs marked as lost: hosts that lack one become kinds of their own."""
    kinds, hosts = spec.host_names(), dict(spec.hosts)
    for number in sorted({host for host, _ in lost}):
        names = {name for host, name in lost if host == number}
        kind = f"{kinds[number]} of host{number} without {','.join(sorted(names))}"
        old = spec.hosts[kinds[number]]
        nodes = tuple(
            node.model_copy(update={"lost": True}) if node.name in names else node for node in old.nodes
        )  # fmt: skip
        kinds[number], hosts[kind] = kind, Host(nodes=nodes, links=old.links)
    layout = tuple(HostGroup(host=kind, count=len(list(run))) for kind, run in groupby(kinds))
    used = {kind: hosts[kind] for kind in dict.fromkeys(kinds)}
    return spec.model_copy(update={"hosts": used, "layout": layout})
