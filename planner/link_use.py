"""What a simulated layer puts on the links and between the ranks: bytes, and the time that each link is at work.

Shapes: R ranks, N directed links of the cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.placement import FloatArray
from planner.simulate import Phase, Simulation
from topologies import Cluster
from topologies.groups import shared_routes


@dataclass(frozen=True, eq=False)
class LinkUse:
    """The links of one layer.

    Attributes:
        dispatch_bytes_N, combine_bytes_N: that cross each link.
        busy_us_N: microseconds of the layer in which the link moves them, at the speed it reaches.

    """

    dispatch_bytes_N: FloatArray
    combine_bytes_N: FloatArray
    busy_us_N: FloatArray


def traffic_RR(simulation: Simulation, phase: Phase) -> FloatArray:
    """Return the bytes that each rank sends to each other on all hops of a phase; forwarded ones count on every hop."""
    R = len(simulation.back_R)
    bytes_RR = np.zeros((R, R))
    for hop in simulation.hops:
        if hop.name == phase:
            np.add.at(bytes_RR, (hop.source_F, hop.target_F), hop.bytes_F)
    return bytes_RR


def link_use(simulation: Simulation, cluster: Cluster) -> LinkUse:
    """Return what the flows of a layer put on every link of the cluster that it was simulated on."""
    route_PN = shared_routes(cluster)
    dispatch_N, combine_N = (
        np.asarray(route_PN.T @ traffic_RR(simulation, phase).ravel()) for phase in ("dispatch", "combine")
    )
    busy_us_N = np.zeros(cluster.num_links)
    for start_us, end_us, use_N in simulation.timeline.spans:
        busy_us_N += (end_us - start_us) * use_N
    return LinkUse(dispatch_N, combine_N, busy_us_N)


def use_over_time(simulation: Simulation, bins: int) -> tuple[FloatArray, FloatArray]:
    """Return the mean use [N, bins] of every link, 0 to 1, in equal spans of the layer, and their edges [bins + 1].

    The last span reaches a little beyond `layer_us` where the simulation put ends of flows together.
    """
    spans = simulation.timeline.spans
    horizon_us = max([simulation.layer_us, 1e-12, *(end_us for _, end_us, _ in spans)])
    edges_us = np.linspace(0.0, horizon_us, bins + 1)
    width_us = edges_us[1]
    use_NB = np.zeros((len(simulation.link_names), bins))
    for start_us, end_us, use_N in spans:
        for b in range(int(start_us // width_us), min(int(end_us // width_us), bins - 1) + 1):
            use_NB[:, b] += use_N * max(min(end_us, edges_us[b + 1]) - max(start_us, edges_us[b]), 0.0) / width_us
    return use_NB, edges_us
