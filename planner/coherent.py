"""What a step costs under the coherent exchange (`planner.coherent_rows`): its layers all together, from one trace.

Dispatch and combine are those of `dedup` or of `two-level`, whichever is faster for the whole step: the one has one
start-up less, the other crosses between domains once. Tiers overlap, as for `two-level`; phases do not. The gather
comes once, after the last layer, and is counted into that layer's combine. Not counted: attention, which runs where the
tokens are, however unevenly they lie, and the keys and values of all layers, which every rank has to have or to fetch.

Shapes: L layers, R ranks, N links.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np
import scipy.sparse as sp

from planner.coherent_rows import WAYS, CoherentRows, TokenWays, Way
from planner.cost import Leg, Phase, StepCost, link_byte_us, without_idle_links
from planner.layer import LayerCost, phase_us
from planner.placement import FloatArray, IntArray, Placement
from planner.predict import LayerPrediction, Prediction
from planner.prices import ExchangePrices, exchange_prices, expert_prices
from planner.provenance import weakest
from planner.timing import Overlap, TimingProfile, rows_per_peer
from planner.workload import Workload
from topologies import BadInput
from topologies.groups import shared_routes


def predict_coherent(
    name: str, placements: Sequence[Placement], workload: Workload, profile: TimingProfile, overlap: Overlap = "none"
) -> Prediction:
    """Predict every layer of a plan under the coherent exchange; BadInput without a trace of several layers."""
    if overlap != "none":
        raise BadInput(f"--overlap {overlap}: --exchange coherent is predicted without overlap only; leave one out")
    both = (coherent_step(workload, profile, way).predict(name, placements) for way in WAYS)
    return min(both, key=lambda prediction: prediction.total_us)


_STEPS: WeakKeyDictionary[Workload, dict[tuple[int, Way], tuple[TimingProfile, CoherentStep]]] = WeakKeyDictionary()


def coherent_step(workload: Workload, profile: TimingProfile, way: Way) -> CoherentStep:
    """Return the step of a workload; it is kept with the workload."""
    kept, key = _STEPS.setdefault(workload, {}), (id(profile), way)
    if key not in kept:  # the profile is kept beside it, so that its id stays its own
        kept[key] = (profile, CoherentStep(TokenWays(workload, way), workload, profile))
    return kept[key][1]


class CoherentStep:
    """The tokens of a step and the prices of their ways.

    Attributes:
        ways: the tokens of the trace.
        cost: the price list; its phases take bytes from rank to rank.
        load_LE: token-expert pairs of each expert in the step.

    """

    def __init__(self, ways: TokenWays, workload: Workload, profile: TimingProfile) -> None:
        """Price the links and ranks of a workload's cluster."""
        out, back = (_prices(workload, profile, ways, op) for op in ("dispatch", "combine"))
        experts = expert_prices(workload, profile)
        self.ways, self._model, self._layers = ways, workload.model, workload.layers
        self._times = np.float64(workload.tokens_per_rank * workload.num_ranks / len(ways.home_P))  # for one traced
        self.load_LE = self._times * np.stack([_visits_E(ids_PK, workload.num_experts) for ids_PK in ways.ids_LPK])
        self.cost = StepCost(
            exchange="coherent",
            dispatch=_phase(workload, out, profile.name),
            combine=_phase(workload, back, profile.name),
            launch_us=experts.launch_us,
            slot_us_R=experts.slot_us_R,
            row_us_R=experts.row_us_R,
            label=weakest((out.label, back.label, experts.label)),
            reasons=tuple(dict.fromkeys((*out.reasons, *back.reasons, *experts.reasons))),
        )

    def layer(self, row: int, placement: Placement, rows: CoherentRows) -> LayerCost:
        """Price one layer, the last one without the gather."""
        cost, model = self.cost, self._model
        out_RR = model.dispatch_row_bytes * rows.sent_RR + model.combine_row_bytes * rows.moved_RR
        load_R = rows.load_R * self._times
        active_E = -np.expm1(-self.load_LE[row])  # Poisson: the step's count of a rare expert varies
        active_S = active_E[placement.expert_S] * (placement.share_DS.max(axis=0) > 0)
        active_R = np.bincount(placement.rank_S, active_S, placement.num_ranks)
        return LayerCost(
            cost=cost,
            load_R=load_R,
            dispatch_us_N=self._us_N(cost.dispatch, out_RR),
            compute_us_R=cost.slot_us_R * active_R + cost.row_us_R * load_R,
            combine_us_N=self._us_N(cost.combine, model.combine_row_bytes * rows.back_RR),
            counted={},
        )

    def gather_us(self, at_P: IntArray) -> float:
        """Return the time of the gather, with the tokens on the ranks `at_P`."""
        bytes_RR = self._model.combine_row_bytes * self.ways.gathered_RR(at_P)
        return self.cost.combine.alpha_us + float(self._us_N(self.cost.combine, bytes_RR).max(initial=0.0))

    def predict(self, name: str, placements: Sequence[Placement]) -> Prediction:
        """Predict a plan of all layers."""
        layers, at_P = [], self.ways.home_P
        for row, (number, placement) in enumerate(zip(self._layers, placements, strict=True)):
            rows = self.ways.rows(row, placement, at_P)
            one, at_P = self.layer(row, placement, rows), rows.at_P
            times = (one.dispatch_us, one.compute_us, one.combine_us)
            layers.append(LayerPrediction(number, one.imbalance, *times, one.layer_us, one.bottleneck))
        layers[-1] = _with_gather(layers[-1], self.gather_us(at_P))
        slots_R = np.sum([placement.slots_R for placement in placements], axis=0)
        memory_bytes = int(slots_R.max()) * self._model.expert_bytes
        return Prediction(
            name, "coherent", tuple(layers), memory_bytes, provenance=self.cost.label, reasons=self.cost.reasons
        )

    def _us_N(self, phase: Phase, bytes_RR: IntArray) -> FloatArray:
        return phase_us(phase, {("rank", False): bytes_RR * self._times})


def _with_gather(last: LayerPrediction, gather_us: float) -> LayerPrediction:
    return replace(
        last,
        combine_us=last.combine_us + gather_us,
        layer_us=last.layer_us + gather_us,
        bottleneck="gather of all tokens" if gather_us > max(last.dispatch_us, last.compute_us) else last.bottleneck,
    )


def _visits_E(ids_PK: IntArray, num_experts: int) -> IntArray:
    return np.bincount(ids_PK[ids_PK >= 0], minlength=num_experts)


def _prices(workload: Workload, profile: TimingProfile, ways: TokenWays, op: str) -> ExchangePrices:
    """Return the prices of dispatch or combine: those of the plain exchange whose way the rows take."""
    cluster, model, tokens = workload.cluster, workload.model, workload.tokens_per_rank
    pairs = float((ways.ids_LPK >= 0).sum()) / (len(ways.ids_LPK) * len(ways.home_P))
    peer_rows = rows_per_peer(ways.way, tokens, pairs, cluster.num_ranks, cluster.num_domains)
    row_bytes = model.dispatch_row_bytes if op == "dispatch" else model.combine_row_bytes
    return exchange_prices(
        profile, cluster, ways.way, op, tokens=tokens, message_bytes=peer_rows * row_bytes,
        dtype=model.dispatch_dtype if op == "dispatch" else "bf16",
    )  # fmt: skip


def _phase(workload: Workload, prices: ExchangePrices, profile_name: str) -> Phase:
    """Return a phase whose rows are the bytes from every rank to every other one."""
    cluster = workload.cluster
    byte_us_N = link_byte_us(cluster, prices.efficiency, profile_name)
    names = tuple(f"{link.kind} {link.source} -> {link.target}" for link in cluster.links)
    leg = Leg("rank", False, sp.csr_array(shared_routes(cluster) @ sp.diags_array(byte_us_N)))
    return without_idle_links(Phase(prices.alpha_us, (leg,), names))
