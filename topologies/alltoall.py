"""How fast the links let a uniform all-to-all go: the measure of lint's costs and of `epplan topology show`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from topologies.graph import Cluster, FloatArray, Link
from topologies.routes import routes

SAMPLE_RANKS = 512


@dataclass(frozen=True)
class AllToAll:
    """A uniform all-to-all at full line rate, without start-up times.

    Attributes:
        gbps: what every rank sends, and receives, GB/s, its own part not counted.
        bottleneck: the link that is full; the first of several.
        loads: [L] bytes on every link when every pair sends one byte.
    """

    gbps: float
    bottleneck: Link | None
    loads: FloatArray


def uniform_alltoall(cluster: Cluster, policy: str = "pxn") -> AllToAll:
    """Return the speed that the slowest link allows when every rank sends as much to every other."""
    loads = np.asarray(routes(cluster, policy).sum(axis=0), dtype=np.float64)
    if cluster.num_ranks == 1:
        return AllToAll(0.0, None, loads)
    seconds = loads / (cluster.link_gbps * 1e9)
    worst = int(seconds.argmax())
    return AllToAll((cluster.num_ranks - 1) / float(seconds[worst]) / 1e9, cluster.links[worst], loads)


def sampled(cluster: Cluster) -> Cluster:
    """Return the cluster, or where it is large the group on evenly spaced whole domains of it."""
    if cluster.num_ranks <= SAMPLE_RANKS:
        return cluster
    per_domain = max(1, cluster.num_ranks // cluster.num_domains)
    count = max(2, SAMPLE_RANKS // per_domain)
    domains = np.unique(np.linspace(0, cluster.num_domains - 1, count).round().astype(int))
    return cluster.subset(np.flatnonzero(np.isin(cluster.domain_of_rank, domains)).tolist())
