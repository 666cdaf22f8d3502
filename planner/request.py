"""What is asked of the planner, checked before any work: slots against experts, weights against memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from planner.model import MoEModel
from planner.placement import IntArray
from topologies import BadInput, Cluster, Infeasible

SPARE_SLOTS = 1  # a rank, where the user names no number: enough to let the planner show what replicas are worth


def default_slots_per_rank(model: MoEModel, cluster: Cluster) -> int:
    """Return the slots per rank where the user names none: what the experts need, and one spare."""
    return min(-(-model.experts // cluster.num_ranks) + SPARE_SLOTS, model.experts)


def slots_of_ranks(
    model: MoEModel,
    cluster: Cluster,
    slots_per_rank: int,
    num_layers: int,
    uneven: Mapping[int, int] | None = None,
) -> IntArray:
    """Return the slots of every rank for `num_layers` layers; `uneven` names ranks that have another number.

    Raises BadInput where they cannot hold every expert once, Infeasible where their weights exceed a GPU's memory.
    """
    uneven = uneven or {}
    wanted_R = np.array([uneven.get(rank, slots_per_rank) for rank in range(cluster.num_ranks)], dtype=np.int64)
    if slots_per_rank < 1:
        raise BadInput(f"slots per rank is {slots_per_rank}, must be at least 1")
    if wanted_R.sum() < model.experts:
        raise BadInput(_too_few(model, cluster, slots_per_rank, wanted_R, uneven))
    slots_R = np.minimum(wanted_R, model.experts)  # a rank never holds an expert twice
    for rank in np.argsort([gpu.memory_bytes for gpu in cluster.gpus], kind="stable").tolist():
        _check_memory(model, cluster, rank, int(slots_R[rank]), num_layers)
    return slots_R


def _too_few(
    model: MoEModel, cluster: Cluster, slots_per_rank: int, wanted_R: IntArray, uneven: Mapping[int, int]
) -> str:
    """Say by how much the slots fall short, and how many the ranks without a number of their own would need."""
    ranks, total = cluster.num_ranks, int(wanted_R.sum())
    free = ranks - len(uneven)
    equation = f"slots_per_rank * ranks ({slots_per_rank} * {ranks} = {total})"
    if uneven:
        equation = f"slots of all {ranks} ranks ({total}, of which {sum(uneven.values())} on {len(uneven)} named ranks)"
    fix = "raise the slots of the named ranks"
    if free:
        fix = f"give --slots-per-rank {-(-(model.experts - sum(uneven.values())) // free)} or more"
    return f"{equation} < experts ({model.experts}) of {model.name}; {fix}, or a larger cluster"


def _check_memory(model: MoEModel, cluster: Cluster, rank: int, slots: int, num_layers: int) -> None:
    gpu = cluster.gpus[rank]
    slot_bytes = num_layers * model.expert_bytes
    need_bytes = slots * slot_bytes
    if need_bytes <= gpu.memory_bytes:
        return
    most = gpu.memory_bytes // slot_bytes
    ranks = -(-model.experts // most) if most else 0
    if most * cluster.num_ranks >= model.experts:
        fix = f"nearest feasible: --slots-per-rank {most}"
    elif most:
        fix = f"nearest feasible: {ranks} ranks with --slots-per-rank {most} ({cluster.name} has {cluster.num_ranks})"
    else:
        fix = "one slot of every layer is already too much for this GPU"
    raise Infeasible(
        f"memory: {slots} slots x {num_layers} layers x {model.expert_bytes / 1e6:.1f} MB of {model.name} = "
        f"{need_bytes / 1e9:.1f} GB, over the {gpu.memory_bytes / 1e9:.1f} GB of {gpu.name} "
        f"by {(need_bytes - gpu.memory_bytes) / 1e9:.1f} GB; {fix}"
    )
