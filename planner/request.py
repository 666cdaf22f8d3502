"""What is asked of the planner, checked before any work: slots against experts, weights against memory."""

from __future__ import annotations

import numpy as np

from planner.model import MoEModel
from planner.placement import IntArray
from topologies import BadInput, Cluster, Infeasible

SPARE_SLOTS = 1  # a rank, where the user names no number: enough to let the planner show what replicas are worth


def default_slots_per_rank(model: MoEModel, cluster: Cluster) -> int:
    """Return the slots per rank where the user names none: what the experts need, and one spare."""
    return min(-(-model.experts // cluster.num_ranks) + SPARE_SLOTS, model.experts)


def slots_of_ranks(model: MoEModel, cluster: Cluster, slots_per_rank: int, num_layers: int) -> IntArray:
    """Return the slots of every rank for `num_layers` layers.

    Raises BadInput where they cannot hold every expert once, Infeasible where their weights exceed a GPU's memory.
    """
    ranks = cluster.num_ranks
    if slots_per_rank < 1:
        raise BadInput(f"slots per rank is {slots_per_rank}, must be at least 1")
    if slots_per_rank * ranks < model.experts:
        need = -(-model.experts // ranks)
        raise BadInput(
            f"slots_per_rank * ranks ({slots_per_rank} * {ranks} = {slots_per_rank * ranks}) < experts "
            f"({model.experts}) of {model.name}; give --slots-per-rank {need} or more, or a larger cluster"
        )
    slots_per_rank = min(slots_per_rank, model.experts)  # a rank never holds an expert twice
    _check_memory(model, cluster, slots_per_rank, num_layers)
    return np.full(ranks, slots_per_rank, dtype=np.int64)


def _check_memory(model: MoEModel, cluster: Cluster, slots_per_rank: int, num_layers: int) -> None:
    smallest = min(cluster.gpus, key=lambda gpu: gpu.memory_bytes)
    slot_bytes = num_layers * model.expert_bytes
    need_bytes = slots_per_rank * slot_bytes
    if need_bytes <= smallest.memory_bytes:
        return
    most = smallest.memory_bytes // slot_bytes
    ranks = -(-model.experts // most) if most else 0
    if most * cluster.num_ranks >= model.experts:
        fix = f"nearest feasible: --slots-per-rank {most}"
    elif most:
        fix = f"nearest feasible: {ranks} ranks with --slots-per-rank {most} ({cluster.name} has {cluster.num_ranks})"
    else:
        fix = "one slot of every layer is already too much for this GPU"
    raise Infeasible(
        f"memory: {slots_per_rank} slots x {num_layers} layers x {model.expert_bytes / 1e6:.1f} MB of {model.name} = "
        f"{need_bytes / 1e9:.1f} GB, over the {smallest.memory_bytes / 1e9:.1f} GB of {smallest.name} "
        f"by {(need_bytes - smallest.memory_bytes) / 1e9:.1f} GB; {fix}"
    )
