"""Slots and shares of some or all ranks as one mixed-integer model (PuLP), for costs that are linear in the shares.

    x[e,g] in {0,1}    expert e has a slot on free rank g          sum_e x[e,g] <= slots[g]
    y[q,e,g] in [0,1]  share of source group q                     sum_g y[q,e,g] = 1,  y[q,e,g] <= x[e,g]
    minimise  T_dispatch + T_compute + T_combine,   each T >= the time of every link or rank of its phase

With every rank free it is the exact model of a layer; with a few ranks free around a placement in force it is a
neighbourhood of large-neighbourhood search: experts without a slot on a free rank stay as they are.

Where the layer has to be even, slots are equations, and with  n[e,c] in {0,1}  expert e has c copies,

    sum_c n[e,c] = 1,   sum_g x[e,g] = sum_c c n[e,c],   y[q,e,g] <= sum_c n[e,c] / c     equal shares

Shapes: E experts, R ranks, Q source groups, N links, J free pairs (expert, rank).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pulp

from planner.cost import Phase
from planner.layer import LayerProblem
from planner.placement import FloatArray, IntArray, Placement, sums_by
from planner.solve.milp import SolveResult, solve_milp

NEGLIGIBLE = 1e-12


@dataclass
class PlacementModel:
    """One model: built by `build`, solved by `solve`, read back by `placement`.

    Attributes:
        problem: the layer; its exchange must be linear (`pairwise`, or balance).
        free_ranks: ranks whose slots are decided; all others keep theirs.
        incumbent: the placement in force: it fixes what is not free and starts the search.
        newcomers: experts without a slot on the free ranks that may get one there.

    """

    problem: LayerProblem
    free_ranks: Sequence[int]
    incumbent: Placement
    newcomers: Sequence[int] = ()
    _lp: pulp.LpProblem = field(init=False)
    _x: dict[tuple[int, int], pulp.LpVariable] = field(init=False, default_factory=dict)
    _y: dict[tuple[int, int, int], pulp.LpVariable] = field(init=False, default_factory=dict)
    _n: dict[tuple[int, int], pulp.LpVariable] = field(init=False, default_factory=dict)
    _times: dict[str, pulp.LpVariable] = field(init=False, default_factory=dict)

    def build(self) -> None:
        """Define variables, constraints and objective."""
        self._lp = pulp.LpProblem("placement", pulp.LpMinimize)
        self._group_D = self._share_groups()
        self._experts = self._free_experts()
        self._fixed = self._fixed_slots()
        self._define_slots()
        self._define_shares()
        if self.problem.even:
            self._define_equal_shares()
        self._define_times()

    def solve(
        self, *, max_nodes: int | None = None, time_limit_s: float | None = None, relative_gap: float = 1e-6
    ) -> SolveResult:
        """Solve from the incumbent."""
        return solve_milp(
            self._lp,
            warm_start=self._warm_start(),
            max_nodes=max_nodes,
            time_limit_s=time_limit_s,
            relative_gap=relative_gap,
        )

    def placement(self, result: SolveResult) -> Placement:
        """Read a solution back as a placement of the whole layer."""
        old = self.incumbent
        free_S = np.isin(old.rank_S, list(self.free_ranks))
        slots = [(int(e), int(g)) for e, g in zip(old.expert_S[~free_S], old.rank_S[~free_S], strict=True)]
        slots += [pair for pair, x in self._x.items() if result.values[x.name] > 0.5]
        kept_DS = {
            (int(e), int(g)): old.share_DS[:, s] for s, (e, g) in enumerate(zip(old.expert_S, old.rank_S, strict=True))
        }
        shares = []
        for e, g in slots:
            if e in self._experts:
                share_Q = [result.values[self._y[q, e, g].name] for q in range(self._num_groups)]
                shares.append(np.clip(np.array(share_Q), 0.0, 1.0)[self._group_D])
            else:
                shares.append(kept_DS[e, g])
        share_DS = np.array(shares).T
        expert_S = np.array([e for e, _ in slots])
        total_DE = sums_by(share_DS, expert_S, old.num_experts)
        rank_S = np.array([g for _, g in slots])
        order = np.argsort(rank_S, kind="stable")
        share_DS = (share_DS / total_DE[:, expert_S])[:, order]
        found = Placement(expert_S[order], rank_S[order], share_DS, old.num_experts, old.num_ranks)
        return found.with_equal_shares() if self.problem.even else found.without_idle_slots()

    @property
    def _num_groups(self) -> int:
        return int(self._group_D.max()) + 1

    def _share_groups(self) -> IntArray:
        D = self.problem.num_domains
        return np.arange(D) if self.problem.cost.dispatch.legs else np.zeros(D, dtype=np.int64)

    def _free_experts(self) -> list[int]:
        on_free = np.isin(self.incumbent.rank_S, list(self.free_ranks))
        return sorted({int(e) for e in self.incumbent.expert_S[on_free]} | set(self.newcomers))

    def _fixed_slots(self) -> dict[int, list[int]]:
        """Return the ranks outside the free ones where each free expert keeps a slot."""
        free = set(self.free_ranks)
        fixed: dict[int, list[int]] = {e: [] for e in self._experts}
        for e, g in zip(self.incumbent.expert_S, self.incumbent.rank_S, strict=True):
            if int(e) in fixed and int(g) not in free:
                fixed[int(e)].append(int(g))
        return fixed

    def _define_slots(self) -> None:
        for e in self._experts:
            for g in self.free_ranks:
                self._x[e, g] = self._lp.add_variable(f"x_{e}_{g}", 0, 1, pulp.LpBinary)
        for g in self.free_ranks:
            used, slots = pulp.lpSum(self._x[e, g] for e in self._experts), int(self.problem.slots_R[g])
            self._lp += used == slots if self.problem.even else used <= slots
        for e in self._experts:
            if not self._fixed[e]:
                self._lp += pulp.lpSum(self._x[e, g] for g in self.free_ranks) >= 1

    def _define_shares(self) -> None:
        for e in self._experts:
            for q in range(self._num_groups):
                for g in (*self.free_ranks, *self._fixed[e]):
                    self._y[q, e, g] = self._lp.add_variable(f"y_{q}_{e}_{g}", 0, 1)
                self._lp += pulp.lpSum(self._y[q, e, g] for g in (*self.free_ranks, *self._fixed[e])) == 1
                for g in self.free_ranks:
                    self._lp += self._y[q, e, g] <= self._x[e, g]

    def _define_equal_shares(self) -> None:
        for e in self._experts:
            least, most = max(len(self._fixed[e]), 1), len(self._fixed[e]) + len(self.free_ranks)
            for c in range(least, most + 1):
                self._n[e, c] = self._lp.add_variable(f"n_{e}_{c}", 0, 1, pulp.LpBinary)
            counts = range(least, most + 1)
            free = pulp.lpSum(self._x[e, g] for g in self.free_ranks)
            part = pulp.lpSum(self._n[e, c] * (1.0 / c) for c in counts)
            self._lp += pulp.lpSum(self._n[e, c] for c in counts) == 1
            self._lp += free + len(self._fixed[e]) == pulp.lpSum(c * self._n[e, c] for c in counts)
            for q in range(self._num_groups):
                for g in (*self.free_ranks, *self._fixed[e]):
                    self._lp += self._y[q, e, g] <= part

    def _define_times(self) -> None:
        cost = self.problem.evaluate(self.incumbent)
        self._define_phase("T_dispatch", self.problem.cost.dispatch, cost.dispatch_us_N)
        self._define_compute(cost.compute_us_R)
        self._define_phase("T_combine", self.problem.cost.combine, cost.combine_us_N)
        self._lp += pulp.lpSum(self._times.values())

    def _define_phase(self, name: str, phase: Phase, now_us_N: FloatArray) -> None:
        """Bound a phase's time from below by every link that the free experts can make the slowest."""
        if not now_us_N.size:
            return
        us_CRN = phase.legs[0].us_XN.toarray().reshape(-1, self.problem.num_ranks, len(now_us_N))
        keys = list(self._y)
        slope_YN = np.array([self._group_rows(q, e) @ us_CRN[:, g] for q, e, g in keys])
        base_N = np.maximum(now_us_N - self._now_Y(keys) @ slope_YN, 0.0)
        most_N = base_N.copy()
        for q in range(self._num_groups):
            for e in self._experts:
                most_N += slope_YN[[i for i, key in enumerate(keys) if key[:2] == (q, e)]].max(axis=0)
        floor = float(base_N.max())
        time = self._times[name] = self._lp.add_variable(name, floor)
        for n in np.flatnonzero(most_N > floor):
            terms = [(keys[i], slope_YN[i, n]) for i in np.flatnonzero(slope_YN[:, n] > NEGLIGIBLE)]
            self._lp += pulp.lpSum(float(us) * self._y[key] for key, us in terms) + float(base_N[n]) <= time

    def _define_compute(self, now_us_R: FloatArray) -> None:
        problem = self.problem
        time = self._times["T_compute"] = self._lp.add_variable("T_compute", 0)
        keys = list(self._y)
        now_Y = self._now_Y(keys)
        load_Y = np.array([self._group_rows(q, e) @ problem.class_size_C for q, e, _ in keys])
        for g in range(problem.num_ranks):
            mine = [i for i, key in enumerate(keys) if key[2] == g]
            row_us, slot_us = float(problem.cost.row_us_R[g]), float(problem.cost.slot_us_R[g])
            rows = pulp.lpSum(row_us * float(load_Y[i]) * self._y[keys[i]] for i in mine)
            if g in self.free_ranks:
                slots = pulp.lpSum(slot_us * float(problem.active_E[e]) * self._x[e, g] for e in self._experts)
                self._lp += rows + slots <= time
            else:
                base = float(now_us_R[g] - row_us * (now_Y[mine] @ load_Y[mine])) if mine else float(now_us_R[g])
                self._lp += rows + base <= time

    def _group_rows(self, group: int, expert: int) -> FloatArray:
        """Return the rows of an expert from one rank of each class, zero for classes of other groups."""
        mine_C = self._group_D[self.problem.class_domain_C] == group
        rows_C: FloatArray = np.where(mine_C, self.problem.rows_CE[:, expert], 0.0)
        return rows_C

    def _now_Y(self, keys: list[tuple[int, int, int]]) -> FloatArray:
        old = self.incumbent
        slot_of = {(int(e), int(g)): s for s, (e, g) in enumerate(zip(old.expert_S, old.rank_S, strict=True))}
        first_Q = [int(np.flatnonzero(self._group_D == q)[0]) for q in range(self._num_groups)]
        return np.array([old.share_DS[first_Q[q], slot_of[e, g]] if (e, g) in slot_of else 0.0 for q, e, g in keys])

    def _warm_start(self) -> dict[str, float]:
        old = self.incumbent
        held = set(zip(old.expert_S.tolist(), old.rank_S.tolist(), strict=True))
        cost = self.problem.evaluate(old)
        values = {x.name: float(pair in held) for pair, x in self._x.items()}
        values |= {n.name: float(old.copies_E[e] == c) for (e, c), n in self._n.items()}
        keys = list(self._y)
        values |= {self._y[key].name: float(now) for key, now in zip(keys, self._now_Y(keys), strict=True)}
        parts = {"T_dispatch": cost.dispatch_us_N, "T_compute": cost.compute_us_R, "T_combine": cost.combine_us_N}
        return values | {self._times[name].name: float(us.max()) for name, us in parts.items() if name in self._times}
