"""From cluster, model and profile to the cost of a row on every resource: what the planner minimises.

Shapes: C source classes, R ranks, D domains, T targets (R or D), N resources (directed links), X = C * T flattened.
The cost of a communication phase is  alpha + max over N ( sum over legs  rows_X @ us_XN ).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import scipy.sparse as sp

from planner.placement import BoolArray, FloatArray, IntArray
from planner.prices import ExchangePrices, exchange_prices, expert_prices, shared_expert_us
from planner.provenance import Provenance, weakest
from planner.timing import Exchange, Overlap, PlanExchange, TimingProfile, rows_per_peer
from planner.workload import Workload
from topologies import BadInput, Cluster, rail_peers
from topologies.groups import shared_routes

Target = Literal["rank", "domain"]
Times = TypeVar("Times", float, FloatArray)
SLACK = 0.9  # pairs come from exact loads and rows from sampled tokens: a tenth covers the difference
MICRO_BATCH = 0.5  # part of the step in each of two micro-batches


@dataclass(frozen=True, eq=False)
class Leg:
    """One hop of an exchange: rows from source classes to targets, and what each row costs on every link.

    Attributes:
        target: whether rows are counted per destination rank or per destination domain.
        distinct: one row per token and target (True), or one per token-expert pair (False).
        us_XN: microseconds on link n for one row from each rank of class c to target t, row X = c * T + t.

    """

    target: Target
    distinct: bool
    us_XN: sp.csr_array

    @cached_property
    def crosses_N(self) -> BoolArray:
        """Return which links this leg can put rows on."""
        crosses_N: BoolArray = np.bincount(self.us_XN.indices, minlength=self.us_XN.shape[1]) > 0
        return crosses_N


@dataclass(frozen=True, eq=False)
class Phase:
    """Dispatch or combine: start-up time, legs over the same N links, and the names of the links."""

    alpha_us: float
    legs: tuple[Leg, ...]
    link_names: tuple[str, ...]


def slack_L(phase: Phase, us_LN: FloatArray) -> BoolArray:
    """Return in which of L layers the rank leg of a two-level phase is far from setting the pace.

    `us_LN` prices that leg by token-expert pairs, more rows than it can carry. Where even these stay well below the
    links between domains, its exact rows need not be counted: the slowest link is another.
    """
    inside_N = np.any([leg.crosses_N for leg in phase.legs if leg.target == "rank"], axis=0)
    if not inside_N.any():  # every domain is one rank
        return np.ones(len(us_LN), dtype=bool)
    if inside_N.all():
        return np.zeros(len(us_LN), dtype=bool)
    slack: BoolArray = us_LN[:, inside_N].max(axis=1) <= SLACK * us_LN[:, ~inside_N].max(axis=1)
    return slack


@dataclass(frozen=True, eq=False)
class StepCost:
    """The price list of a step, the same for every layer.

    Attributes:
        launch_us: fixed time of the experts' grouped GEMM.
        slot_us_R: time on each rank for one active expert, however few its rows (weights read, GEMM ramp).
        row_us_R: time on each rank for one row.
        overlap: how the phases share the time (see `LayerCost.layer_us`). With `two-batches` all prices are those of
            one of the two micro-batches: half of the rows, the same start-ups and the same weights read.
        shared_us: time of the shared experts, under which the dispatch hides with `shared-expert`.
        label, reasons: provenance of the numbers, and why they are not `fitted`.

    """

    exchange: PlanExchange
    dispatch: Phase
    combine: Phase
    launch_us: float
    slot_us_R: FloatArray
    row_us_R: FloatArray
    overlap: Overlap = "none"
    shared_us: float = 0.0
    label: Provenance = "vendor"
    reasons: tuple[str, ...] = ()

    def layer_us(self, dispatch_us: Times, compute_us: Times, combine_us: Times) -> Times:
        """Return the time that a layer takes, from the times of its three phases; of one layer, or arrays of many.

        none            dispatch + compute + combine
        shared-expert   max(dispatch - shared, 0) + compute + combine     what the routed experts add to the step:
                        the dispatch runs under the shared experts, which have to run anyhow
        two-batches     d + max(d, c) + max(c, b) + b     for halves d, c, b: batch 2 is sent while batch 1 is
                        computed, and computed while batch 1 comes back; the link carries one batch at a time
        """
        if self.overlap == "shared-expert":
            return _positive(dispatch_us - self.shared_us) + compute_us + combine_us
        if self.overlap == "two-batches":
            middle_us: Times = np.maximum(dispatch_us, compute_us) + np.maximum(compute_us, combine_us)
            return dispatch_us + middle_us + combine_us
        return dispatch_us + compute_us + combine_us

    def layer_bound_us(self, sum_us: Times) -> Times:
        """Return a lower bound on `layer_us` from one on dispatch + compute + combine.

        `none` is the sum itself. `shared-expert`: max(D - S, 0) + C + B >= D + C + B - S. `two-batches`: each maximum
        is at least the mean of its two, so the time is at least 1.5 d + c + 1.5 b >= d + c + b.
        """
        return _positive(sum_us - self.shared_us) if self.overlap == "shared-expert" else sum_us


def _positive(us: Times) -> Times:
    """Return the times, 0 for those below."""
    positive_us: Times = np.maximum(us, 0.0)
    return positive_us


_PRICE_LISTS: WeakKeyDictionary[Workload, dict[tuple[int, Exchange, str, Overlap], tuple[TimingProfile, StepCost]]] = (
    WeakKeyDictionary()
)


def step_cost(
    workload: Workload,
    profile: TimingProfile,
    exchange: Exchange,
    policy: str = "pxn",
    overlap: Overlap = "none",
) -> StepCost:
    """Build the price list of a workload under one exchange algorithm and one way to overlap its phases.

    The list is kept with the workload: asking again costs nothing. Raises BadInput where the profile lacks an
    efficiency for a kind of link that the cluster has, or the GPU a figure that the model needs.
    """
    kept = _PRICE_LISTS.setdefault(workload, {})
    key = (id(profile), exchange, policy, overlap)
    if key not in kept:  # the profile is kept beside its list, so that its id stays its own
        kept[key] = (profile, _step_cost(workload, profile, exchange, policy, overlap))
    return kept[key][1]


def _step_cost(
    workload: Workload, profile: TimingProfile, exchange: Exchange, policy: str, overlap: Overlap
) -> StepCost:
    cluster, model = workload.cluster, workload.model
    if overlap == "shared-expert" and not model.shared_intermediate:
        raise BadInput(f"overlap shared-expert: {model.name} has no shared experts to run under the dispatch")
    route_PN = shared_routes(cluster, policy)
    hops = _two_level_hops(workload) if exchange == "two-level" else _direct_hops(workload, exchange == "dedup")
    top_k = workload.rows_LCE.sum() / (workload.num_layers * workload.rows_LCE.shape[1] * workload.tokens_per_rank)
    peer_rows = rows_per_peer(exchange, workload.tokens_per_rank, top_k, cluster.num_ranks, cluster.num_domains)

    share = MICRO_BATCH if overlap == "two-batches" else 1.0

    def priced(op: str, row_bytes: float) -> ExchangePrices:
        return exchange_prices(
            profile, cluster, exchange, op, dtype=model.dispatch_dtype if op == "dispatch" else "bf16",
            tokens=share * workload.tokens_per_rank, message_bytes=share * peer_rows * row_bytes,
        )  # fmt: skip

    def phase(prices: ExchangePrices, row_bytes: float, *, back: bool) -> Phase:
        byte_us_N = link_byte_us(cluster, prices.efficiency, profile.name)
        row_us_N = sp.diags_array(byte_us_N * row_bytes * share)
        legs = [
            Leg(
                hop.target, hop.distinct, sp.csr_array(hop.selector(cluster.num_ranks, back=back) @ route_PN @ row_us_N)
            )
            for hop in hops
        ]
        names = tuple(f"{link.kind} {link.source} -> {link.target}" for link in cluster.links)
        return without_idle_links(Phase(prices.alpha_us, tuple(legs), names))

    out, back = priced("dispatch", model.dispatch_row_bytes), priced("combine", model.combine_row_bytes)
    experts = expert_prices(workload, profile, share)
    return StepCost(
        exchange=exchange,
        dispatch=phase(out, model.dispatch_row_bytes, back=False),
        combine=phase(back, model.combine_row_bytes, back=True),
        launch_us=experts.launch_us,
        slot_us_R=experts.slot_us_R,
        row_us_R=experts.row_us_R * share,
        overlap=overlap,
        shared_us=shared_expert_us(workload, profile) if overlap == "shared-expert" else 0.0,
        label=weakest((out.label, back.label, experts.label)),
        reasons=tuple(dict.fromkeys((*out.reasons, *back.reasons, *experts.reasons))),
    )


@dataclass(frozen=True, eq=False)
class _Hop:
    """The (source rank, destination rank) pairs behind each (class, target) of a leg."""

    target: Target
    distinct: bool
    num_rows: int
    row_H: IntArray
    source_H: IntArray
    destination_H: IntArray

    def selector(self, num_ranks: int, *, back: bool) -> sp.csr_array:
        """Return the 0/1 matrix [X, R * R] that sums pair routes into rows; `back` turns every pair round."""
        first_H, second_H = self.source_H, self.destination_H
        if back:
            first_H, second_H = second_H, first_H
        data = np.ones(len(self.row_H))
        column_H = first_H * num_ranks + second_H
        return sp.csr_array((data, (self.row_H, column_H)), shape=(self.num_rows, num_ranks**2))


def _direct_hops(workload: Workload, distinct: bool) -> list[_Hop]:
    R = workload.num_ranks
    class_R = workload.class_of_rank_R
    source_H, destination_H = np.divmod(np.arange(R * R), R)
    return [
        _Hop("rank", distinct, (class_R.max() + 1) * R, class_R[source_H] * R + destination_H, source_H, destination_H)
    ]


def _two_level_hops(workload: Workload) -> list[_Hop]:
    """Scale-out to the rank of the same rail in the destination's domain, then scale-up inside that domain."""
    R, D = workload.num_ranks, workload.num_domains
    class_R, domain_R = workload.class_of_rank_R, np.asarray(workload.cluster.domain_of_rank)
    C = int(class_R.max()) + 1
    peer_RD = rail_peers(workload.cluster.domain_of_rank, workload.cluster.rail_of_rank)
    source_out_H, domain_H = np.divmod(np.arange(R * D), D)
    out = _Hop("domain", True, C * D, class_R[source_out_H] * D + domain_H, source_out_H, peer_RD.ravel())
    source_H, destination_H = np.divmod(np.arange(R * R), R)
    relay_H = peer_RD[source_H, domain_R[destination_H]]
    up = _Hop("rank", True, C * R, class_R[source_H] * R + destination_H, relay_H, destination_H)
    return [out, up]


def link_byte_us(cluster: Cluster, efficiency: dict[str, float], profile_name: str) -> FloatArray:
    """Return microseconds per byte on every link; raises BadInput for a kind of link without an efficiency.

    Wires on one board (`local`) have no limit of their own and carry their full figure.
    """
    efficiency = {"local": 1.0, **efficiency}
    missing = sorted(set(cluster.link_kinds) - set(efficiency))
    if missing:
        raise BadInput(
            f"timing profile {profile_name}: no efficiency for {missing[0]!r} links of {cluster.name}; "
            f"it knows {', '.join(sorted(efficiency))}"
        )
    efficiency_N = np.array([efficiency[kind] for kind in cluster.link_kinds])
    return 1.0 / (efficiency_N * np.asarray(cluster.link_gbps) * 1e3)


def without_idle_links(phase: Phase) -> Phase:
    """Drop links that no row crosses, and links that always carry the same rows as a slower one."""
    stacked = sp.csc_array(sp.vstack([leg.us_XN for leg in phase.legs]))
    stacked.sort_indices()
    slowest: dict[bytes, tuple[float, int]] = {}
    for link in range(stacked.shape[1]):
        span = slice(stacked.indptr[link], stacked.indptr[link + 1])
        data = stacked.data[span]
        if data.size == 0:
            continue
        top = float(data.max())
        key = stacked.indices[span].tobytes() + np.round(data / top, 9).tobytes()
        if key not in slowest or top > slowest[key][0]:
            slowest[key] = (top, link)
    kept = sorted(link for _, link in slowest.values())
    legs = tuple(Leg(leg.target, leg.distinct, sp.csr_array(leg.us_XN[:, kept])) for leg in phase.legs)
    return Phase(phase.alpha_us, legs, tuple(phase.link_names[link] for link in kept))
