"""A lower bound by prices: the maximum over resources is at least any weighted mean of them.

For weights on the links of each phase and on the ranks every row has a price, and every placement costs at least the
sum of its cheapest prices:

    T >= start-up + launch + sum over experts ( rows served at the best price that the number of copies allows )

With one copy an expert serves one domain locally; each further copy saves at most what its own domain saves, so the
best use of the spare slots is to sort the savings. A second bound follows from the pigeonholes: at rank load t an
expert of load w needs ceil(w / t) slots. Many layers are bounded at once: what a link asks is the same for all.

Shapes: L layers, C source classes, E experts, R ranks, D domains, N links, F _families of alike links.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import scipy.sparse as sp

from planner.cost import Phase
from planner.placement import BoolArray, FloatArray, IntArray
from planner.solve.bounds.layers import BoundedLayers


def priced_bounds(layers: BoundedLayers) -> FloatArray:
    """Return the lower bound of each layer [L] on dispatch + experts + combine, without start-up and launch."""
    cost, load_LE = layers.cost, layers.load_LE
    most_L = pigeonhole_loads(load_LE, layers.slots_R)
    packed_us_L = _busiest_us(layers, most_L, cost.row_us_R)
    slot_rows = float((cost.slot_us_R / cost.row_us_R).min())  # rows that take as long as an active expert by itself
    level_rows_L = load_LE.sum(axis=1) + slot_rows * layers.active_LE.sum(axis=1)
    level_us_L = level_rows_L / (1.0 / cost.row_us_R).sum()  # every rank equally long at them
    tight_L = packed_us_L > level_us_L  # else the priced experts are the tighter half anyhow
    packed = layers.where(tight_L)
    best_L = _busiest_us(layers, most_L, cost.row_us_R + _own_links_us_R(layers))
    for local_C, remote_C in _cheapest_prices(layers):
        best_L = np.maximum(best_L, _priced_us(layers, local_C, remote_C, best_L, compute=True))
        if tight_L.any():
            base_L = packed_us_L[tight_L]
            links_L = _priced_us(packed, local_C, remote_C, best_L[tight_L] - base_L, compute=False)
            best_L[tight_L] = np.maximum(best_L[tight_L], base_L + links_L)
    return best_L


def _busiest_us(layers: BoundedLayers, most_L: FloatArray, row_us_R: FloatArray) -> FloatArray:
    """Return the least time of each layer's most loaded rank, which has `most_L` rows: these, and weights to read.

    A rank of load t holds experts of as much load in all, so at least 1 - exp(-t) of them are active: the chance that
    an expert of load w gets a token, 1 - exp(-w), is concave.
    """
    busiest_us_L: FloatArray = float(row_us_R.min()) * most_L - float(layers.cost.slot_us_R.min()) * np.expm1(-most_L)
    return busiest_us_L


def _own_links_us_R(layers: BoundedLayers) -> FloatArray:
    """Return what a row to each rank takes on the slowest link that all rows to this rank cross, out and back.

    Only where all sources are alike and every pair is a row: else some rows to the rank may take another way.
    """
    own_us_R = np.zeros(len(layers.domain_R))
    if len(layers.class_domain_C) > 1:
        return own_us_R
    for phase in (layers.cost.dispatch, layers.cost.combine):
        for leg in phase.legs:
            if leg.target == "rank" and not leg.distinct and leg.us_XN.shape[1]:
                own_us_R += leg.us_XN.max(axis=1).toarray().ravel() / len(own_us_R)  # of a row from each of the R ranks
    return own_us_R


def _cheapest_prices(layers: BoundedLayers) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield, for each pair of _families of alike links, the cheapest row inside each class's own domain and outside."""
    D = layers.num_domains
    inside_CR = layers.domain_R[None, :] == layers.class_domain_C[:, None]
    cost = layers.cost
    for dispatch_CR in _prices(layers, cost.dispatch):
        for combine_CR in _prices(layers, cost.combine):
            price_CR = dispatch_CR + combine_CR
            local_C = np.where(inside_CR, price_CR, np.inf).min(axis=1)
            yield local_C, np.where(inside_CR, np.inf, price_CR).min(axis=1) if D > 1 else local_C


def _prices(layers: BoundedLayers, phase: Phase) -> list[FloatArray]:
    """Return one price table [C, R] (microseconds of the phase per row) for each family of alike links."""
    C, R = len(layers.class_domain_C), len(layers.domain_R)
    if not phase.link_names:
        return [np.zeros((C, R))]
    tables = []
    for weight_N in _families(phase):
        table_CR = np.zeros((C, R))
        for leg in phase.legs:
            price_CT = (leg.us_XN @ weight_N).reshape(C, -1)
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
    cost, D = layers.cost, layers.num_domains
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
