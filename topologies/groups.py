"""Several EP groups on one cluster: equal groups of ranks that run the same step at the same time, on shared links.

    --ep-groups 4                   ranks 0-7 | 8-15 | 16-23 | 24-31
    --ep-groups 4 --ep-stride 2     ranks 0, 2, ... 14 | 1, 3, ... 15 | 16, 18, ... 30 | 17, 19, ... 31

Each is a replica of the others (data parallelism): one placement serves them all, and rank i of every group sends to
rank j of its own what rank i of the first one sends to rank j. So a transfer of the first group stands for one in
every group, and crosses the links of all of them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.sparse import csr_array

from topologies.errors import BadInput
from topologies.graph import Cluster, Groups
from topologies.rails import rail_peers
from topologies.routes import routes


def in_groups(cluster: Cluster, count: int, stride: int = 1) -> Cluster:
    """Return the first of `count` EP groups of a cluster, which knows where the others lie.

    The ranks of a group are `stride` apart, as they are where tensor parallelism takes the ranks between. Raises
    BadInput where the groups do not divide the ranks, or are not alike: other domains, rails, GPUs or speeds.
    """
    if count == 1 and stride == 1:
        return cluster
    if count < 1 or stride < 1 or count % stride:
        raise BadInput(f"{count} EP groups with ranks {stride} apart: the groups must be a multiple of the stride")
    size, rest = divmod(cluster.num_ranks, count)
    if rest:
        raise BadInput(
            f"{cluster.name}: {cluster.num_ranks} ranks are no multiple of {count} EP groups; nearest that divide: "
            f"{', '.join(map(str, _nearest(cluster.num_ranks, count)))}"
        )
    first, *others = (cluster.subset(_members(group, size, stride)) for group in range(count))
    for number, other in enumerate(others, start=1):
        if differs := _difference(first, other):
            raise BadInput(
                f"{cluster.name}: EP group {number} of {count} has other {differs} than group 0, and one plan "
                "cannot serve both; choose another --ep-groups or --ep-stride"
            )
    places = tuple(tuple(map(tuple, other.places.tolist())) for other in others)
    return replace(first, groups=Groups(count, stride, places))


def shared_routes(cluster: Cluster, policy: str = "pxn") -> csr_array:
    """Return the routes matrix [R * R, L] with the transfers of all groups: row `src * R + dst` adds theirs up."""
    total = routes(cluster, policy)
    for places in cluster.groups.others:
        total = total + routes(replace(cluster, places=np.array(places, dtype=np.int64)), policy)
    return csr_array(total)


def _members(group: int, size: int, stride: int) -> list[int]:
    block, offset = divmod(group, stride)
    return [block * size * stride + offset + stride * i for i in range(size)]


def _nearest(ranks: int, count: int) -> list[int]:
    """Return the divisors of the ranks on both sides of a count."""
    divisors = [n for n in range(1, ranks + 1) if ranks % n == 0]
    return [max(n for n in divisors if n <= count), *[n for n in divisors if n > count][:1]]


def _difference(one: Cluster, other: Cluster) -> str:
    """Return in what two groups differ for a plan, "" where they do not."""
    if not np.array_equal(one.domain_of_rank, other.domain_of_rank):
        return "domains"
    peers, theirs = (rail_peers(group.domain_of_rank, group.rail_of_rank) for group in (one, other))
    if not np.array_equal(peers, theirs):
        return "rails"
    return "" if one.gpus == other.gpus and _speeds(one) == _speeds(other) else "GPUs"


def _speeds(cluster: Cluster) -> list[float]:
    return [rank.speed for rank in cluster.ranks]
