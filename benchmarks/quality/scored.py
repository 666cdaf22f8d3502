"""What a case is made of: inputs, plans on them, and what plans and baselines cost there.

Shapes: L layers, C source classes, T targets (ranks or domains).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.plans import DATA, path_of
from planner import build_workload, load_cluster, load_model, load_profile, load_routing, slots_of_ranks
from planner.cost import step_cost
from planner.placement import IntArray, Placement
from planner.predict import PlanCounts
from planner.routing import Routing
from planner.solve.incumbents import Incumbents, place_baselines
from planner.step_rows import StepSlots
from planner.timing import EXCHANGES, Exchange
from planner.workload import Workload
from topologies import Cluster

TRACES = ("intent", "summary")
PROFILE = load_profile("vendor")


@dataclass(frozen=True)
class Score:
    """What placements of all layers cost on a workload, predicted.

    Attributes:
        name: of the plan or baseline.
        exchange: that carries it.
        layer_us: predicted time of each layer.
        imbalance, worst_imbalance: mean and worst of the layers, max / mean over ranks of token-expert pairs.
        rows: rows that leave their domain (where there is one domain: their rank) in one dispatch, mean of the layers.

    """

    name: str
    exchange: Exchange
    layer_us: tuple[float, ...]
    imbalance: float
    worst_imbalance: float
    rows: float

    @property
    def total_us(self) -> float:
        """Sum of all layers."""
        return sum(self.layer_us)

    def to_json(self) -> dict[str, Any]:
        """Return what is kept of it; microseconds to a thousandth."""
        return {**asdict(self), "layer_us": [round(us, 3) for us in self.layer_us], "total_us": self.total_us}


def statistics(file: str) -> Routing:
    """Read expert counts of DeepSeek-V3."""
    return load_routing(path_of(file), load_model("deepseek-v3"))


def halves(trace: str) -> tuple[Routing, Routing]:
    """Read a trace of DeepSeek-V2-Lite: its first half to plan on, its second half to score on."""
    path = DATA / "routing" / "esft_deepseek_v2_lite" / f"{trace}_topk.npz"
    return load_routing(path, load_model("deepseek-v2-lite")).split(0.5)


def counts_workload(file: str, cluster: str, tokens: float, layers: int | None = None) -> Workload:
    """Return a step of DeepSeek-V3 with a file's expert loads; of so many layers, evenly spread, or of all."""
    routing = statistics(file)
    if layers is not None:
        rows = np.linspace(0, routing.num_layers - 1, min(layers, routing.num_layers)).round().astype(int)
        routing = routing.select(routing.layers[row] for row in rows)
    return build_workload(load_model("deepseek-v3"), load_cluster(cluster), routing, tokens)


def hosts_of_h100(hosts: int, ranks: int) -> Cluster:
    """Return the first GPUs of each of some HGX H100 hosts."""
    each = ranks // hosts
    return load_cluster(f"hgx-h100:{hosts}").subset(8 * host + gpu for host in range(hosts) for gpu in range(each))


def even_slots(workload: Workload, slots: int) -> IntArray:
    """Return the same number of slots for every rank."""
    return slots_of_ranks(workload.model, workload.cluster, slots, workload.num_layers)


def score(name: str, placements: Sequence[Placement], workload: Workload, exchange: Exchange) -> Score:
    """Price placements of all layers under an exchange."""
    slots = StepSlots(workload, placements)
    predicted = PlanCounts(step_cost(workload, PROFILE, exchange), slots).price(name)
    return Score(
        name=name,
        exchange=exchange,
        layer_us=tuple(layer.layer_us for layer in predicted.layers),
        imbalance=predicted.mean("imbalance"),
        worst_imbalance=predicted.worst_imbalance,
        rows=_rows_out(workload, slots, exchange),
    )


def best_baseline(baselines: Mapping[str, Sequence[Placement]], workload: Workload) -> tuple[Score, dict[str, float]]:
    """Return the fastest baseline under the exchange that suits it best, and the total time of each under its best."""
    scores = {
        name: min((score(name, made, workload, exchange) for exchange in EXCHANGES), key=lambda one: one.total_us)
        for name, made in baselines.items()
    }
    best = min(scores.values(), key=lambda one: one.total_us)
    return best, {name: one.total_us for name, one in scores.items()}


def floor_us(workload: Workload, slots_R: IntArray) -> float:
    """Return a proven lower bound on the total of any plan, under the exchange where that is least."""
    known = Incumbents(workload, PROFILE, slots_R, "time", "none", place_baselines(workload, slots_R))
    return min(float(known.bounds(exchange, thorough=True).sum()) for exchange in EXCHANGES)


def _rows_out(workload: Workload, slots: StepSlots, exchange: Exchange) -> float:
    """Return the rows of a layer's dispatch that leave the domain of their rank; with one domain, their rank."""
    size_C, domain_C = workload.class_size_C, workload.class_domain_C
    domain_R = np.asarray(workload.cluster.domain_of_rank)
    if exchange == "two-level":
        rows_LCT, target_domain_T = slots.by_domain_LCD, np.arange(workload.num_domains)
    else:
        rows_LCT, target_domain_T = slots.by_rank_LCR if exchange == "dedup" else slots.pairs_LCR, domain_R
    if workload.num_domains == 1:  # one rank in R keeps its row; all ranks of a class send alike
        return float(np.einsum("lct,c->l", rows_LCT, size_C - size_C / workload.num_ranks).mean())
    outside_CT = target_domain_T[None, :] != domain_C[:, None]
    return float(np.einsum("lct,c,ct->l", rows_LCT, size_C, outside_CT).mean())
