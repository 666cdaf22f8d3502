"""The best shares for slots that stand still: which copy of an expert serves which source domain.

Shapes: C source classes, D source domains, R ranks, M slots of replicated experts, Q share groups, N links or ranks,
S scenarios, Y shares, T times.

For `pairwise` the time is linear in the shares and the answer is the optimum (an LP). For `dedup` and `two-level` the
rows are multilinear; the LP is built from their gradient at the current shares and its answer is kept only where the
true cost falls (sequential linear programming with halved steps).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from planner.cost import Leg, Phase
from planner.layer import LayerCost, LayerProblem
from planner.placement import FloatArray, IntArray, Placement, sums_by
from planner.robust import Problem, Risk, RobustProblem, scenarios_of
from planner.wire import pair_rows_CR

MIN_GAIN = 1e-7  # a relative gain below this is rounding
STEP_HALVINGS = 3


def best_shares(problem: Problem, placement: Placement, rounds: int = 1) -> Placement:
    """Return the placement with shares that minimise its cost; never worse than the shares it came with.

    `rounds` limits the linearisations where the cost is not linear; one suffices for `pairwise` and for balance.
    Slots that end up serving nobody are dropped, unless they stand by for a lost host. Where the layer has to be even,
    there is nothing to choose.
    """
    if problem.even:
        return problem.fitted(placement)
    placement = placement.without_duplicates()
    best_us = problem.evaluate(placement).layer_us
    linear = not any(leg.distinct for leg in scenarios_of(problem)[0].cost.dispatch.legs)
    for _ in range(1 if linear else rounds):
        target = _linear_optimum(problem, placement)
        if target is None:
            break
        step = 1.0
        for _ in range(1 if linear else STEP_HALVINGS):
            trial = placement.with_shares(placement.share_DS + step * (target - placement.share_DS))
            trial_us = problem.evaluate(trial).layer_us
            if trial_us < best_us * (1 - MIN_GAIN):
                break
            step /= 2
        else:
            break
        placement, best_us = trial, trial_us
    return placement if problem.backups is not None else placement.without_idle_slots()


def _linear_optimum(problem: Problem, placement: Placement) -> FloatArray | None:
    """Return optimal share_DS of the problem linearised at the placement, or None where nothing can be shared."""
    slot_M = np.flatnonzero(placement.copies_E[placement.expert_S] > 1)
    if slot_M.size == 0:
        return None
    scenarios = scenarios_of(problem)
    group_D = _share_groups(scenarios[0])
    Q, M = int(group_D.max()) + 1, len(slot_M)
    limits = [_time_limits(one, placement, slot_M, group_D) for one in scenarios]
    us_BY, time_BT, base_B, price_T = _worth(limits, problem.risk if isinstance(problem, RobustProblem) else None)
    experts, expert_M = np.unique(placement.expert_S[slot_M], return_inverse=True)
    row_Y = (np.arange(Q)[:, None] * len(experts) + expert_M[None, :]).ravel()
    shape = (Q * len(experts), Q * M + len(price_T))
    from scipy.optimize import linprog  # noqa: PLC0415 - a tenth of a second, and not every plan needs it

    result = linprog(  # type: ignore[call-overload]  # the stubs do not know that sparse matrices are accepted
        c=np.concatenate([np.zeros(Q * M), price_T]),
        A_ub=sp.hstack([us_BY, time_BT]).tocsr(),
        b_ub=-base_B,
        A_eq=sp.csr_array((np.ones(Q * M), (row_Y, np.arange(Q * M))), shape=shape),
        b_eq=np.ones(shape[0]),
        bounds=[(0.0, 1.0)] * (Q * M) + [(0.0, None)] * len(price_T),
        method="highs",
    )
    if result.x is None:
        return None
    share_DS = placement.share_DS.copy()
    share_DS[:, slot_M] = _clean(result.x[: Q * M].reshape(Q, M), expert_M)[group_D]
    return share_DS


def _time_limits(
    problem: LayerProblem, placement: Placement, slot_M: IntArray, group_D: IntArray
) -> tuple[sp.csr_array, FloatArray, IntArray]:
    """Return (us_NY, base_N, phase_N): every resource's time in the shares, which its phase (0, 1, 2) has to cover."""
    gradient = _Gradient(problem, placement, problem.evaluate(placement), slot_M, group_D)
    model = [gradient.of_phase(problem.cost.dispatch), gradient.of_compute(), gradient.of_phase(problem.cost.combine)]
    phase_N = np.repeat(np.arange(3), [len(base_N) for _, base_N in model])
    return sp.vstack([us_NY for us_NY, _ in model]).tocsr(), np.concatenate([base_N for _, base_N in model]), phase_N


def _worth(
    limits: Sequence[tuple[sp.csr_array, FloatArray, IntArray]], risk: Risk | None
) -> tuple[sp.csr_array, sp.csr_array, FloatArray, FloatArray]:
    """Return (us_BY, time_BT, base_B, price_T): rows us_BY y + base_B + time_BT t <= 0, and what each time t costs.

    The times are three a scenario, one a phase. With a risk the scenarios' sums are worth  v + sum of excesses / tail,
    each excess at least a scenario's sum minus v (Rockafellar and Uryasev 2000).
    """
    S, shares = len(limits), limits[0][0].shape[1]
    columns = 3 * S if risk is None else 4 * S + 1
    phase_B = np.concatenate([3 * s + phase_N for s, (*_, phase_N) in enumerate(limits)])
    ones = np.ones(len(phase_B))
    time_BT = sp.csr_array((-ones, (np.arange(len(phase_B)), phase_B)), shape=(len(phase_B), columns))
    us_BY, base_B = sp.vstack([us_NY for us_NY, *_ in limits]), np.concatenate([base_N for _, base_N, _ in limits])
    if risk is None:
        return us_BY.tocsr(), time_BT, base_B, np.ones(columns)
    excess_ST = np.zeros((S, columns))
    for s in range(S):
        excess_ST[s, 3 * s : 3 * s + 3] = 1.0
        excess_ST[s, [3 * S + s, 4 * S]] = -1.0
    price_T = np.concatenate([np.zeros(3 * S), np.full(S, 1.0 / risk.tail(S)), [1.0]])
    return (
        sp.vstack([us_BY, sp.csr_array((S, shares))]).tocsr(),
        sp.vstack([time_BT, sp.csr_array(excess_ST)]).tocsr(),
        np.concatenate([base_B, np.zeros(S)]),
        price_T,
    )


def _share_groups(problem: LayerProblem) -> IntArray:
    """Return the group of each source domain; without links to cross, all domains may as well share alike."""
    if problem.cost.dispatch.legs:
        return np.arange(problem.num_domains)
    return np.zeros(problem.num_domains, dtype=np.int64)


def _clean(share_QM: FloatArray, expert_M: IntArray) -> FloatArray:
    """Clear the solver's tolerances: no negative share, every sum exactly one."""
    share_QM = np.where(share_QM < 1e-9, 0.0, share_QM)
    total_QX = sums_by(share_QM, expert_M, int(expert_M.max()) + 1)
    return share_QM / total_QX[:, expert_M]


@dataclass(frozen=True, eq=False)
class _Gradient:
    """How every resource's time depends on every share: time_N = base_N + us_NY @ share_Y, with Y = (group, slot)."""

    problem: LayerProblem
    placement: Placement
    cost: LayerCost
    slot_M: IntArray
    group_D: IntArray

    def of_phase(self, phase: Phase) -> tuple[sp.csr_array, FloatArray]:
        """Return (us_NY, base_N) of a communication phase."""
        Y = (int(self.group_D.max()) + 1) * len(self.slot_M)
        us_NY = sp.csr_array((len(phase.link_names), Y))
        base_N = np.zeros(len(phase.link_names))
        for leg in phase.legs:
            rows_X, gradient_CET = self._rows(leg)
            slope_YX = self._slope(leg, gradient_CET)
            us_NY = us_NY + (slope_YX @ leg.us_XN).T
            base_N = base_N + (rows_X - self._now_Y @ slope_YX) @ leg.us_XN
        return sp.csr_array(us_NY), base_N

    def of_compute(self) -> tuple[sp.csr_array, FloatArray]:
        """Return (us_RY, base_R) of the ranks' experts."""
        problem, placement = self.problem, self.placement
        Q, M = int(self.group_D.max()) + 1, len(self.slot_M)
        class_group_C = self.group_D[problem.class_domain_C]
        load_QE = np.zeros((Q, problem.num_experts))
        np.add.at(load_QE, class_group_C, problem.rows_CE * problem.class_size_C[:, None])
        rank_M = placement.rank_S[self.slot_M]
        us_QM = load_QE[:, placement.expert_S[self.slot_M]] * problem.cost.row_us_R[rank_M]
        us_RY = sp.csr_array((us_QM.ravel(), (np.tile(rank_M, Q), np.arange(Q * M))), shape=(problem.num_ranks, Q * M))
        return us_RY, self.cost.compute_us_R - us_RY @ self._now_Y

    @property
    def _now_Y(self) -> FloatArray:
        first_Q = np.unique(self.group_D, return_index=True)[1]
        return self.placement.share_DS[first_Q][:, self.slot_M].ravel()

    def _rows(self, leg: Leg) -> tuple[FloatArray, FloatArray | None]:
        problem = self.problem
        if not leg.distinct or leg.target not in self.cost.counted:
            return pair_rows_CR(problem.rows_CE, problem.class_domain_C, self.placement).ravel(), None
        counted = self.cost.counted[leg.target]
        return counted.rows_CT.ravel(), counted.gradient_CET

    def _slope(self, leg: Leg, gradient_CET: FloatArray | None) -> sp.csr_array:
        """Return d rows_X / d share_Y, X = (class, target)."""
        problem, placement = self.problem, self.placement
        C, M = len(problem.class_size_C), len(self.slot_M)
        expert_M, rank_M = placement.expert_S[self.slot_M], placement.rank_S[self.slot_M]
        target_M = rank_M if leg.target == "rank" else problem.domain_R[rank_M]
        num_targets = problem.num_ranks if leg.target == "rank" else problem.num_domains
        slope_CM = problem.rows_CE[:, expert_M] if gradient_CET is None else gradient_CET[:, expert_M, target_M]
        group_C = self.group_D[problem.class_domain_C]
        row_CM = group_C[:, None] * M + np.arange(M)[None, :]
        column_CM = np.arange(C)[:, None] * num_targets + target_M[None, :]
        Y = (int(self.group_D.max()) + 1) * M
        return sp.csr_array((slope_CM.ravel(), (row_CM.ravel(), column_CM.ravel())), shape=(Y, C * num_targets))
