"""One layer to place: its rows, its ranks, the price list; and what a placement of it costs.

Shapes: C source classes, E experts, R ranks, D domains, S slots, N resources of a phase.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from planner.cost import Phase, StepCost, slack_L
from planner.even import evened
from planner.placement import FloatArray, IntArray, Placement
from planner.survive import Backups
from planner.wire import DistinctRows, TokenSample, pair_rows_CR
from planner.workload import Workload


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """What the optimiser sees of one layer.

    Attributes:
        cost: the price list; its `exchange` decides how rows are counted.
        rows_CE: token-expert pairs from one rank of class c to expert e.
        active_E: chance that the expert gets any token in the step; a rank reads the weights of active experts only.
        class_size_C, class_domain_C: ranks in each source class, and the domain it lies in.
        domain_R: domain of each rank.
        slots_R: slots that each rank may use.
        tokens: sampled tokens, where the exchange counts distinct targets.
        backups: experts that have to survive the loss of a host; None where none has to.
        even: every slot has to be in use and copies serve equal shares, as engines want it (`planner.even`).

    """

    cost: StepCost
    rows_CE: FloatArray
    active_E: FloatArray
    class_size_C: IntArray
    class_domain_C: IntArray
    domain_R: IntArray
    slots_R: IntArray
    tokens: TokenSample | None
    backups: Backups | None = None
    even: bool = False

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.active_E)

    @property
    def num_ranks(self) -> int:
        """R."""
        return len(self.domain_R)

    @property
    def num_domains(self) -> int:
        """D."""
        return int(self.domain_R.max()) + 1

    @cached_property
    def load_E(self) -> FloatArray:
        """Return the token-expert pairs of each expert over all ranks."""
        load_E: FloatArray = self.class_size_C @ self.rows_CE
        return load_E

    @cached_property
    def linked_rows_CE(self) -> FloatArray:
        """Return the pairs behind the rows on links: those of the sampled tokens where rows are counted over them."""
        if self.tokens is None:
            return self.rows_CE
        if self.tokens.class_P is None:  # the same tokens stand for every class
            visits_E = np.bincount(self.tokens.expert_PE.indices, minlength=self.num_experts)
            return np.outer(self.tokens.tokens_C / self.tokens.expert_PE.shape[0], visits_E)
        expert_EP = self.tokens.expert_PE.T
        return np.stack([expert_EP @ self.tokens.weights_P(c) for c in range(len(self.class_size_C))])

    @cached_property
    def domain_RD(self) -> sp.csr_array:
        """Return the 0/1 matrix that sums ranks into domains."""
        ones = np.ones(self.num_ranks)
        return sp.csr_array(
            (ones, (np.arange(self.num_ranks), self.domain_R)), shape=(self.num_ranks, self.num_domains)
        )

    def for_balance(self) -> LayerProblem:
        """Return the same layer with imbalance (max over ranks / mean of token-expert pairs) as its only cost."""
        nothing = Phase(0.0, (), ())
        row_R = np.full(self.num_ranks, self.num_ranks / max(self.load_E.sum(), np.finfo(float).tiny))
        cost = StepCost("pairwise", nothing, nothing, 0.0, np.zeros(self.num_ranks), row_R)
        return replace(self, cost=cost, tokens=None)

    def fitted(self, placement: Placement) -> Placement:
        """Return the placement as this layer may hold it: evened where that is asked, else as it is."""
        return evened(placement, int(self.slots_R[0]), self.load_E) if self.even else placement

    def evaluate(self, placement: Placement, *, every_link: bool = False, near: LayerCost | None = None) -> LayerCost:
        """Price a placement.

        Links inside domains that are far from setting the pace of a two-level exchange are priced by pairs, an upper
        estimate that changes no time; `every_link` counts them too. From the cost of a placement that is `near`, only
        what differs is counted again.
        """
        pairs_CR = pair_rows_CR(self.rows_CE, self.class_domain_C, placement)
        known = {} if near is None else near.counted
        rows, counted = self._rows_of_legs(placement, pairs_CR, known, every_link=every_link)
        load_R = self.class_size_C @ pairs_CR
        slot_S = self.active_E[placement.expert_S] * (placement.share_DS.max(axis=0) > 0)
        active_R = np.bincount(placement.rank_S, weights=slot_S, minlength=self.num_ranks)
        compute_us_R = self.cost.slot_us_R * active_R + self.cost.row_us_R * load_R
        return LayerCost(
            cost=self.cost,
            load_R=load_R,
            dispatch_us_N=phase_us(self.cost.dispatch, rows),
            compute_us_R=compute_us_R,
            combine_us_N=phase_us(self.cost.combine, rows),
            counted=counted,
            penalty_us=0.0 if self.backups is None else self.backups.penalty_us(placement),
        )

    def _rows_of_legs(
        self, placement: Placement, pairs_CR: FloatArray, known: Mapping[str, DistinctRows], *, every_link: bool
    ) -> tuple[dict[tuple[str, bool], FloatArray], dict[str, DistinctRows]]:
        """Return the rows that each kind of leg carries, and the counts behind those that are distinct."""
        rows: dict[tuple[str, bool], FloatArray] = {("rank", False): pairs_CR}
        counted: dict[str, DistinctRows] = {}
        targets = {leg.target for leg in self.cost.dispatch.legs if leg.distinct}
        if "domain" in targets:
            counted["domain"] = self._count(placement, self.domain_R, self.num_domains, known.get("domain"))
            rows["domain", True] = counted["domain"].rows_CT
            rows["rank", True] = pairs_CR
            phases = (self.cost.dispatch, self.cost.combine)
            if not every_link and all(slack_L(phase, phase_us(phase, rows)[None])[0] for phase in phases):
                return rows, counted
        if "rank" in targets:
            counted["rank"] = self._count(placement, np.arange(self.num_ranks), self.num_ranks, known.get("rank"))
            rows["rank", True] = counted["rank"].rows_CT
        return rows, counted

    def _count(
        self, placement: Placement, target_R: IntArray, num_targets: int, near: DistinctRows | None
    ) -> DistinctRows:
        assert self.tokens is not None, "an exchange that counts distinct targets needs sampled tokens"
        return DistinctRows(self.tokens, self.class_domain_C, placement, target_R, num_targets, near)


@dataclass(frozen=True, eq=False)
class LayerCost:
    """What one layer costs under one placement, resource by resource.

    Attributes:
        cost: the price list.
        load_R: token-expert pairs on each rank.
        dispatch_us_N, combine_us_N: microseconds on each link, without start-up (see `evaluate` for slack links).
        compute_us_R: microseconds on each rank, without launch.
        counted: the rows by distinct target behind it, for each target that was counted so.
        penalty_us: what is added for experts that would not survive the loss of a host, where they have to.

    """

    cost: StepCost
    load_R: FloatArray
    dispatch_us_N: FloatArray
    compute_us_R: FloatArray
    combine_us_N: FloatArray
    counted: Mapping[str, DistinctRows]
    penalty_us: float = 0.0

    @property
    def imbalance(self) -> float:
        """Max over ranks / mean over ranks of token-expert pairs."""
        return float(self.load_R.max() / max(self.load_R.mean(), np.finfo(float).tiny))

    @property
    def dispatch_us(self) -> float:
        """Time of the dispatch exchange."""
        return self.cost.dispatch.alpha_us + float(self.dispatch_us_N.max(initial=0.0))

    @property
    def compute_us(self) -> float:
        """Time of the most loaded rank's experts."""
        return self.cost.launch_us + float(self.compute_us_R.max())

    @property
    def combine_us(self) -> float:
        """Time of the combine exchange."""
        return self.cost.combine.alpha_us + float(self.combine_us_N.max(initial=0.0))

    @property
    def layer_us(self) -> float:
        """Dispatch, compute and combine: in turn, or overlapped as the price list says."""
        return self.penalty_us + self.cost.layer_us(self.dispatch_us, self.compute_us, self.combine_us)

    @property
    def bottleneck(self) -> str:
        """Name what holds the layer up: the largest phase, and the link or rank that sets its pace."""
        loads = (self.dispatch_us_N, self.compute_us_R, self.combine_us_N)
        busiest = [int(us.argmax()) if us.size else 0 for us in loads]
        return bottleneck(self.cost, (self.dispatch_us, self.compute_us, self.combine_us), busiest)


def bottleneck(cost: StepCost, times_us: Sequence[float], busiest: Sequence[int]) -> str:
    """Name what holds a layer up, from the times of dispatch, compute, combine and the busiest link or rank of each."""
    slowest = max(range(3), key=times_us.__getitem__)
    if slowest == 1:
        return f"compute: rank {busiest[1]}"
    name, phase = ("dispatch", cost.dispatch) if slowest == 0 else ("combine", cost.combine)
    return f"{name}: {phase.link_names[busiest[slowest]]}" if phase.link_names else f"{name}: start-up"


def phase_us(phase: Phase, rows: dict[tuple[str, bool], FloatArray]) -> FloatArray:
    """Return microseconds on each of a phase's N links, without start-up time."""
    us_N = np.zeros(len(phase.link_names))
    for leg in phase.legs:
        us_N += rows[(leg.target, leg.distinct)].ravel() @ leg.us_XN
    return us_N


def layer_problem(workload: Workload, cost: StepCost, slots_R: IntArray, row: int) -> LayerProblem:
    """Cut row `row` (0..L-1) of a workload out as a problem of its own."""
    rows_CE = workload.rows_LCE[row]
    tokens = None
    if any(leg.distinct for leg in cost.dispatch.legs):
        ids_PK = workload.tokens_LPK[row]
        pairs_per_token = max((ids_PK >= 0).sum() / len(ids_PK), 1e-9)
        tokens = TokenSample.of_ids(
            ids_PK, workload.num_experts, workload.token_class_P, rows_CE.sum(axis=1) / pairs_per_token
        )
    load_E = workload.class_size_C @ rows_CE
    return LayerProblem(
        cost=cost,
        rows_CE=rows_CE,
        active_E=1.0 - np.exp(-load_E),  # Poisson: the step's count of a rare expert varies
        class_size_C=workload.class_size_C,
        class_domain_C=workload.class_domain_C,
        domain_R=np.asarray(workload.cluster.domain_of_rank, dtype=np.int64),
        slots_R=np.asarray(slots_R, dtype=np.int64),
        tokens=tokens,
    )
