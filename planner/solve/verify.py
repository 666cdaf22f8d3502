"""Whether a plan is one, checked from the definitions and without a line of the search's code, before it leaves.

Solvers round, stop early, crash and have bugs; so has the search around them. What comes out is held against every
constraint once more, slot by slot: ids, slots of each rank, one copy of an expert on a rank, every expert present,
shares that are finite, within [0, 1] and sum to one, the experts that survive a lost host, the memory of each GPU.

Shapes: S slots in use, D source domains, E experts, R ranks, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.model import MoEModel
from planner.placement import IntArray, Placement
from planner.survive import Backups
from topologies import Cluster
from topologies.errors import EpplanError

TOLERANCE = 1e-6  # by which shares may miss a sum of one


class SolverFault(EpplanError):
    """The search returned what is no plan: a fault of a solver or of ours, never of the user's input."""

    exit_code = 1


def verify_plan(
    placements: Sequence[Placement], slots: IntArray, model: MoEModel, layers: Sequence[int], cluster: Cluster
) -> None:
    """Raise SolverFault that names the layer and the first constraint that a plan breaks.

    Args:
        placements: of every layer.
        slots: that each rank may use, [R] or, layer by layer, [L, R].
        model: for the number of experts, and what the weights of one take.
        layers: the index in the model of each placement.
        cluster: for the number of ranks, and the memory of each GPU.

    """
    slots_LR = np.broadcast_to(slots, (len(placements), cluster.num_ranks))
    if len(placements) != len(layers):
        raise SolverFault(f"the plan has {len(placements)} layers, asked were {len(layers)}{_ADVICE}")
    for layer, placement, slots_R in zip(layers, placements, slots_LR, strict=True):
        broken = broken_constraint(placement, slots_R, model.experts)
        if broken:
            raise SolverFault(f"layer {layer}: {broken}{_ADVICE}")
    used_R = np.sum([np.bincount(placement.rank_S, minlength=cluster.num_ranks) for placement in placements], axis=0)
    for rank, (used, allowed) in enumerate(zip(used_R.tolist(), slots_LR.sum(axis=0).tolist(), strict=True)):
        room = max(cluster.gpus[rank].memory_bytes, allowed * model.expert_bytes)  # the user may know of more room
        if used * model.expert_bytes > room:
            raise SolverFault(f"rank {rank}: {used} slots take more than its {room / 1e9:.1f} GB{_ADVICE}")


_ADVICE = "; this is a fault of the solver or of epplan: please report it (--time-limit 0 plans without a solver)"


def broken_constraint(placement: Placement, slots_R: IntArray, num_experts: int, backups: Backups | None = None) -> str:
    """Return in words the first constraint that a placement breaks, "" where it breaks none."""
    expert_S, rank_S, share_DS = placement.expert_S, placement.rank_S, placement.share_DS
    if not len(expert_S) == len(rank_S) == share_DS.shape[1]:
        return f"{len(expert_S)} experts, {len(rank_S)} ranks and {share_DS.shape[1]} shares are not of the same slots"
    E, R = num_experts, len(slots_R)
    outside_S = (expert_S < 0) | (expert_S >= E) | (rank_S < 0) | (rank_S >= R)
    if outside_S.any():
        slot = int(outside_S.argmax())
        return f"a slot holds expert {expert_S[slot]} on rank {rank_S[slot]}; there are {E} experts and {R} ranks"
    pair_S = np.sort(expert_S * R + rank_S)
    twice = pair_S[1:][pair_S[1:] == pair_S[:-1]]
    if twice.size:
        expert, rank = divmod(int(twice[0]), R)
        return f"expert {expert} stands twice on rank {rank}"
    over_R = np.bincount(rank_S, minlength=R) > slots_R
    if over_R.any():
        rank = int(over_R.argmax())
        return f"rank {rank} holds more than its {slots_R[rank]} slots"
    copies_E = np.bincount(expert_S, minlength=E)
    if not copies_E.all():
        return f"expert {int(copies_E.argmin())} has no slot"
    return _broken_shares(placement, E) or ("" if backups is None else _broken_survival(placement, E, backups))


def _broken_shares(placement: Placement, num_experts: int) -> str:
    expert_S, share_DS = placement.expert_S, placement.share_DS
    wrong_DS = ~((share_DS >= 0.0) & (share_DS <= 1.0 + TOLERANCE))  # NaN is neither
    if wrong_DS.any():
        slot = int(wrong_DS.any(axis=0).argmax())
        return f"a share of expert {expert_S[slot]} on rank {placement.rank_S[slot]} is not within [0, 1]"
    cell_DS = np.arange(len(share_DS))[:, None] * num_experts + expert_S
    total_DE = np.bincount(cell_DS.ravel(), share_DS.ravel(), len(share_DS) * num_experts).reshape(-1, num_experts)
    off_DE = np.abs(total_DE - 1.0) > TOLERANCE
    if off_DE.any():
        domain, expert = np.argwhere(off_DE)[0].tolist()
        total = total_DE[domain, expert]
        return f"the shares of expert {expert} for source domain {domain} sum to {total:.6g}, not to 1"
    return ""


def _broken_survival(placement: Placement, num_experts: int, backups: Backups) -> str:
    hosts_of: list[set[int]] = [set() for _ in range(num_experts)]
    for expert, host in zip(placement.expert_S.tolist(), backups.host_R[placement.rank_S].tolist(), strict=True):
        hosts_of[expert].add(host)
    found = sum(len(hosts) > 1 for hosts in hosts_of)
    return "" if found >= backups.wanted else f"{found} experts have copies on two hosts, asked were {backups.wanted}"
