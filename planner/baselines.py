"""The placements that people use today, vectorised over layers.

Shapes: L layers, E logical experts, P physical slots, R ranks, M packs, N items.
EPLB follows deepseek-ai/EPLB, eplb.py @ d52c72d (`rebalance_experts`): the same greedy steps, hence the same maps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.placement import FloatArray, IntArray, Placement
from planner.workload import Workload
from topologies.errors import Infeasible, unknown_name

BASELINES = ("linear", "round-robin", "eplb", "eplb-global")


def baseline(name: str, workload: Workload, slots_R: IntArray) -> list[Placement]:
    """Place every layer of a workload by a baseline's rule.

    `linear` and `round-robin` use one slot per expert; both EPLBs fill every slot. The EPLBs know one number of slots
    for all ranks: where slots differ, the smallest. Raises BadInput on an unknown name, Infeasible where the rule
    cannot fill these slots.
    """
    R, E = workload.num_ranks, workload.num_experts
    if name == "linear":
        rank_E = np.arange(E) * R // E
    elif name == "round-robin":
        rank_E = np.arange(E) % R
    elif name in ("eplb", "eplb-global"):
        phy2log_LP, rank_P = _eplb_map(name, workload, slots_R)
        return [Placement.of_slots(row, rank_P, E, R, workload.num_domains) for row in phy2log_LP]
    else:
        raise unknown_name("baseline", name, BASELINES)
    if (np.bincount(rank_E, minlength=R) > slots_R).any():
        raise Infeasible(f"baseline {name}: needs {-(-E // R)} slots on a rank for {E} experts, has {slots_R.min()}")
    placement = Placement.of_slots(np.arange(E), rank_E, E, R, workload.num_domains)
    return [placement] * workload.num_layers


def _eplb_map(name: str, workload: Workload, slots_R: IntArray) -> tuple[IntArray, IntArray]:
    slots = int(slots_R.min())
    if slots * len(slots_R) < workload.num_experts:
        raise Infeasible(
            f"baseline {name}: needs the same number of slots on every rank; {slots} * {len(slots_R)} ranks = "
            f"{slots * len(slots_R)} < experts ({workload.num_experts}), the smallest of {slots} to {slots_R.max()}"
        )
    num_hosts = workload.cluster.num_hosts
    groups = workload.model.groups if name == "eplb" else 1
    if groups % num_hosts or len(slots_R) % num_hosts:  # hosts of several sizes know no hierarchy either
        groups, num_hosts = 1, 1
    phy2log_LP, _ = eplb(workload.load_LE, slots * len(slots_R), groups, num_hosts, len(slots_R))
    return phy2log_LP, np.repeat(np.arange(len(slots_R)), slots)


def eplb(
    weight_LE: FloatArray, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> tuple[IntArray, IntArray]:
    """DeepSeek's `rebalance_experts`: hierarchical where groups divide by nodes, else global.

    1. Pack expert groups on nodes. 2. Replicate inside each node. 3. Pack the replicas on the node's GPUs.

    Returns:
        phy2log_LP: logical expert of each slot; slot p lives on GPU `p // (num_replicas / num_gpus)`.
        logcnt_LE: number of slots of each logical expert.

    """
    if num_groups % num_nodes:
        num_groups, num_nodes = 1, 1
    L, E = weight_LE.shape
    group_size = E // num_groups
    groups_per_node = num_groups // num_nodes

    # 1. groups to nodes; `mlog` numbers experts by (node, group on the node, expert in the group)
    tokens_LG = weight_LE.reshape(L, num_groups, group_size).sum(axis=2)
    node_LG, place_LG = balanced_packing(tokens_LG, num_nodes)
    first_LG = (node_LG * groups_per_node + place_LG) * group_size
    log2mlog_LE = (first_LG[:, :, None] + np.arange(group_size)).reshape(L, E)
    mlog2log_LE = _inverse(log2mlog_LE)

    # 2. replicas inside each node (rows are layer x node from here on)
    tokens_XE = np.take_along_axis(weight_LE, mlog2log_LE, axis=1).reshape(L * num_nodes, E // num_nodes)
    phy2mlog_XP, mlogcnt_XE = replicate(tokens_XE, num_replicas // num_nodes)

    # 3. replicas to the GPUs of the node
    tokens_XP = np.take_along_axis(tokens_XE / mlogcnt_XE, phy2mlog_XP, axis=1)
    gpus_per_node = num_gpus // num_nodes
    gpu_XP, place_XP = balanced_packing(tokens_XP, gpus_per_node)
    phy2pphy_XP = gpu_XP * (num_replicas // num_gpus) + place_XP
    pphy2mlog_XP = np.take_along_axis(phy2mlog_XP, _inverse(phy2pphy_XP), axis=1)

    node_offset = np.arange(num_nodes)[None, :, None] * (E // num_nodes)
    pphy2mlog_LP = (pphy2mlog_XP.reshape(L, num_nodes, -1) + node_offset).reshape(L, num_replicas)
    phy2log_LP = np.take_along_axis(mlog2log_LE, pphy2mlog_LP, axis=1)
    logcnt_LE = np.take_along_axis(mlogcnt_XE.reshape(L, E), log2mlog_LE, axis=1)
    return phy2log_LP, logcnt_LE


def balanced_packing(weight_XN: FloatArray, num_packs: int) -> tuple[IntArray, IntArray]:
    """Pack N weighted items into packs of exactly N / num_packs items, heaviest first, each on the lightest open pack.

    Returns the pack of each item and its place in the pack. One item a pack is the identity, as in EPLB.
    """
    X, N = weight_XN.shape
    capacity = N // num_packs
    if capacity == 1:
        pack_XN = np.tile(np.arange(N), (X, 1))
        return pack_XN, np.zeros_like(pack_XN)
    order_XN = np.argsort(-weight_XN, axis=1, kind="stable")
    sorted_NX = np.ascontiguousarray(np.take_along_axis(weight_XN, order_XN, axis=1).T)
    first_X = np.arange(X) * num_packs  # of each row's packs, side by side
    load_XM = np.zeros((X, num_packs))  # infinite once a pack is full
    load_Y, filled_Y = load_XM.ravel(), np.zeros(X * num_packs, dtype=np.int64)
    pack_NX = np.empty((N, X), dtype=np.int64)
    place_NX = np.empty((N, X), dtype=np.int64)
    for step in range(N):
        pack_X = load_XM.argmin(axis=1)
        pack_NX[step] = pack_X
        pack_X += first_X
        place_X = filled_Y.take(pack_X)
        place_NX[step] = place_X
        place_X += 1
        filled_Y.put(pack_X, place_X)
        load_Y.put(pack_X, np.where(place_X == capacity, np.inf, load_Y.take(pack_X) + sorted_NX[step]))
    pack_XN, place_XN = np.empty((X, N), dtype=np.int64), np.empty((X, N), dtype=np.int64)
    np.put_along_axis(pack_XN, order_XN, pack_NX.T, axis=1)
    np.put_along_axis(place_XN, order_XN, place_NX.T, axis=1)
    return pack_XN, place_XN


def replicate(weight_XE: FloatArray, num_slots: int) -> tuple[IntArray, IntArray]:
    """Give every expert one slot and each further slot to the expert with the largest load per slot.

    Returns the expert of each slot (the first E in order) and the number of slots of each expert.
    """
    X, E = weight_XE.shape
    rows = np.arange(X)
    phy2log_XP = np.tile(np.arange(num_slots), (X, 1))
    logcnt_XE = np.ones((X, E), dtype=np.int64)
    per_slot_XE: NDArray[np.float64] = weight_XE.astype(np.float64, copy=True)
    for slot in range(E, num_slots):
        expert_X = per_slot_XE.argmax(axis=1)
        phy2log_XP[:, slot] = expert_X
        logcnt_XE[rows, expert_X] += 1
        per_slot_XE[rows, expert_X] = weight_XE[rows, expert_X] / logcnt_XE[rows, expert_X]
    return phy2log_XP, logcnt_XE


def _inverse(permutation_XN: IntArray) -> IntArray:
    inverse_XN = np.empty_like(permutation_XN)
    np.put_along_axis(
        inverse_XN, permutation_XN, np.broadcast_to(np.arange(permutation_XN.shape[1]), permutation_XN.shape), axis=1
    )
    return inverse_XN
