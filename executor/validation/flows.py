"""One-to-one probes: disjoint flows over every tier, and the link that does not keep what the graph promises.

Every pattern sends from each rank to one other, so that no two flows share a link inside a domain or on a rail. A link
cannot be slower than the fastest flow that crosses it: its rate is at least that. A link whose every flow is slow,
beside other links of its kind, disagrees with the graph.

Shapes: R ranks, L directed links, F flows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from executor.validation.link_loads import Links
from planner.placement import FloatArray, IntArray
from topologies import rail_peers

SLOW = 0.7  # of the usual part of its rate: what a link below is said to disagree by


@dataclass(frozen=True)
class SlowLink:
    """A link that disagrees with the graph: the part of its rate that its best flow reached, and what is usual."""

    link: str
    reached: float
    usual: float


def flow_patterns(domain_R: IntArray, rail_R: IntArray) -> list[list[int]]:
    """Return permutations of ranks: neighbours in every domain at two distances, then peers in other domains."""
    R = len(domain_R)
    members = [np.flatnonzero(domain_R == d).tolist() for d in range(int(domain_R.max()) + 1)]
    patterns = []
    for shift in (1, 2):
        target = list(range(R))
        for group in members:
            for place, rank in enumerate(group):
                target[rank] = group[(place + shift) % len(group)]
        patterns.append(target)
    peer_RD, D = rail_peers(domain_R, rail_R), len(members)
    patterns += [[int(peer_RD[r, (int(domain_R[r]) + shift) % D]) for r in range(R)] for shift in (1, 2, 3)]
    unlike = [p for p in patterns if any(i != rank for rank, i in enumerate(p)) and len(set(p)) == R]
    return [p for i, p in enumerate(unlike) if p not in unlike[:i]]


def flow_bytes(pattern: Sequence[int], entries: int) -> FloatArray:
    """Return the bytes [R, R] of a pattern."""
    bytes_RR = np.zeros((len(pattern), len(pattern)))
    for src, dst in enumerate(pattern):
        if src != dst:
            bytes_RR[src, dst] = entries
    return bytes_RR


def slow_links(
    patterns: Sequence[Sequence[int]], us_PR: FloatArray, entries: int, links: Links, scale: float
) -> list[SlowLink]:
    """Return the links that disagree with the graph, the slowest first; of several that only share flows, all.

    Args:
        patterns: who sent to whom.
        us_PR: time of each rank as the receiver, by pattern.
        entries: bytes of a flow.
        links: of the graph.
        scale: lab bandwidth over the graph's.

    """
    R = links.cluster.num_ranks
    reached_L = np.zeros(links.cluster.num_links)
    rate_L = np.asarray(links.cluster.link_gbps) * scale * 1e3
    narrowest_L = np.zeros(links.cluster.num_links, dtype=bool)
    for pattern, us_R in zip(patterns, us_PR, strict=True):
        for src, dst in enumerate(pattern):
            row = links.route_PL[[src * R + dst]]
            if src == dst or not row.nnz:
                continue
            crossed, part = row.indices, row.data
            rate = entries / us_R[dst]
            reached_L[crossed] = np.maximum(reached_L[crossed], rate * part / rate_L[crossed])
            tightest = (part / rate_L[crossed]).max()
            narrowest_L[crossed[part / rate_L[crossed] > 0.99 * tightest]] = True
    found = []
    for kind in sorted(set(links.cluster.link_kinds)):
        mine = np.flatnonzero((links.kind_L == kind) & narrowest_L)
        usual = float(np.median(reached_L[mine])) if len(mine) else 0.0
        found += [
            SlowLink(links.names[link], float(reached_L[link]), usual)
            for link in mine
            if reached_L[link] < SLOW * usual
        ]
    return sorted(found, key=lambda slow: slow.reached / slow.usual)
