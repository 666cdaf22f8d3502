"""The figures that describe a cluster: bandwidth of every GPU, NICs and how near they are, bisection."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from topologies.affinity import HostPaths
from topologies.alltoall import sampled, uniform_alltoall
from topologies.errors import BadInput
from topologies.graph import Cluster
from topologies.spec import SCALE_UP

MAX_CAPACITY = 2**31 - 2  # of scipy's maximum flow


def scale_up_gbps(paths: HostPaths) -> list[float]:
    """Return what each GPU of a host sends over NVLink or xGMI, GB/s."""
    total = Counter[str]()
    for link in paths.host.links:
        if link.kind in SCALE_UP:
            total[link.a] += link.gbps  # type: ignore[assignment]  # a Counter of speeds
            total[link.b] += link.gbps  # type: ignore[assignment]  # as above
    return [float(total[paths.host.nodes[gpu].name]) for gpu in paths.gpus]


def scale_out_gbps(paths: HostPaths) -> list[float | None]:
    """Return each GPU's part of its NICs, GB/s: its rail's speed over the GPUs that use it; None if not known."""
    parts: list[float | None] = []
    for rail in paths.rail_of_gpu:
        if rail < 0:
            parts.append(0.0)
            continue
        speeds = [paths.host.nodes[paths.nics[nic]].gbps for nic in paths.rails[rail].nics]
        known = [speed for speed in speeds if speed is not None]
        parts.append(sum(known) / paths.rail_of_gpu.count(rail) if len(known) == len(speeds) else None)
    return parts


def bisection_gbps(cluster: Cluster) -> float:
    """Return the most that the first half of the ranks can send to the second at once, GB/s: a maximum flow."""
    half = cluster.num_ranks // 2
    if half == 0:
        return 0.0
    wiring = cluster.wiring
    ends = {name: i for i, name in enumerate(wiring.node_names)}
    gpus = np.array([ends[rank.node] for rank in cluster.ranks])
    size = len(wiring.node_names)
    out = np.zeros(size)
    np.add.at(out, wiring.source, wiring.gbps)
    scale = min(1000.0, MAX_CAPACITY / max(1.0, float(out[gpus].sum())))
    capacity = np.concatenate([wiring.gbps, out[gpus[:half]], out[gpus[half:]]]) * scale
    source = np.concatenate([wiring.source, np.full(half, size), gpus[half:]])
    target = np.concatenate([wiring.target, gpus[:half], np.full(cluster.num_ranks - half, size + 1)])
    matrix = csr_array((np.round(capacity).astype(np.int32), (source, target)), shape=(size + 2, size + 2))
    return float(maximum_flow(matrix, size, size + 1).flow_value) / scale


def summarise(cluster: Cluster) -> dict[str, Any]:
    """Return a description of a cluster as a JSON document; speeds in GB/s per direction."""
    kinds = Counter(zip(cluster.link_kinds, cluster.link_gbps.round(3).tolist(), strict=True))
    try:
        alltoall = uniform_alltoall(sampled(cluster))
        rate: dict[str, Any] = {
            "gbps_per_gpu": round(alltoall.gbps, 3),
            "bottleneck": None
            if alltoall.bottleneck is None
            else f"{alltoall.bottleneck.source} -> {alltoall.bottleneck.target} ({alltoall.bottleneck.kind})",
            "ranks": min(cluster.num_ranks, sampled(cluster).num_ranks),
        }
    except BadInput as error:
        rate = {"gbps_per_gpu": None, "bottleneck": str(error), "ranks": cluster.num_ranks}
    fabric = cluster.spec.fabric
    sizes_D = np.bincount(cluster.domain_of_rank)
    return {
        "name": cluster.name,
        "ranks": cluster.num_ranks,
        "hosts": cluster.num_hosts,
        "domains": cluster.num_domains,
        "domain_ranks": {"least": int(sizes_D.min()), "most": int(sizes_D.max())},
        "gpus": [
            {"name": name, "count": count} for name, count in sorted(Counter(gpu.name for gpu in cluster.gpus).items())
        ],
        "links": [{"kind": kind, "gbps": gbps, "count": count} for (kind, gbps), count in sorted(kinds.items())],
        "fabric": None
        if cluster.spec.num_hosts == 1
        else {
            "kind": fabric.kind,
            "radix": fabric.radix,
            "oversubscription": fabric.oversubscription,
            "leaves": cluster.wiring.node_kinds.count("leaf"),
        },
        "bisection_gbps": round(bisection_gbps(cluster), 3),
        "uniform_alltoall": rate,
        "host_kinds": [
            _host_kind(paths, name, cluster.spec.host_names().count(name))
            for name, paths in zip(dict.fromkeys(cluster.spec.host_names()), cluster.wiring.paths, strict=True)
        ],
        "provenance": list(cluster.spec.provenance),
    }


def _host_kind(paths: HostPaths, name: str, count: int) -> dict[str, Any]:
    nodes = paths.host.nodes
    up, out = scale_up_gbps(paths), scale_out_gbps(paths)
    used = {nic for rail in paths.rails for nic in rail.nics}
    return {
        "name": name,
        "count": count,
        "gpus": [_gpu(paths, gpu, up[gpu], out[gpu]) for gpu in range(len(paths.gpus))],
        "nics": [
            {
                "name": nodes[node].name,
                "model": nodes[node].model,
                "busid": nodes[node].busid,
                "gbps": nodes[node].gbps,
                "used_by_gpus": nic in used,
            }
            for nic, node in enumerate(paths.nics)
        ],
    }


def _gpu(paths: HostPaths, gpu: int, up: float, out: float | None) -> dict[str, Any]:
    node = paths.host.nodes[paths.gpus[gpu]]
    rail = paths.rail_of_gpu[gpu]
    own = rail >= 0 and gpu in paths.rails[rail].owners
    kind, _ = paths.nearest(gpu)
    nics = [paths.host.nodes[paths.nics[nic]].name for nic in paths.rails[rail].nics] if rail >= 0 else []
    return {
        "name": node.name,
        "model": node.model,
        "busid": node.busid,
        "nvlinks": node.lanes,
        "scale_up_gbps": round(up, 3),
        "scale_out_gbps": None if out is None else round(out, 3),
        "rail": rail,
        "nics": nics,
        "through_neighbour": rail >= 0 and not own,
        "nearest_nic": kind,
        "affinity": {paths.host.nodes[paths.nics[nic]].name: path for nic, path in enumerate(paths.affinity[gpu])},
    }
