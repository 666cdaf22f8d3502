"""What a bound sees of some layers: rows and loads of experts, and no placement.

Where rows are counted by distinct target, tokens that visit several experts on one target send one row there. What is
left of a token-expert pair is its part of a row: 1 / n where n of the token's experts share the target, at least
1 / most for a token that visits `most` experts (`planner.solve.bounds.companions` and `cohesion` know more).

Shapes: L layers, C source classes, E experts, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from planner.cost import StepCost
from planner.layer import LayerProblem
from planner.placement import BoolArray, FloatArray, IntArray
from planner.step_rows import linked_rows_LCE, step_tokens
from planner.workload import Workload


@dataclass(frozen=True, eq=False)
class BoundedLayers:
    """What a bound sees of some layers.

    Attributes:
        cost: the price list.
        rows_CLE: least rows on links from one rank of each class for each expert, wherever it is placed.
        load_LE, active_LE: pairs of each expert over all ranks, and the chance that it gets any.
        class_domain_C, domain_R: domains of classes and ranks.
        slots_R: slots that each rank may use.

    """

    cost: StepCost
    rows_CLE: FloatArray
    load_LE: FloatArray
    active_LE: FloatArray
    class_domain_C: IntArray
    domain_R: IntArray
    slots_R: IntArray

    @classmethod
    def of_workload(cls, workload: Workload, cost: StepCost, slots_R: IntArray) -> BoundedLayers:
        """Take all layers of a workload."""
        domain_R = np.asarray(workload.cluster.domain_of_rank, dtype=np.int64)
        rows_LCE = workload.rows_LCE
        if any(leg.distinct for leg in cost.dispatch.legs):
            most_L = np.minimum(step_tokens(workload).most_pairs_L, target_slots(cost, domain_R, slots_R))
            rows_LCE = linked_rows_LCE(workload) / most_L[:, None, None]
        return cls(
            cost=cost,
            rows_CLE=np.ascontiguousarray(rows_LCE.transpose(1, 0, 2)),
            load_LE=workload.load_LE,
            active_LE=1.0 - np.exp(-workload.load_LE),
            class_domain_C=workload.class_domain_C,
            domain_R=domain_R,
            slots_R=np.asarray(slots_R, dtype=np.int64),
        )

    @classmethod
    def of_problem(cls, problem: LayerProblem, part_E: FloatArray | None = None) -> BoundedLayers:
        """Take a single layer; `part_E` is the least part of a row that each expert's pairs bring, if it is known."""
        rows_CE = problem.linked_rows_CE
        if problem.tokens is not None:
            if part_E is None:
                most = int(np.diff(problem.tokens.expert_PE.indptr).max())
                part_E = np.full(
                    problem.num_experts, 1.0 / min(most, target_slots(problem.cost, problem.domain_R, problem.slots_R))
                )
            rows_CE = rows_CE * part_E
        return cls(
            cost=problem.cost,
            rows_CLE=rows_CE[:, None],
            load_LE=problem.load_E[None],
            active_LE=problem.active_E[None],
            class_domain_C=problem.class_domain_C,
            domain_R=problem.domain_R,
            slots_R=problem.slots_R,
        )

    @property
    def num_domains(self) -> int:
        """D."""
        return int(self.domain_R.max()) + 1

    @property
    def spare(self) -> int:
        """Return the slots beyond one for each expert."""
        return int(self.slots_R.sum()) - int(self.load_LE.shape[1])

    def where(self, chosen_L: BoolArray) -> BoundedLayers:
        """Return some of the layers."""
        return replace(
            self,
            rows_CLE=self.rows_CLE[:, chosen_L],
            load_LE=self.load_LE[chosen_L],
            active_LE=self.active_LE[chosen_L],
        )


def target_slots(cost: StepCost, domain_R: IntArray, slots_R: IntArray) -> int:
    """Return the most experts that one target of distinct rows can hold: a domain, or a rank where those count."""
    of_domains = any(leg.target == "domain" for leg in cost.dispatch.legs) and domain_R.any()
    return max(int(np.bincount(domain_R, weights=slots_R).max() if of_domains else slots_R.max()), 1)
