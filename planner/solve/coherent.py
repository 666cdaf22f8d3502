"""The search for a plan under the coherent exchange: all layers together, by the predicted time of the whole step.

1. Starts: the baselines, and the plan that `solve` finds for the plain exchanges: balanced, with the experts that
   tokens visit together in one domain.
2. Rank maps that follow the tokens (`planner.solve.affinity`): what a rank holds stays together, and with it the
   balance, but goes where its tokens come from; first whole domains, then the ranks inside them.
3. Descent, one layer after the other: two slots trade places, or all that two ranks hold, where that is faster for the
   layer and the next one, whose tokens it leaves elsewhere. Rows are counted from the trace every time. A sweep
   that gained nothing is followed by one from the best plan with a trade in every layer.

The best of all is taken, by its prediction: no baseline is better under this exchange.

Shapes: L layers, P tokens, R ranks, G groups of ranks, M members of a group, S slots.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from planner.coherent import CoherentStep, coherent_step, predict_coherent
from planner.coherent_rows import WAYS
from planner.cost import Phase
from planner.layer import layer_problem
from planner.placement import FloatArray, IntArray, Placement
from planner.solve.affinity import follow
from planner.solve.bounds import lower_bound
from planner.solve.incumbents import slots_of_layers
from planner.solve.solution import LayerSolution, Solution
from planner.solve.swaps import soft_layer_us, swapped
from planner.timing import TimingProfile
from planner.workload import Workload

WORK = 30_000_000  # tokens of a layer whose rows the descent may count: a minute or two
TRIALS = (5, 50)  # the fewest and the most trades that are tried in a layer and sweep
SWEEPS = (3, 12)  # the fewest and the most sweeps over all layers
WHOLE_RANKS = 0.3  # part of the trades that take all that two ranks hold
MIN_GAIN = 1e-6  # a relative gain below this is not worth a trade


def solve_coherent(
    plain: Solution,
    workload: Workload,
    profile: TimingProfile,
    slots: IntArray,
    seed: int,
    deadline: float | None,
    on_layer: Callable[[int], None],
) -> Solution:
    """Return the best plan under the coherent exchange, from the one for plain exchanges and from the baselines.

    `slots` are those of each rank [R], or of each rank in each layer [L, R]. `deadline` is a `time.monotonic()` moment
    that ends the search; without one the answer is the same for the same inputs and seed. Ctrl-C ends it early and
    returns the best so far. `on_layer` is called with the number of layers done in a sweep.
    """
    started = time.monotonic()
    slots_LR = slots_of_layers(slots, workload)
    domain_R = np.asarray(workload.cluster.domain_of_rank)
    alike = bool((slots_LR == slots_LR[:, :1]).all())  # else what one rank holds has no room on another
    steps = [coherent_step(workload, profile, way) for way in WAYS]
    baselines = [predict_coherent(*one, workload, profile) for one in plain.baselines.items()]
    starts = [[one.without_duplicates() for one in placements] for placements in plain.baselines.values()]
    starts.append(plain.placements)
    search = plain.complete and (deadline is None or time.monotonic() < deadline)
    if alike and search:
        starts += [followed(steps[0], placements, domain_R) for placements in starts]
    tried = [(step.predict("start", start).total_us, step, start) for step in steps for start in starts]
    _, step, best = min(tried, key=lambda one: one[0])
    complete = plain.complete
    if search:
        descent = _Descent(step, np.random.default_rng(seed), deadline, on_layer, whole_ranks=alike)
        best, complete = descent.run(best)
    found = predict_coherent("this plan", best, workload, profile)
    bound_L = np.min([_bounds(step, workload, slots_LR) for step in steps], axis=0).tolist()
    layers = tuple(
        LayerSolution(placement, layer.layer_us, bound, 0.0)
        for placement, layer, bound in zip(best, found.layers, bound_L, strict=True)
    )
    without = replace(plain.predictions[-1], name="without coherent")
    return replace(
        plain, exchange="coherent", layers=layers, predictions=(*baselines, without, found), complete=complete,
        seconds=plain.seconds + time.monotonic() - started,
    )  # fmt: skip


def followed(step: CoherentStep, placements: Sequence[Placement], domain_R: IntArray) -> list[Placement]:
    """Return the same placements on other ranks: where tokens come from, as whole domains and then as ranks in them."""
    domains = [np.flatnonzero(domain_R == d) for d in range(int(domain_R.max()) + 1)]
    if len({len(members) for members in domains}) == 1:
        placements = _traded(step, placements, np.stack(domains))
    for members in domains:
        placements = _traded(step, placements, members[:, None])
    return list(placements)


def _traded(step: CoherentStep, placements: Sequence[Placement], rank_GM: IntArray) -> list[Placement]:
    """Return the placements with the groups of ranks traded as wholes, to the least tokens between groups."""
    flow_LRR = np.stack([rows.visits_RR for rows in step.ways.walk(placements)][1:])
    flow_LGG = flow_LRR[:, rank_GM[:, None, :, None], rank_GM[None, :, None, :]].sum(axis=(3, 4)).astype(np.float64)
    new_LG = follow(flow_LGG, 1.0 - np.eye(len(rank_GM)))
    traded = []
    for placement, new_G in zip(placements, new_LG, strict=True):
        new_R = np.arange(placement.num_ranks)
        new_R[rank_GM] = rank_GM[new_G]
        traded.append(_on_ranks(placement, new_R))
    return traded


def _on_ranks(placement: Placement, new_R: IntArray) -> Placement:
    """Return the placement with all that rank r held on rank `new_R[r]`."""
    rank_S = new_R[placement.rank_S]
    order = np.argsort(rank_S, kind="stable")
    share_DS = placement.share_DS[:, order]
    return replace(placement, expert_S=placement.expert_S[order], rank_S=rank_S[order], share_DS=share_DS)


class _Descent:
    """Trades that make the step faster, tried at random, layer by layer."""

    def __init__(
        self,
        step: CoherentStep,
        rng: np.random.Generator,
        deadline: float | None,
        on_layer: Callable[[int], None],
        *,
        whole_ranks: bool,
    ) -> None:
        self._step, self._rng, self._deadline, self._on_layer = step, rng, deadline, on_layer
        self._whole_ranks = WHOLE_RANKS if whole_ranks else 0.0
        in_a_layer = WORK // (2 * step.ways.ids_LPK[..., 0].size)  # a trade counts the rows of two layers
        self._trials = int(np.clip(in_a_layer // SWEEPS[0], *TRIALS))
        self._sweeps = int(np.clip(in_a_layer // self._trials, *SWEEPS))

    def run(self, placements: Sequence[Placement]) -> tuple[list[Placement], bool]:
        """Return the best placements after any sweep, or those that it was given; and whether Ctrl-C did not end it."""
        now = best = list(placements)
        best_us = self._step.predict("start", best).total_us
        try:
            for _ in range(self._sweeps) if self._deadline is None else itertools.count():
                if self._late():
                    break
                now = self._sweep(now)
                total_us = self._step.predict("sweep", now).total_us
                if total_us < best_us:
                    best, best_us = now, total_us
                else:
                    now = [self._trade(placement) or placement for placement in best]
        except KeyboardInterrupt:
            return best, False
        return best, True

    def _sweep(self, placements: Sequence[Placement]) -> list[Placement]:
        placements, at_P = list(placements), self._step.ways.home_P
        for row in range(len(placements)):
            if not self._late():
                placements[row] = self._improved(row, placements, at_P)
            at_P = self._step.ways.rows(row, placements[row], at_P).at_P
            self._on_layer(row + 1)
        return placements

    def _improved(self, row: int, placements: Sequence[Placement], at_P: IntArray) -> Placement:
        """Return the placement of a layer after the trades that pay, with the tokens on the ranks `at_P` before it."""
        placement = placements[row]
        following = placements[row + 1] if row + 1 < len(placements) else None
        now_us = self._soft_us(row, placement, following, at_P)
        for _ in range(self._trials):
            trial = self._trade(placement)
            if trial is None or self._late():
                continue
            trial_us = self._soft_us(row, trial, following, at_P)
            if trial_us < now_us * (1 - MIN_GAIN):
                placement, now_us = trial, trial_us
        return placement

    def _soft_us(self, row: int, placement: Placement, following: Placement | None, at_P: IntArray) -> float:
        """Return a smooth stand-in for the time of a layer and of what comes after it: the next one, or the gather."""
        step = self._step
        rows = step.ways.rows(row, placement, at_P)
        own_us = soft_layer_us(step.layer(row, placement, rows))
        if following is None:
            return own_us + step.gather_us(rows.at_P)
        return own_us + soft_layer_us(step.layer(row + 1, following, step.ways.rows(row + 1, following, rows.at_P)))

    def _trade(self, placement: Placement) -> Placement | None:
        """Return the placement after a trade drawn at random; None where it would put two copies on one rank."""
        rank_S, expert_S, rng = placement.rank_S, placement.expert_S, self._rng
        if rng.random() < self._whole_ranks:
            one, other = rng.integers(placement.num_ranks, size=2)
            new_R = np.arange(placement.num_ranks)
            new_R[[one, other]] = other, one
            return _on_ranks(placement, new_R)
        mine, theirs = (int(slot) for slot in rng.integers(len(expert_S), size=2))
        here, there = expert_S[rank_S == rank_S[mine]], expert_S[rank_S == rank_S[theirs]]
        if expert_S[theirs] in here or expert_S[mine] in there:
            return None
        return swapped(placement, [(mine, theirs, int(rank_S[theirs]))])

    def _late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline


def _bounds(step: CoherentStep, workload: Workload, slots_LR: IntArray) -> FloatArray:
    """Return a lower bound of every layer [L]: start-ups, and what experts must take; of the rows nothing is proven."""
    dispatch, combine = (Phase(phase.alpha_us, (), ()) for phase in (step.cost.dispatch, step.cost.combine))
    bare = replace(step.cost, dispatch=dispatch, combine=combine)
    bounds = []
    for row, load_E in enumerate(step.load_LE):
        problem = layer_problem(workload, bare, slots_LR[row], row)
        rows_CE = np.tile(load_E / workload.num_ranks, (len(problem.class_size_C), 1))
        bounds.append(lower_bound(replace(problem, rows_CE=rows_CE, active_E=-np.expm1(-load_E))))
    bounds[-1] += combine.alpha_us  # of the gather
    return np.array(bounds)
