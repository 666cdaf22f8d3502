"""How many slots each layer gets on every rank, under a limit on memory: redundancy where it pays, or none at all.

1. A quick search (constructed placements and their shares, no descent) prices every layer at a few numbers of slots.
2. A multiple-choice knapsack takes one number for each layer (`planner.solve.knapsack`), or one for all of them where
   engines want that.
3. The whole search runs at these numbers (`planner.solve.solve`), and is compared with the baselines at the most slots
   that fit alike in every layer.

Shapes: L layers, R ranks, K numbers of slots.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planner.memory import MemoryUse, buffer_rows, memory_use, most_slots, size_text, slot_bytes
from planner.placement import FloatArray, IntArray, Placement
from planner.solve.knapsack import cheapest_within
from planner.solve.one_layer import Budget
from planner.solve.plan_layers import solve
from planner.solve.solution import Solution
from planner.timing import TimingProfile
from planner.workload import Workload
from topologies import BadInput, Infeasible

QUICK = Budget(domain_swaps=0, swaps=0, share_rounds=1, neighbourhoods=0, proof=False)
QUICK_PART = 0.3  # of a time limit
EXTRAS = (0, 1, 2, 4)  # slots beyond what the experts need that are priced, beside those that fit alike in all layers


@dataclass(frozen=True, eq=False)
class SlotBudget:
    """Slots of every layer, and what was known when they were chosen.

    Attributes:
        slots_L: slots of a layer on every rank.
        alike: the most slots that fit in every layer alike.
        us_LK, counts_K: what the quick search reached, in the objective's unit, at which numbers of slots.
        limit_bytes: that the plan may take of a rank; None where the number of slots was the limit.
        training: whether gradients and optimizer states are kept.

    """

    slots_L: IntArray
    alike: int
    us_LK: FloatArray
    counts_K: IntArray
    limit_bytes: int | None = None
    training: bool = False

    def slots_LR(self, num_ranks: int) -> IntArray:
        """Return the slots of each rank in each layer."""
        return np.repeat(self.slots_L[:, None], num_ranks, axis=1)

    def use(self, workload: Workload, placements: list[Placement]) -> MemoryUse:
        """Return what a plan takes of the fullest rank; layers without statistics hold each expert once."""
        slots = most_slots(placements) + _unplanned(workload) * _least(workload)
        return memory_use(workload, slots, buffer_rows(workload, placements), training=self.training)


def spend_memory(
    workload: Workload,
    profile: TimingProfile,
    limit_bytes: int,
    *,
    training: bool,
    even: bool,
    asked: Mapping[str, Any],
) -> SlotBudget:
    """Return the slots of every layer within `limit_bytes` of each rank; alike in all layers with `even`.

    `asked` are the options of `solve`. Raises Infeasible where not even every expert fits once, or the limit is more
    than a GPU has.
    """
    least = _least(workload)
    _check_gpus(workload, limit_bytes)
    _spare(workload, limit_bytes, 0, training=training)  # raises where there is no need to search
    quick = _Quick(workload, profile, even, asked, len(EXTRAS) + 1)
    rows = buffer_rows(workload, quick.placements(least))
    spare = _spare(workload, limit_bytes, rows, training=training)
    extra = min(spare // workload.num_layers, workload.num_experts - least)
    most = extra if even else min(spare, workload.num_experts - least)
    counts_K = np.array(sorted({least + e for e in (*EXTRAS, extra) if e <= most}))
    us_LK = np.stack([quick.us_L(count) for count in counts_K.tolist()], axis=1)
    slots_L = _spent(spare, us_LK, counts_K, even=even)
    return SlotBudget(slots_L, least + extra, us_LK, counts_K, limit_bytes, training)


def _spare(workload: Workload, limit_bytes: int, rows: int, *, training: bool) -> int:
    """Return the slots of a rank, all layers together, that fit beside each expert once and buffers of so many rows.

    Raises Infeasible where not even these fit.
    """
    slots = (workload.num_layers + _unplanned(workload)) * _least(workload)
    fixed = memory_use(workload, slots, rows, training=training)
    _check_fits(workload, fixed, limit_bytes)
    return (limit_bytes - fixed.total_bytes) // slot_bytes(workload.model, training=training)


def _spent(spare: int, us_LK: FloatArray, counts_K: IntArray, *, even: bool) -> IntArray:
    """Return the slots of every layer: at most `spare` beyond the fewest, all layers together."""
    layers, least = len(us_LK), int(counts_K[0])
    if even:
        fits_K = counts_K <= least + spare // layers
        return np.full(layers, counts_K[fits_K][us_LK[:, fits_K].sum(axis=0).argmin()])
    return counts_K[cheapest_within(list(us_LK), [counts_K] * layers, spare + least * layers)]


def best_even_slots(workload: Workload, profile: TimingProfile, most: int, *, asked: Mapping[str, Any]) -> SlotBudget:
    """Return the number of slots, at most `most` and the same in every layer, with which an even plan is fastest."""
    least = _least(workload)
    counts_K = np.array(sorted({least, most, *(least + e for e in EXTRAS if least + e <= most)}))
    if len(counts_K) == 1:
        us_LK = np.zeros((workload.num_layers, 1))
    else:
        quick = _Quick(workload, profile, True, asked, len(counts_K))
        us_LK = np.stack([quick.us_L(count) for count in counts_K.tolist()], axis=1)
    count = int(counts_K[us_LK.sum(axis=0).argmin()])
    return SlotBudget(np.full(workload.num_layers, count), most, us_LK, counts_K)


def solve_budgeted(
    workload: Workload, profile: TimingProfile, budget: SlotBudget, *, even: bool, asked: Mapping[str, Any]
) -> Solution:
    """Search at the slots of a budget; never worse than the best baseline at the most slots that fit alike.

    A plan whose buffers need more than was set aside for them is searched again with fewer slots. The baselines that
    come back are those at the slots that fit alike in every layer. Raises Infeasible where no number of slots leaves
    room for the buffers.
    """
    found = _solve_at(workload, profile, budget, 1.0 - QUICK_PART, even=even, asked=asked)
    while budget.limit_bytes is not None and budget.use(workload, found.placements).total_bytes > budget.limit_bytes:
        # its slots fit beside the rows set aside so far, so it has more rows than these: this comes to an end
        budget = _beside(buffer_rows(workload, found.placements), budget, workload, even=even)
        found = _solve_at(workload, profile, budget, QUICK_PART, even=even, asked=asked)
    return found


def _beside(rows: int, budget: SlotBudget, workload: Workload, *, even: bool) -> SlotBudget:
    """Return the budget that leaves room for buffers of so many rows; raises Infeasible where there is none."""
    assert budget.limit_bytes is not None
    spare = _spare(workload, budget.limit_bytes, rows, training=budget.training)
    slots_L = _spent(spare, budget.us_LK, budget.counts_K, even=even)
    return replace(budget, slots_L=slots_L, alike=min(_least(workload) + spare // workload.num_layers, budget.alike))


def _solve_at(
    workload: Workload, profile: TimingProfile, budget: SlotBudget, part: float, *, even: bool, asked: Mapping[str, Any]
) -> Solution:
    """Search at the slots of a budget in a part of the time limit, if there is one; or take the best baseline."""
    options = dict(asked)
    if options.get("time_limit_s") is not None:
        options["time_limit_s"] *= part
    found = solve(workload, profile, budget.slots_LR(workload.num_ranks), even=even, **options)
    if (budget.slots_L == budget.alike).all():
        return found
    alike_R = np.full(workload.num_ranks, budget.alike)
    options["time_limit_s"] = 0
    alike = solve(workload, profile, alike_R, even=even, **options)  # under the exchange that suits the baselines best
    if sum(layer.objective for layer in alike.layers) < sum(layer.objective for layer in found.layers):
        return replace(alike, seconds=found.seconds + alike.seconds)
    same = alike
    if alike.exchange != found.exchange:
        same = solve(workload, profile, alike_R, even=even, **options | {"exchange": found.exchange})
    compared = (*same.predictions[:-1], found.predictions[-1])
    return replace(found, baselines=alike.baselines, predictions=compared, rival=alike.rival)


class _Quick:
    """The quick search of a workload at any number of slots on every rank; each number is searched once."""

    def __init__(
        self, workload: Workload, profile: TimingProfile, even: bool, asked: Mapping[str, Any], numbers: int
    ) -> None:
        self._workload, self._profile, self._even = workload, profile, even
        self._asked = dict(asked) | {"budget": QUICK, "on_layer": lambda _: None}
        limit_s = self._asked.get("time_limit_s")
        if limit_s is not None:
            self._asked["time_limit_s"] = QUICK_PART * limit_s / numbers
        self._found: dict[int, Solution] = {}

    def placements(self, slots: int) -> list[Placement]:
        """Return the placements at so many slots."""
        return self._solution(slots).placements

    def us_L(self, slots: int) -> FloatArray:
        """Return the objective of every layer; never above that of fewer slots that were searched before."""
        us_L: FloatArray = np.array([layer.objective for layer in self._solution(slots).layers])
        if self._even:
            return us_L
        fewer = [self.us_L(count) for count in self._found if count < slots]
        least_L: FloatArray = np.minimum.reduce([us_L, *fewer])
        return least_L

    def _solution(self, slots: int) -> Solution:
        if slots not in self._found:
            slots_R = np.full(self._workload.num_ranks, slots)
            self._found[slots] = solve(self._workload, self._profile, slots_R, even=self._even, **self._asked)
            self._asked["exchange"] = self._found[slots].exchange  # times are compared under one exchange
        return self._found[slots]


def _least(workload: Workload) -> int:
    """Return the slots on every rank that hold each expert once."""
    return -(-workload.num_experts // workload.num_ranks)


def _unplanned(workload: Workload) -> int:
    """Return the MoE layers of the model that have no statistics."""
    return len(workload.model.moe_layers) - workload.num_layers


def _check_gpus(workload: Workload, limit_bytes: int) -> None:
    smallest = min(workload.cluster.gpus, key=lambda gpu: gpu.memory_bytes)
    if limit_bytes > smallest.memory_bytes:
        raise Infeasible(
            f"--memory-per-rank {limit_bytes / 1e9:g} GB is over the {size_text(smallest.memory_bytes)} of "
            f"{smallest.name} by {size_text(limit_bytes - smallest.memory_bytes)}; nearest feasible: "
            f"--memory-per-rank {smallest.memory_bytes / 1e9:g}"
        )


def _check_fits(workload: Workload, use: MemoryUse, limit_bytes: int) -> None:
    if use.total_bytes <= limit_bytes:
        return
    model, ranks = workload.model, workload.num_ranks
    step = 10.0 ** (math.floor(math.log10(use.total_bytes)) - 2)  # three digits
    raise Infeasible(
        f"memory: every expert once is {_least(workload)} slots x {len(model.moe_layers)} layers of {model.name} on "
        f"each of {ranks} ranks: {size_text(use.total_bytes)} with what goes with them, over --memory-per-rank "
        f"{limit_bytes / 1e9:g} by {size_text(use.total_bytes - limit_bytes)}; nearest feasible: "
        f"--memory-per-rank {math.ceil(use.total_bytes / step) * step / 1e9:g}, or more ranks"
    )


def check_limit(memory_gb: float) -> int:
    """Return a limit in bytes; raises BadInput for what is no amount of memory."""
    if not (np.isfinite(memory_gb) and memory_gb > 0):
        raise BadInput(f"--memory-per-rank is {memory_gb}, must be a finite number of GB above 0")
    return int(memory_gb * 1e9)
