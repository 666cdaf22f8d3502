"""From the plan in force to the next one: planned freely, then with the fewest weights to move, or only so many.

1. The free plan is aligned with the plan in force: the fewest experts arrive at the same predicted time.
2. Where moves are limited or priced, a search that starts from the plan in force keeps, for each layer, the placements
   it passes: new shares (no move at all), then swap after swap. With the free plan they are the layer's options.
3. One option a layer is chosen at the least total under the limit (see `planner.solve.options`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from planner.align import align, arrivals, in_old_slots
from planner.layer import LayerProblem
from planner.migrate import ANY_MOVES, InForce, MoveLimit
from planner.placement import IntArray, Placement, check_placement
from planner.predict import Prediction
from planner.solve.incumbents import Incumbents
from planner.solve.one_layer import search_problem
from planner.solve.options import Option, choose, worthwhile
from planner.solve.repair import adapted
from planner.solve.shares import best_shares
from planner.solve.solution import LayerSolution, Solution
from planner.solve.swaps import descend_by_swaps
from planner.survive import Backups
from planner.timing import Exchange, TimingProfile, plain
from planner.workload import TokenSampler, Workload

STRIDES = (1, 1, 1, 1, 2, 2, 2, 4, 4, 6, 8, 8, 12, 16)  # swaps between the placements that are kept as options
SHARE_ROUNDS = 3
UNEVEN, FEW_MOVES = 3, 16  # a layer's search ends beyond this many times its even part of the moves, and this many


@dataclass(frozen=True, eq=False)
class Replanned:
    """The next plan beside what it replaces and what it could be.

    Attributes:
        solution: the next plan.
        in_force: prediction of the plan in force on the workload, mended first where slots or ranks are gone.
        free: prediction of the best plan with no limit on moves.
        moves, free_moves: experts that travel for the next plan, and for the one without a limit.

    """

    solution: Solution
    in_force: Prediction
    free: Prediction
    moves: int
    free_moves: int

    @property
    def part_of_gain(self) -> float:
        """Return which part of the step time that the free plan saves this one saves; 1 where there is none to save."""
        possible_us = self.in_force.total_us - self.free.total_us
        saved_us = self.in_force.total_us - self.solution.predictions[-1].total_us
        return saved_us / possible_us if possible_us > 0 else 1.0


def replan(
    free: Solution,
    in_force: InForce,
    workload: Workload,
    profile: TimingProfile,
    slots_R: IntArray,
    limit: MoveLimit = ANY_MOVES,
    *,
    backups: Sequence[Backups] | None = None,
    search: bool = True,
    seed: int = 0,
    workers: int | None = None,
    deadline: float | None = None,
) -> Replanned:
    """Return the plan to follow `in_force`, given the one that a search without regard to it found.

    The result is never worse than the plan in force, under the better exchange of the two plans. Deterministic for a
    seed at any number of workers, unless `deadline` (`time.monotonic()`) cuts it short; without `search` only the two
    plans themselves are options. Raises Infeasible where even the fewest moves that make the plan in force valid are
    too many.
    """
    started = time.monotonic()
    overlap = free.predictions[-1].overlap
    known = Incumbents(workload, profile, slots_R, free.objective, overlap, free.baselines, backups, free.even)
    near = _NearSearch(known, in_force, free, limit, search, seed, workers, deadline)
    found = {name: near.layers(name) for name in dict.fromkeys((plain(free.exchange), in_force.exchange))}
    exchange, chosen = _cheapest(found, limit)
    free_exchange, unlimited = _cheapest(found, ANY_MOVES)
    valid = [layer.valid for layer in found[exchange]]
    mended = any(layer.mended for layer in found[exchange])
    solution = replace(
        free,
        exchange=exchange,
        layers=tuple(
            LayerSolution(one.placement, one.objective, bound, 0.0)
            for one, bound in zip(chosen, known.bounds(exchange, thorough=search).tolist(), strict=True)
        ),
        predictions=(*known.baselines_predicted(exchange), known.predict([one.placement for one in chosen], exchange)),
        seconds=free.seconds + time.monotonic() - started,
    )
    before = known.predict(valid, in_force.exchange)
    without_limit = known.predict([one.placement for one in unlimited], free_exchange)
    return Replanned(
        solution=solution,
        in_force=replace(before, name="in force, mended" if mended else "in force"),
        free=replace(without_limit, name="any moves"),
        moves=sum(one.moves for one in chosen),
        free_moves=sum(one.moves for one in unlimited),
    )


def _cheapest(found: Mapping[Exchange, Sequence[_LayerOptions]], limit: MoveLimit) -> tuple[Exchange, list[Option]]:
    """Return the exchange and the option of each layer that cost the least under a limit."""
    chosen = {
        name: choose([layer.options for layer in layers], limit.price_us, limit.max_moves)
        for name, layers in found.items()
    }
    total = {name: sum(one.objective + limit.price_us * one.moves for one in layers) for name, layers in chosen.items()}
    best = min(total, key=total.__getitem__)
    return best, chosen[best]


@dataclass(frozen=True, eq=False)
class _NearSearch:
    """The search around a plan in force."""

    known: Incumbents
    in_force: InForce
    free: Solution
    limit: MoveLimit
    search: bool
    seed: int
    workers: int | None
    deadline: float | None

    def layers(self, exchange: Exchange) -> list[_LayerOptions]:
        """Return what can follow in every layer, under an exchange."""
        workload = self.known.workload
        strides = STRIDES if self.search and not self.limit.is_free else ()
        import joblib  # noqa: PLC0415 - a tenth of a second, and not every plan needs it

        calls = (
            joblib.delayed(_layer_options)(
                self.known.problem(exchange, row),
                self.in_force.placements[row],
                self.free.placements[row],
                None if workload.routing.trace is not None else workload.sampler(row),
                strides,
                self._most_moves,
                self.seed,
                self.deadline,
            )
            for row in range(workload.num_layers)
        )
        found: list[_LayerOptions] = joblib.Parallel(n_jobs=self.workers or joblib.cpu_count())(calls)
        return found

    @property
    def _most_moves(self) -> float:
        """Return the moves after which a layer's search ends: a few times its even part of what is allowed."""
        if self.limit.max_moves is None:
            return float("inf")
        return max(FEW_MOVES, UNEVEN * self.limit.max_moves / self.known.workload.num_layers)


@dataclass(frozen=True, eq=False)
class _LayerOptions:
    """What can follow in one layer: the plan in force made valid, if it had to be, and all that is worthwhile."""

    valid: Placement
    mended: bool
    options: list[Option]


def _layer_options(
    problem: LayerProblem,
    old: Placement,
    free: Placement,
    sampler: TokenSampler | None,
    strides: Sequence[int],
    most_moves: float,
    seed: int,
    deadline: float | None,
) -> _LayerOptions:
    """Search a layer from the plan in force; options are judged over the problem's own tokens, as everywhere."""
    valid = adapted(problem, old)

    def option(placement: Placement) -> Option:
        check_placement(placement, problem.slots_R, where="search from the plan in force")
        return Option(placement, problem.evaluate(placement).layer_us, arrivals(old, placement))

    options = [option(valid), option(align(problem, old, free))]
    if strides:
        searched = search_problem(problem, sampler, seed)
        placement = best_shares(searched, valid, SHARE_ROUNDS)
        options.append(option(placement))
    for stride in strides:
        if deadline is not None and time.monotonic() >= deadline:
            break
        moved = descend_by_swaps(searched, placement, stride, deadline)
        if moved is placement:
            break
        placement = best_shares(searched, moved, SHARE_ROUNDS)
        options.append(option(placement))
        if options[-1].moves > most_moves:
            break
    in_order = [replace(one, placement=in_old_slots(old, one.placement)) for one in worthwhile(options)]
    return _LayerOptions(valid, valid is not old, in_order)
