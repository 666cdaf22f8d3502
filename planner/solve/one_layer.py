"""The search for one layer: starts, swaps, shares, neighbourhoods, bound.

Deterministic for a seed unless a deadline cuts it short; at any moment the best placement so far is valid and no worse
than any placement it was given to start from.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.layer import LayerProblem
from planner.placement import IntArray, Placement
from planner.solve.bounds import lower_bound
from planner.solve.domains import has_domain_traffic, improve_domains
from planner.solve.placement_milp import PlacementModel
from planner.solve.shares import best_shares
from planner.solve.solution import LayerSolution
from planner.solve.start import constructed
from planner.solve.swaps import descend_by_swaps, swapped
from planner.solve.verify import broken_constraint
from planner.wire import TokenSample
from planner.workload import TokenSampler

SEARCH_TOKENS = 4096  # a search over few tokens learns the sample by heart (docs/log.md, 2026-11-21)
EXACT_PAIRS = 32  # experts x ranks up to which the exact model is tried first
EXACT_NODES = 2_000  # an end for the exact model where symmetry makes it long; its bound stays proven
FINALIST_PAIRS = 16_384  # experts x ranks for each start that is descended from: small layers afford several
MOST_FINALISTS = 4
FEWER_SLOTS = (0, 1, 2, 4)  # slots of a rank beyond what the experts need, from which a search may start
SHAKEN_SLOTS = 8  # pairs of slots traded at random before a restart
SMALL_PAIRS, SMALL_RESTARTS = 64, 5  # experts x ranks up to which a single descent is easily caught, and how often then
CLOSE_ENOUGH = 1e-4  # relative gap at which the search stops: load statistics are noisier than this


@dataclass(frozen=True)
class Budget:
    """How hard to search: counts, not seconds, so that the answer does not depend on the machine.

    Attributes:
        finalists: starts that the descent is run from; None for as many as a layer of its size affords.
        domain_swaps: steps of the descent between domains.
        swaps: steps of the descent between ranks.
        share_rounds: linearisations of the shares where the cost is not linear.
        neighbourhoods: mixed-integer sub-problems of the final polish.
        neighbourhood_ranks: ranks freed in each.
        nodes: branch-and-bound nodes of each.
        restarts: descents from the best placement, shaken; None for a few where the layer is small.
        proof: whether a lower bound is worked out; without it is 0.

    """

    finalists: int | None = None
    domain_swaps: int = 100
    swaps: int = 150
    share_rounds: int = 3
    neighbourhoods: int = 2
    neighbourhood_ranks: int = 3
    nodes: int = 20
    restarts: int | None = None
    proof: bool = True


# for searches that a deadline ends: every start in turn, then neighbourhoods until the time is up
UNTIL_DEADLINE = Budget(finalists=1000, domain_swaps=1000, swaps=1000, neighbourhoods=100_000, restarts=100_000)


def solve_layer(
    problem: LayerProblem,
    starts: Sequence[Placement],
    budget: Budget,
    *,
    sampler: TokenSampler | None = None,
    seed: int = 0,
    deadline: float | None = None,
) -> LayerSolution:
    """Search for the cheapest placement; `deadline` is a `time.monotonic()` moment after which it only wraps up.

    With a `sampler` the search counts rows over more tokens of its own, and the placement that it finds is judged
    over the tokens of `problem` like any start: what it reports is not flattered by the sample that it searched on.
    """
    starts = [problem.fitted(start) for start in starts]
    search = _Search(search_problem(problem, sampler, seed), budget, np.random.default_rng(abs(seed)), deadline)
    search.run(starts)
    candidates = [search.best] if sampler is None else [search.best, *search.arrivals, *starts]
    costs = [problem.evaluate(candidate).layer_us for candidate in candidates]
    best = int(np.argmin(costs))
    proven = search.bound if search.problem is problem else 0.0  # another sample proves nothing of this one
    bound = max(proven, lower_bound(problem, thorough=True)) if budget.proof else 0.0
    return LayerSolution(candidates[best], costs[best], bound, time.monotonic() - search.started)


def search_problem(problem: LayerProblem, sampler: TokenSampler | None, seed: int) -> LayerProblem:
    """Return the layer as a search sees it: with more sampled tokens, and others, than those it is judged by."""
    if sampler is None or problem.tokens is None:
        return problem
    ids_PK = sampler.draw(SEARCH_TOKENS, seed + 1)
    tokens = TokenSample.of_ids(ids_PK, problem.num_experts, sampler.class_P(SEARCH_TOKENS), problem.tokens.tokens_C)
    return replace(problem, tokens=tokens)


class _Search:
    """State of one search: the best placement so far, the bound, and what is left of the budget."""

    def __init__(self, problem: LayerProblem, budget: Budget, rng: np.random.Generator, deadline: float | None) -> None:
        self.problem, self.budget, self.rng, self.deadline = problem, budget, rng, deadline
        self.started = time.monotonic()
        self.bound = lower_bound(problem) if budget.proof else 0.0
        self.best: Placement
        self.best_us = float("inf")
        self.arrivals: list[Placement] = []  # where each descent ended

    def run(self, starts: Sequence[Placement]) -> None:
        """Run the whole search."""
        for start in starts:
            self._keep(self.problem.fitted(start.without_duplicates().without_idle_slots()))
        if self._done():
            return
        if self.problem.num_experts * self.problem.num_ranks <= EXACT_PAIRS and self._linear:
            self._solve_exactly()
        pool = [start.without_duplicates() for start in starts]
        pool = [self.problem.fitted(placement) for placement in (*pool, *self._constructions(pool))]
        pool.sort(key=lambda placement: self.problem.evaluate(placement).layer_us)
        affordable = min(max(FINALIST_PAIRS // (self.problem.num_experts * self.problem.num_ranks), 1), MOST_FINALISTS)
        for start in pool[: self.budget.finalists or affordable]:
            if self._done():
                return
            self.arrivals.append(self._improve(start))
        if self._linear:
            self._polish()
        else:
            self._restart()

    def _improve(self, placement: Placement) -> Placement:
        """Run the descents from one start: between domains, then between ranks, with the best shares after each.

        Returns where they end.
        """
        problem, budget = self.problem, self.budget
        placement = self._keep(best_shares(problem, placement, budget.share_rounds))
        if has_domain_traffic(problem):
            placement = improve_domains(problem, placement, budget.domain_swaps, self.deadline)
            placement = self._keep(best_shares(problem, placement, budget.share_rounds))
        if not self._done():
            placement = descend_by_swaps(problem, placement, budget.swaps, self.deadline)
            placement = self._keep(best_shares(problem, placement, budget.share_rounds))
        return placement

    @property
    def _linear(self) -> bool:
        return not any(leg.distinct for leg in self.problem.cost.dispatch.legs)

    def _done(self) -> bool:
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return late or self.best_us <= self.bound * (1 + CLOSE_ENOUGH)

    def _keep(self, placement: Placement) -> Placement:
        """Take over a placement if it is cheaper and, checked from the definitions, valid; return it either way."""
        cost_us = self.problem.evaluate(placement).layer_us
        if cost_us < self.best_us and not broken_constraint(placement, self.problem.slots_R, self.problem.num_experts):
            self.best, self.best_us = placement, cost_us
        return placement

    def _constructions(self, starts: Sequence[Placement]) -> list[Placement]:
        """Return placements built for several amounts of redundancy, and around the homes that the starts chose."""
        problem = self.problem
        spare = int(problem.slots_R.sum()) - problem.num_experts
        built = [constructed(problem, amount, local=False) for amount in {spare, spare // 2, 0}]
        for fewer in fewer_slots(problem):
            amount = int(fewer.slots_R.sum()) - problem.num_experts
            built += [constructed(fewer, amount, local=local) for local in {False, problem.num_domains > 1}]
        if problem.num_domains > 1:
            built += [constructed(problem, amount, local=True) for amount in {spare, spare // 2}]
            homes = {_homes(problem, start).tobytes(): _homes(problem, start) for start in starts}
            built += [constructed(problem, spare, local=True, home_E=home_E) for home_E in homes.values()]
        return built

    def _solve_exactly(self) -> None:
        model = PlacementModel(self.problem, range(self.problem.num_ranks), self.best)
        model.build()
        result = model.solve(max_nodes=EXACT_NODES, time_limit_s=self._seconds_left())
        if result.has_solution:
            self._keep(model.placement(result))
        fixed_us = (
            self.problem.cost.dispatch.alpha_us + self.problem.cost.launch_us + self.problem.cost.combine.alpha_us
        )
        bound_us = self.problem.cost.layer_bound_us(result.bound + fixed_us)
        self.bound = max(self.bound, min(bound_us, self.best_us))

    def _polish(self) -> None:
        """Free a few ranks at a time and solve them exactly (large-neighbourhood search)."""
        for _ in range(self.budget.neighbourhoods):
            if self._done():
                return
            model = PlacementModel(self.problem, self._neighbourhood(), self.best, self._newcomers())
            model.build()
            result = model.solve(
                max_nodes=self.budget.nodes, time_limit_s=self._seconds_left(), relative_gap=CLOSE_ENOUGH
            )
            if result.has_solution:
                trial = model.placement(result)
                self._keep(best_shares(self.problem, trial))

    def _restart(self) -> None:
        """Shake the best placement and descend again: where rows are not linear, no exact model helps out."""
        small = self.problem.num_experts * self.problem.num_ranks <= SMALL_PAIRS
        restarts = self.budget.restarts
        for _ in range((SMALL_RESTARTS if small else 0) if restarts is None else restarts):
            if self._done():
                return
            self._improve(self._shaken())

    def _shaken(self) -> Placement:
        """Return the best placement with a few random slots traded."""
        placement = self.best
        for _ in range(SHAKEN_SLOTS):
            mine, theirs = self.rng.integers(len(placement.expert_S), size=2)
            trial = swapped(placement, [(int(mine), int(theirs), int(placement.rank_S[theirs]))])
            if len(trial.without_duplicates().expert_S) == len(trial.expert_S):
                placement = trial
        return placement

    def _seconds_left(self) -> float | None:
        return None if self.deadline is None else max(self.deadline - time.monotonic(), 0.1)

    def _neighbourhood(self) -> list[int]:
        """Return ranks to free: the busiest, the idlest, and others at random."""
        compute_us_R = self.problem.evaluate(self.best).compute_us_R
        order = np.argsort(-compute_us_R, kind="stable")
        count = min(self.budget.neighbourhood_ranks, len(order))
        ranks = [int(order[0]), int(order[-1])][:count]
        others = [int(rank) for rank in order if int(rank) not in ranks]
        return (
            ranks
            + [int(rank) for rank in self.rng.choice(others, size=min(count - len(ranks), len(others)), replace=False)]
            if others
            else ranks
        )

    def _newcomers(self) -> list[int]:
        """Return a few of the hottest experts, which may gain a replica on the freed ranks."""
        return [int(e) for e in np.argsort(-self.problem.load_E, kind="stable")[:4]]


def fewer_slots(problem: LayerProblem) -> list[LayerProblem]:
    """Return the layer with fewer slots on every rank: in a small batch weights cost more than rows do."""
    most = int(problem.slots_R.max())
    held_K = [int(np.minimum(problem.slots_R, level).sum()) for level in range(most)]
    least = int(np.searchsorted(held_K, problem.num_experts))
    levels = [least + extra for extra in FEWER_SLOTS if least + extra < most]
    return [replace(problem, slots_R=np.minimum(problem.slots_R, level)) for level in levels]


def _homes(problem: LayerProblem, placement: Placement) -> IntArray:
    """Return the domain of the first slot of each expert."""
    experts, first_E = np.unique(placement.expert_S, return_index=True)
    home_E = np.empty(len(experts), dtype=np.int64)
    home_E[experts] = problem.domain_R[placement.rank_S[first_E]]
    return home_E
