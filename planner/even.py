"""What every serving engine can hold: as many slots on every rank, all of them in use, copies that serve alike.

Shapes: S slots, R ranks, E experts, D domains.
"""

from __future__ import annotations

import numpy as np

from planner.placement import FloatArray, Placement


def evened(placement: Placement, slots: int, load_E: FloatArray) -> Placement:
    """Return the placement with `slots` slots on every rank, none of them twice, and equal shares.

    Duplicates of an expert on one rank are merged; free slots get further copies of the busiest experts. A placement
    that is even already comes back as it is.
    """
    full = filled(placement.without_duplicates(), slots, load_E)
    equal = full.with_equal_shares()
    return full if np.array_equal(full.share_DS, equal.share_DS) else equal


def filled(placement: Placement, slots: int, load_E: FloatArray) -> Placement:
    """Return the placement with `slots` slots on every rank; the new ones serve nobody yet.

    Each takes an expert that the rank lacks, the one with the most load a copy.
    """
    if placement.slots_R.min() >= slots:
        return placement
    copies_E = placement.copies_E.astype(float)
    held_RE = np.zeros((placement.num_ranks, placement.num_experts), dtype=bool)
    held_RE[placement.rank_S, placement.expert_S] = True
    new_expert, new_rank = [], []
    for rank in np.argsort(placement.slots_R, kind="stable"):
        for _ in range(slots - int(placement.slots_R[rank])):
            expert = int(np.argmax(np.where(held_RE[rank], -1.0, load_E / copies_E)))
            held_RE[rank, expert] = True
            copies_E[expert] += 1
            new_expert.append(expert)
            new_rank.append(int(rank))
    expert_S = np.concatenate([placement.expert_S, np.array(new_expert, dtype=np.int64)])
    rank_S = np.concatenate([placement.rank_S, np.array(new_rank, dtype=np.int64)])
    share_DS = np.pad(placement.share_DS, ((0, 0), (0, len(new_rank))))
    order = np.argsort(rank_S, kind="stable")
    return Placement(expert_S[order], rank_S[order], share_DS[:, order], placement.num_experts, placement.num_ranks)
