"""Lower bounds on the cost of every placement of a layer: what the gap in plan.json is measured against.

The maximum over resources is at least any weighted mean of them, so for weights on the links of each phase and on the
ranks every row has a price and every placement costs at least the sum of its cheapest prices:

    T >= start-up + launch + sum over experts ( rows served at the best price that the number of copies allows )

With one copy an expert serves one domain locally; each further copy saves at most what its own domain saves, so the
best use of the spare slots is to sort the savings. A second bound follows from the pigeonholes: at rank load t an
expert of load w needs ceil(w / t) slots. Many layers are bounded at once: what a link asks is the same for all.

Shapes: L layers, C source classes, E experts, R ranks, D domains, N links, F families of alike links.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import scipy.sparse as sp

from planner.cost import Phase, StepCost
from planner.layer import LayerProblem
from planner.placement import BoolArray, FloatArray, IntArray
from planner.step_rows import linked_rows_LCE, step_tokens
from planner.workload import Workload


@dataclass(frozen=True, eq=False)
class BoundedLayers:
    """What a bound sees of some layers.

    Attributes:
        cost: the price list.
        rows_CLE: pairs behind the rows on links, from one rank of each class.
        load_LE, active_LE: pairs of each expert over all ranks, and the chance that it gets any.
        most_pairs_L: most experts that a token visits; None where rows are not counted over tokens.
        class_domain_C, domain_R: domains of classes and ranks.
        slots_R: slots that each rank may use.

    """

    cost: StepCost
    rows_CLE: FloatArray
    load_LE: FloatArray
    active_LE: FloatArray
    most_pairs_L: IntArray | None
    class_domain_C: IntArray
    domain_R: IntArray
    slots_R: IntArray

    @classmethod
    def of_workload(cls, workload: Workload, cost: StepCost, slots_R: IntArray) -> BoundedLayers:
        """Take all layers of a workload."""
        counted = any(leg.distinct for leg in cost.dispatch.legs)
        rows_LCE = linked_rows_LCE(workload) if counted else workload.rows_LCE
        return cls(
            cost=cost,
            rows_CLE=np.ascontiguousarray(rows_LCE.transpose(1, 0, 2)),
            load_LE=workload.load_LE,
            active_LE=1.0 - np.exp(-workload.load_LE),
            most_pairs_L=step_tokens(workload).most_pairs_L if counted else None,
            class_domain_C=workload.class_domain_C,
            domain_R=np.asarray(workload.cluster.domain_of_rank, dtype=np.int64),
            slots_R=np.asarray(slots_R, dtype=np.int64),
        )

    @classmethod
    def of_problem(cls, problem: LayerProblem) -> BoundedLayers:
        """Take a single layer."""
        most = None if problem.tokens is None else np.diff(problem.tokens.expert_PE.indptr).max(keepdims=True)
        return cls(
            cost=problem.cost,
            rows_CLE=problem.linked_rows_CE[:, None],
            load_LE=problem.load_E[None],
            active_LE=problem.active_E[None],
            most_pairs_L=most,
            class_domain_C=problem.class_domain_C,
            domain_R=problem.domain_R,
            slots_R=problem.slots_R,
        )

    @property
    def spare(self) -> int:
        """Return the slots beyond one for each expert."""
        return int(self.slots_R.sum()) - int(self.load_LE.shape[1])

    def where(self, chosen_L: BoolArray) -> BoundedLayers:
        """Return some of the layers."""
        most = None if self.most_pairs_L is None else self.most_pairs_L[chosen_L]
        return replace(
            self,
            rows_CLE=self.rows_CLE[:, chosen_L],
            load_LE=self.load_LE[chosen_L],
            active_LE=self.active_LE[chosen_L],
            most_pairs_L=most,
        )


def lower_bound(problem: LayerProblem) -> float:
    """Return a proven lower bound on `layer_us` over every placement with these slots and any shares."""
    return float(lower_bounds(BoundedLayers.of_problem(problem))[0])


def lower_bounds(layers: BoundedLayers) -> FloatArray:
    """Return the lower bound of each layer [L].

    Where rows are counted by distinct target, a token sends at least its pairs there divided by the most pairs that it
    can have there; the bound is valid and loose.
    """
    if layers.most_pairs_L is None:
        return _alike_bounds(layers, None)
    bound_L = np.empty(len(layers.load_LE))
    for most in np.unique(layers.most_pairs_L):
        alike_L = layers.most_pairs_L == most
        bound_L[alike_L] = _alike_bounds(layers.where(alike_L), float(most))
    return bound_L


def imbalance_bounds(load_LE: FloatArray, slots_R: IntArray) -> FloatArray:
    """Return the least imbalance (max over ranks / mean of token-expert pairs) of each layer [L] in these slots."""
    mean_L = load_LE.sum(axis=1) / len(slots_R)
    bound_L: FloatArray = np.maximum(pigeonhole_loads(load_LE, slots_R) / np.maximum(mean_L, np.finfo(float).tiny), 1.0)
    return bound_L


def _alike_bounds(layers: BoundedLayers, most_pairs: float | None) -> FloatArray:
    """Bound layers whose tokens visit equally many experts."""
    cost, load_LE = layers.cost, layers.load_LE
    fixed_us = cost.dispatch.alpha_us + cost.launch_us + cost.combine.alpha_us
    packed_us_L = float(cost.row_us_R.min()) * pigeonhole_loads(load_LE, layers.slots_R)
    level_us_L = load_LE.sum(axis=1) / (1.0 / cost.row_us_R).sum()  # every rank equally long at its rows
    tight_L = packed_us_L > level_us_L  # else the priced experts are the tighter half anyhow
    packed = layers.where(tight_L)
    best_L = packed_us_L.copy()
    for local_C, remote_C in _cheapest_prices(layers, most_pairs):
        best_L = np.maximum(best_L, _priced_us(layers, local_C, remote_C, best_L, compute=True))
        if tight_L.any():
            base_L = packed_us_L[tight_L]
            links_L = _priced_us(packed, local_C, remote_C, best_L[tight_L] - base_L, compute=False)
            best_L[tight_L] = np.maximum(best_L[tight_L], base_L + links_L)
    return cost.layer_bound_us(fixed_us + best_L)


def _cheapest_prices(layers: BoundedLayers, most_pairs: float | None) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield, for each pair of families of alike links, the cheapest row inside each class's own domain and outside."""
    D = int(layers.domain_R.max()) + 1
    inside_CR = layers.domain_R[None, :] == layers.class_domain_C[:, None]
    cost = layers.cost
    for dispatch_CR in _prices(layers, cost.dispatch, most_pairs):
        for combine_CR in _prices(layers, cost.combine, most_pairs):
            price_CR = dispatch_CR + combine_CR
            local_C = np.where(inside_CR, price_CR, np.inf).min(axis=1)
            yield local_C, np.where(inside_CR, np.inf, price_CR).min(axis=1) if D > 1 else local_C


def _prices(layers: BoundedLayers, phase: Phase, most_pairs: float | None) -> list[FloatArray]:
    """Return one price table [C, R] (microseconds of the phase per pair) for each family of alike links."""
    C, R = len(layers.class_domain_C), len(layers.domain_R)
    if not phase.link_names:
        return [np.zeros((C, R))]
    tables = []
    for weight_N in _families(phase):
        table_CR = np.zeros((C, R))
        for leg in phase.legs:
            price_CT = (leg.us_XN @ weight_N).reshape(C, -1)
            if leg.distinct:
                assert most_pairs is not None
                price_CT = price_CT / (min(most_pairs, layers.slots_R.max()) if leg.target == "rank" else most_pairs)
            table_CR += price_CT if leg.target == "rank" else price_CT[:, layers.domain_R]
        tables.append(table_CR)
    return tables


@lru_cache(maxsize=16)
def _families(phase: Phase) -> FloatArray:
    """Return even weights [F, N] over each family of links that carry alike: as many prices, the same total.

    Kept for the phases seen last, since all layers of a workload share them.
    """
    columns = sp.csc_array(sp.vstack([leg.us_XN for leg in phase.legs]))
    total_N, count_N = np.asarray(columns.sum(axis=0)).ravel(), np.diff(columns.indptr)
    keys = np.stack([np.round(total_N / total_N.max(), 9), count_N], axis=1)
    _, family_N = np.unique(keys, axis=0, return_inverse=True)
    member_FN = family_N.ravel()[None, :] == np.arange(int(family_N.max()) + 1)[:, None]
    weight_FN: FloatArray = member_FN / member_FN.sum(axis=1, keepdims=True)
    return weight_FN


def _priced_us(
    layers: BoundedLayers, local_C: FloatArray, remote_C: FloatArray, known_L: FloatArray, *, compute: bool
) -> FloatArray:
    """Return the least total of prices over all placements: links, and with `compute` the mean rank's experts too.

    Layers whose total would not exceed `known_L` even without any spare slot are spared the sorting: theirs may come
    out too high, but never above `known_L`.
    """
    cost, D = layers.cost, int(layers.domain_R.max()) + 1
    total_L: FloatArray = layers.rows_CLE.sum(axis=2).T @ remote_C
    slot_us, gain_C = 0.0, np.maximum(remote_C - local_C, 0.0)
    if compute:  # weights on ranks that make every rank's row equally dear
        weight_R = 1.0 / cost.row_us_R
        weight_R = weight_R / weight_R.sum()
        slot_us = float((weight_R * cost.slot_us_R).min())
        total_L = total_L + layers.load_LE.sum(axis=1) * float((weight_R * cost.row_us_R).min())
    slot_LE = slot_us * layers.active_LE
    total_L = total_L + slot_LE.sum(axis=1)
    if not gain_C.any():
        return total_L
    saving_DLE = np.zeros((D, *layers.load_LE.shape))
    for c, d in enumerate(layers.class_domain_C):
        saving_DLE[d] += gain_C[c] * layers.rows_CLE[c]
    total_L = total_L - saving_DLE.max(axis=0).sum(axis=1)
    open_L = total_L > known_L
    if layers.spare > 0 and D > 1 and open_L.any():
        total_L[open_L] -= _best_extras(saving_DLE[:, open_L], slot_LE[open_L], layers.spare)
    return total_L


def _best_extras(saving_DLE: FloatArray, slot_LE: FloatArray, spare: int) -> FloatArray:
    """Return what the `spare` most useful further copies save in each layer, the first copy being the best one."""
    extra_DLE = saving_DLE - slot_LE
    np.put_along_axis(extra_DLE, saving_DLE.argmax(axis=0)[None], 0.0, axis=0)
    extra_LX = extra_DLE.transpose(1, 0, 2).reshape(len(slot_LE), -1)
    if spare < extra_LX.shape[1]:
        extra_LX = np.partition(extra_LX, extra_LX.shape[1] - spare, axis=1)[:, -spare:]
    saved_L: FloatArray = np.maximum(extra_LX, 0.0).sum(axis=1)
    return saved_L


def pigeonhole_loads(load_LE: FloatArray, slots_R: IntArray) -> FloatArray:
    """Return the least load of each layer's most loaded rank that the slots allow, however the copies are shared."""
    slots, E = int(slots_R.sum()), load_LE.shape[1]
    low_L: FloatArray = load_LE.sum(axis=1) / len(slots_R)
    scarce_L = _too_few(load_LE, low_L, slots)
    if scarce_L.any():
        scarce_LE, low, high = load_LE[scarce_L], low_L[scarce_L], np.maximum(load_LE.max(axis=1), low_L)[scarce_L]
        for _ in range(60):  # bisection keeps `low` infeasible, so `low` is a bound
            middle = (low + high) / 2
            too_few = _too_few(scarce_LE, middle, slots)
            low, high = np.where(too_few, middle, low), np.where(too_few, high, middle)
        low_L[scarce_L] = low
    if slots == E and slots_R.min() == slots_R.max():  # every rank is full: the heaviest expert has company
        company_L = np.sort(load_LE, axis=1)[:, : slots_R[0] - 1].sum(axis=1)
        low_L = np.maximum(low_L, load_LE.max(axis=1) + company_L)
    return low_L


def _too_few(load_LE: FloatArray, most_L: FloatArray, slots: int) -> BoolArray:
    """Return in which layers the slots do not suffice for copies of a load of at most `most_L` each."""
    copies_LE = np.ceil(load_LE / np.maximum(most_L, np.finfo(float).tiny)[:, None] - 1e-9).clip(1)
    too_few_L: BoolArray = copies_LE.sum(axis=1) > slots
    return too_few_L
