"""A plan in which experts survive the loss of a host: copies set apart for it, then searched again.

Every slot beyond one for each expert can save one more expert, if it lies on another host than the expert's first copy.
So many are saved, the busiest first; what the slots would have been worth otherwise is the price. A copy made for this
stands by: it serves nobody until a search finds that it should.

Shapes: D source domains, E experts, R ranks, S slots.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.layer import LayerProblem
from planner.placement import IntArray, Placement, check_placement, sums_by
from planner.solve.incumbents import Incumbents
from planner.solve.shares import best_shares
from planner.solve.solution import LayerSolution, Solution
from planner.solve.start import local_shares
from planner.solve.swaps import descend_by_swaps
from planner.survive import Backups, survivors_E
from planner.timing import TimingProfile, plain
from planner.workload import Workload
from topologies import BadInput

SWAPS, ROUNDS, SHARE_ROUNDS = 60, 2, 3


@dataclass(frozen=True, eq=False)
class Surviving:
    """A plan that survives, what each layer keeps, and the time of the plan that did not have to."""

    solution: Solution
    backups: tuple[Backups, ...]
    free_us: float

    @property
    def price(self) -> float:
        """Return the step time relative to that of the plan that did not have to survive, minus one."""
        return self.solution.predictions[-1].total_us / self.free_us - 1.0


def survive_host(
    free: Solution,
    workload: Workload,
    profile: TimingProfile,
    slots_R: IntArray,
    *,
    search: bool = True,
    workers: int | None = None,
    deadline: float | None = None,
) -> Surviving:
    """Return the plan with as many experts as the slots allow on two hosts, and again as little time as possible.

    Deterministic at any number of workers, unless `deadline` (`time.monotonic()`) cuts it short; without `search` the
    copies are set apart and no more. Raises BadInput on a single host.
    """
    if workload.cluster.num_hosts == 1:
        raise BadInput(f"--survive host: {workload.cluster.name} has ranks on one host only")
    started = time.monotonic()
    overlap = free.predictions[-1].overlap
    known = Incumbents(workload, profile, slots_R, free.objective, overlap, free.baselines, even=free.even)
    host_R, exchange = np.asarray(workload.cluster.host_of_rank), plain(free.exchange)
    import joblib  # noqa: PLC0415 - a tenth of a second, and not every plan needs it

    calls = (
        joblib.delayed(_one_layer)(
            known.problem(exchange, row), free.placements[row], host_R, ROUNDS if search else 0, deadline
        )
        for row in range(workload.num_layers)
    )
    found: list[tuple[Placement, float, Backups]] = joblib.Parallel(n_jobs=workers or joblib.cpu_count())(calls)
    layers = tuple(
        LayerSolution(placement, objective, old.bound, old.seconds)
        for (placement, objective, _), old in zip(found, free.layers, strict=True)
    )
    prediction = known.predict([layer.placement for layer in layers], exchange)
    seconds = free.seconds + time.monotonic() - started
    solution = replace(free, layers=layers, predictions=(*free.predictions[:-1], prediction), seconds=seconds)
    return Surviving(solution, tuple(backups for *_, backups in found), free.predictions[-1].total_us)


def _one_layer(
    problem: LayerProblem, free: Placement, host_R: IntArray, rounds: int, deadline: float | None
) -> tuple[Placement, float, Backups]:
    """Spread a layer's copies over hosts, then descend to the least time among the placements that save as many."""
    placement = problem.fitted(spread_over_hosts(problem, free, host_R))
    backups = Backups(host_R, int(survivors_E(placement, host_R).sum()))
    problem = replace(problem, backups=backups)
    serving = problem.fitted(placement.with_shares(local_shares(placement, problem.domain_R)))
    placement = min((placement, serving), key=lambda one: problem.evaluate(one).layer_us)
    best, best_us = placement, problem.evaluate(placement).layer_us
    for _ in range(rounds):
        if deadline is not None and time.monotonic() >= deadline:
            break
        placement = best_shares(problem, placement, SHARE_ROUNDS)
        placement = descend_by_swaps(problem, placement, SWAPS, deadline)
        placement = best_shares(problem, placement, SHARE_ROUNDS)
        now_us = problem.evaluate(placement).layer_us
        if now_us >= best_us:
            break
        best, best_us = placement, now_us
    check_placement(best, problem.slots_R, where="search of plans that survive")
    return best, best_us, backups


def spread_over_hosts(problem: LayerProblem, placement: Placement, host_R: IntArray) -> Placement:
    """Return the placement with a copy on a second host for as many experts as there are slots for, busiest first.

    1. Copies that save nobody are given up, those that serve least first, until each expert that lives on one host only
       has a slot to hope for.
    2. Open slots get the busiest expert that lives on other hosts only; where none is left for them, a copy from
       elsewhere moves over and makes room.
    3. The new copies stand by; shares of copies that are gone go to those that stayed.
    """
    spreader = _Spreader(problem, placement, host_R)
    spreader.give_up()
    for expert in np.argsort(-problem.load_E, kind="stable").tolist():
        if not spreader.survives(spreader.ranks_of[expert]):
            spreader.save(expert)
    return _with_old_shares(problem, placement, spreader.held)


def _with_old_shares(problem: LayerProblem, old: Placement, held: list[list[int]]) -> Placement:
    """Return a placement with the shares that its copies had; where none of them served a domain, local first."""
    new = Placement.equal_shares(held, problem.num_experts, problem.num_domains)
    slot_of = {pair: s for s, pair in enumerate(zip(old.expert_S.tolist(), old.rank_S.tolist(), strict=True))}
    before = [slot_of.get(pair, -1) for pair in zip(new.expert_S.tolist(), new.rank_S.tolist(), strict=True)]
    share_DS = np.where(np.array(before) >= 0, old.share_DS[:, before], 0.0)
    total_DS = sums_by(share_DS, new.expert_S, new.num_experts)[:, new.expert_S]
    local_DS = local_shares(new, problem.domain_R)
    return new.with_shares(np.where(total_DS > 0, share_DS / np.where(total_DS > 0, total_DS, 1.0), local_DS))


class _Spreader:
    """The experts that each rank holds while copies are given up and dealt out anew."""

    def __init__(self, problem: LayerProblem, placement: Placement, host_R: IntArray) -> None:
        self.problem, self.host_R = problem, host_R
        served_DS = placement.share_DS[problem.class_domain_C] * problem.rows_CE[:, placement.expert_S]
        served_S = problem.class_size_C @ served_DS
        self._by_service = [
            (int(placement.expert_S[s]), int(placement.rank_S[s])) for s in np.argsort(served_S, kind="stable")
        ]
        self.held = placement.slots()
        self.ranks_of: list[list[int]] = [[] for _ in range(problem.num_experts)]
        for rank, row in enumerate(self.held):
            for expert in row:
                self.ranks_of[expert].append(rank)

    def survives(self, ranks: Sequence[int]) -> bool:
        """Return whether copies on these ranks survive the loss of any host."""
        return len({int(self.host_R[rank]) for rank in ranks}) > 1

    def give_up(self) -> None:
        """Drop copies that save nobody while there are fewer open slots than experts to save."""
        in_need = sum(not self.survives(ranks) for ranks in self.ranks_of)
        room = int(self.problem.slots_R.sum()) - sum(map(len, self.held))
        for expert, rank in self._by_service:
            if room >= in_need:
                return
            others = [other for other in self.ranks_of[expert] if other != rank]
            if others and (self.survives(others) or not self.survives(self.ranks_of[expert])):
                self._take(expert, rank)
                room += 1

    def save(self, expert: int) -> None:
        """Put a copy on a second host, if any way is found."""
        home = self.host_R[self.ranks_of[expert][0]]
        open_ranks = [r for r, row in enumerate(self.held) if len(row) < self.problem.slots_R[r]]
        elsewhere = [rank for rank in open_ranks if self.host_R[rank] != home]
        if elsewhere:
            self._put(expert, min(elsewhere, key=lambda rank: (self._load(rank), rank)))
        elif open_ranks:
            self._make_room(expert, open_ranks)

    def _make_room(self, expert: int, open_ranks: Sequence[int]) -> None:
        """Take the place of another expert's copy on a foreign host, which moves to an open rank at home.

        Where every open rank holds that expert already, the copy is given up if its others survive without it.
        """
        home = self.host_R[open_ranks[0]]
        for rank, row in enumerate(self.held):
            if self.host_R[rank] == home:
                continue
            for other in row:
                stay = [r for r in self.ranks_of[other] if r != rank]
                goal = next((r for r in open_ranks if r not in stay), None)
                moves = goal is not None and (not stay or self.survives([*stay, goal]))
                if moves or self.survives(stay):
                    self._take(other, rank)
                    if goal is not None and moves:
                        self._put(other, goal)
                    self._put(expert, rank)
                    return

    def _put(self, expert: int, rank: int) -> None:
        self.held[rank].append(expert)
        self.ranks_of[expert].append(rank)

    def _take(self, expert: int, rank: int) -> None:
        self.held[rank].remove(expert)
        self.ranks_of[expert].remove(rank)

    def _load(self, rank: int) -> float:
        load = sum(self.problem.load_E[e] / len(self.ranks_of[e]) for e in self.held[rank])
        return float(load * self.problem.cost.row_us_R[rank])


def lost_on_each_host(placements: Sequence[Placement], host_R: IntArray) -> list[int]:
    """Return, for each host, the experts of all layers that would be lost with it."""
    counts = np.zeros(int(host_R.max()) + 1, dtype=np.int64)
    for placement in placements:
        alone_S = ~survivors_E(placement, host_R)[placement.expert_S]
        pairs = np.unique(placement.expert_S[alone_S] * len(counts) + host_R[placement.rank_S[alone_S]])
        counts += np.bincount(pairs % len(counts), minlength=len(counts))
    return [int(count) for count in counts]
