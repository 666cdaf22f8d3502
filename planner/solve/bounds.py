"""Lower bounds on the cost of every placement of a layer: what the gap in plan.json is measured against.

The maximum over resources is at least any weighted mean of them, so for weights on the links of each phase and on the
ranks every row has a price and every placement costs at least the sum of its cheapest prices:

    T >= start-up + launch + sum over experts ( rows served at the best price that the number of copies allows )

With one copy an expert serves one domain locally; each further copy saves at most what its own domain saves, so the
best use of the spare slots is to sort the savings. A second bound follows from the pigeonholes: at rank load t an
expert of load w needs ceil(w / t) slots.

Shapes: C source classes, E experts, R ranks, D domains, N links, F families of alike links.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.sparse as sp

from planner.cost import Phase
from planner.layer import LayerProblem
from planner.placement import FloatArray


def lower_bound(problem: LayerProblem) -> float:
    """Return a proven lower bound on `layer_us` over every placement with these slots and any shares.

    Where rows are counted by distinct target, a token sends at least its pairs there divided by the most pairs that it
    can have there; the bound is valid and loose.
    """
    cost = problem.cost
    fixed_us = cost.dispatch.alpha_us + cost.launch_us + cost.combine.alpha_us
    packed_us = float(cost.row_us_R.min()) * _pigeonhole_load(problem)
    level_us = float(problem.load_E.sum() / (1.0 / cost.row_us_R).sum())  # every rank equally long at its rows
    best = packed_us
    for dispatch_CR in _prices(problem, cost.dispatch):
        for combine_CR in _prices(problem, cost.combine):
            best = max(best, _priced_us(problem, dispatch_CR + combine_CR, compute=True))
            if packed_us > level_us:  # else the priced experts are the tighter half anyhow
                best = max(best, packed_us + _priced_us(problem, dispatch_CR + combine_CR, compute=False))
    return cost.layer_bound_us(fixed_us + best)


def _prices(problem: LayerProblem, phase: Phase) -> list[FloatArray]:
    """Return one price table [C, R] (microseconds of the phase per row) for each family of alike links."""
    C, R = len(problem.class_size_C), problem.num_ranks
    if not phase.link_names:
        return [np.zeros((C, R))]
    tables = []
    for weight_N in _families(phase):
        table_CR = np.zeros((C, R))
        for leg in phase.legs:
            price_CT = (leg.us_XN @ weight_N).reshape(C, -1)
            if leg.distinct:
                price_CT = price_CT / _most_pairs_per_row(problem, leg.target)
            table_CR += price_CT if leg.target == "rank" else price_CT[:, problem.domain_R]
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


def _most_pairs_per_row(problem: LayerProblem, target: str) -> float:
    assert problem.tokens is not None
    top_k = float(np.diff(problem.tokens.expert_PE.indptr).max())
    return min(top_k, float(problem.slots_R.max())) if target == "rank" else top_k


def _priced_us(problem: LayerProblem, price_CR: FloatArray, *, compute: bool) -> float:
    """Return the least total of prices over all placements: links, and with `compute` the mean rank's experts too."""
    C, E, D = len(problem.class_size_C), problem.num_experts, problem.num_domains
    inside_CR = problem.domain_R[None, :] == problem.class_domain_C[:, None]
    local_C = np.where(inside_CR, price_CR, np.inf).min(axis=1)
    remote_C = np.where(inside_CR, np.inf, price_CR).min(axis=1) if D > 1 else local_C
    rows_CE = problem.linked_rows_CE
    saving_DE = np.zeros((D, E))
    np.add.at(saving_DE, problem.class_domain_C, rows_CE * np.maximum(remote_C - local_C, 0.0)[:, None])
    base_E = remote_C @ rows_CE if C else np.zeros(E)

    slot_E = np.zeros(E)
    if compute:  # weights on ranks that make every rank's row equally dear
        weight_R = 1.0 / problem.cost.row_us_R
        weight_R = weight_R / weight_R.sum()
        base_E = base_E + problem.load_E * float((weight_R * problem.cost.row_us_R).min())
        slot_E = problem.active_E * float((weight_R * problem.cost.slot_us_R).min())

    sorted_DE = -np.sort(-saving_DE, axis=0)
    spare = int(problem.slots_R.sum()) - E
    extra = np.sort((sorted_DE[1:] - slot_E).ravel())[::-1][:spare]
    return float((base_E - sorted_DE[0] + slot_E).sum() - np.maximum(extra, 0.0).sum())


def _pigeonhole_load(problem: LayerProblem) -> float:
    """Return the least load of the most loaded rank that the slots allow, however the copies are shared."""
    load_E, slots_R = problem.load_E, problem.slots_R
    slots, R = int(slots_R.sum()), problem.num_ranks
    low, high = float(load_E.sum()) / R, float(max(load_E.max(), load_E.sum() / R))
    if np.ceil(load_E / max(low, np.finfo(float).tiny) - 1e-9).clip(1).sum() > slots:
        for _ in range(60):  # bisection keeps `low` infeasible, so `low` is a bound
            middle = (low + high) / 2
            if np.ceil(load_E / middle - 1e-9).clip(1).sum() > slots:
                low = middle
            else:
                high = middle
    if slots == len(load_E) and slots_R.min() == slots_R.max():  # every rank is full: the heaviest expert has company
        low = max(low, float(load_E.max() + np.sort(load_E)[: slots_R[0] - 1].sum()))
    return low
