"""The same statistics in another step: on another cluster, or with other tokens per rank, without drawing anew."""

from __future__ import annotations

from planner.workload import Workload, build_workload
from topologies import Cluster


def restep(workload: Workload, cluster: Cluster, tokens_per_rank: float | None) -> Workload:
    """Return `build_workload` of the same model, statistics and seed; equal to it, and quicker.

    Sampled tokens depend on the part of each expert alone where all sources send alike, not on the cluster or on the
    number of tokens: those of `workload` are kept. Raises BadInput as `build_workload` does.
    """
    other = build_workload(workload.model, cluster, workload.routing, tokens_per_rank, workload.seed)
    if workload.routing.counts.shape[1] == 1:
        vars(other)["tokens_LPK"] = workload.tokens_LPK  # where `cached_property` would put what it draws
    return other
