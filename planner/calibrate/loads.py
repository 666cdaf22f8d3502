"""The loads behind expert-compute tables: how many rows each expert of the measured rank got.

aiconfigurator (NVIDIA, Apache-2.0, collector/helper.py; read, not copied) draws each expert's popularity from
p(x) ~ x^-alpha on [1, 0.8 T] (on [0.01, 2] where T k <= E), scales to T k pairs, rounds, caps an expert at T tokens,
gives what is missing to the least loaded experts, and measures the rank with most pairs. With EPLB it first replicates
(largest load per copy), packs greedily, and measures the slowest rank.

Shapes: N draws, E experts, S slots of the measured rank; T tokens of all ranks, k experts a token.
"""

from __future__ import annotations

import heapq
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from planner.placement import FloatArray

IntArray = NDArray[np.int64]
DRAWS = 24  # draws that stand for the expectation; benchmarks took 1 to 10
_DISTRIBUTION = re.compile(r"^(?:(balanced)|power_law_(\d+(?:\.\d+)?)(_eplb)?)$")


@dataclass(frozen=True)
class Step:
    """One measured case: tokens of all ranks, experts, top_k, ranks, slots of all ranks, and how the load is made."""

    tokens: int
    experts: int
    top_k: int
    ranks: int
    slots: int
    distribution: str


def is_known(distribution: str) -> bool:
    """Return whether we know how the loads of a distribution are made."""
    return _DISTRIBUTION.match(distribution) is not None


@lru_cache(maxsize=4096)
def rank_loads(step: Step, draws: int = DRAWS, seed: int = 0) -> tuple[IntArray, ...]:
    """Return the rows of each slot of the measured rank, one array [S] a draw.

    The same case always gets the same draws. The distribution must be one that `is_known`.
    """
    match = _DISTRIBUTION.match(step.distribution)
    assert match is not None, "checked by is_known"
    if match[1]:
        return (_balanced(step),)
    rng = np.random.default_rng([seed, step.tokens, step.experts, step.top_k, round(1000 * float(match[2]))])
    counts_NE = power_law_counts(rng, draws, step.tokens, step.experts, step.top_k, float(match[2]))
    if match[3]:
        return tuple(_slowest_rank_of_eplb(counts_E, step) for counts_E in counts_NE)
    grouped = counts_NE[:, : step.experts // step.ranks * step.ranks].reshape(draws, step.ranks, -1)
    busiest_N = grouped.sum(axis=2).argmax(axis=1)
    return tuple(grouped[n, rank] for n, rank in enumerate(busiest_N))


def _balanced(step: Step) -> IntArray:
    """Return the rows of rank 0 where tokens walk round the experts: token t takes t, t + E/k, t + 2 E/k, ..."""
    stride = -(-step.experts // step.top_k)
    rounds, rest = divmod(step.tokens, step.experts)  # in E tokens every expert gets k
    start_T = np.arange(rest, dtype=float)
    if step.tokens < stride:
        start_T *= stride / step.tokens
    experts_TK = np.floor(start_T[:, None] + np.arange(step.top_k) * stride).astype(np.int64) % step.experts
    counts_E: IntArray = rounds * step.top_k + np.bincount(experts_TK.ravel(), minlength=step.experts)
    return counts_E[: max(step.experts // step.ranks, 1)]


def power_law_counts(
    rng: np.random.Generator, draws: int, tokens: int, experts: int, top_k: int, alpha: float
) -> IntArray:
    """Return [N, E] token-expert pairs; every row sums to tokens * top_k, no entry exceeds tokens."""
    low, high = (1.0, max(0.8 * tokens, 1.0)) if tokens * top_k > experts else (0.01, 2.0)
    uniform = rng.random((draws, experts))
    popularity: FloatArray
    if abs(alpha - 1) < 1e-9:
        popularity = low * (high / low) ** uniform
    else:
        a = 1 - alpha
        popularity = ((high**a - low**a) * uniform + low**a) ** (1 / a)
    pairs = tokens * top_k
    counts_NE: IntArray = np.rint(popularity / popularity.sum(axis=1, keepdims=True) * pairs).astype(np.int64)
    counts_NE = np.minimum(counts_NE, tokens)
    for counts_E in counts_NE:
        _settle(counts_E, pairs, tokens)
    return counts_NE


def _settle(counts_E: IntArray, pairs: int, tokens: int) -> None:
    """Give or take pairs, least loaded experts first, until the counts sum to `pairs`; changes its argument."""
    coldest_E = np.argsort(-counts_E, kind="stable")[::-1]
    while (missing := pairs - int(counts_E.sum())) > 0:
        room = coldest_E[counts_E[coldest_E] < tokens]
        if room.size == 0:
            return
        rounds = min(missing // room.size, int((tokens - counts_E[room]).min()))  # in which all of them get one
        counts_E[room if rounds else room[:missing]] += max(rounds, 1)
    for turn in range(-missing):
        expert = coldest_E[turn % len(coldest_E)]
        counts_E[expert if counts_E[expert] > 0 else int(counts_E.argmax())] -= 1


def _slowest_rank_of_eplb(counts_E: IntArray, step: Step) -> IntArray:
    """Replicate, pack greedily, and return the rows of the slowest rank's slots.

    Pairs of a replicated expert split evenly; fractions are rounded down and what is left goes to the largest
    fractions, ties to the slowest rank (it is numbered first).
    """
    copies_E = np.ones(step.experts, dtype=np.int64)
    heap = [(-float(load), expert) for expert, load in enumerate(counts_E)]
    heapq.heapify(heap)
    for _ in range(step.slots - step.experts):
        _, expert = heap[0]
        copies_E[expert] += 1
        heapq.heapreplace(heap, (-counts_E[expert] / copies_E[expert], expert))
    load_S = np.repeat(counts_E / copies_E, copies_E)
    members = greedy_pack(load_S, step.ranks)
    slowest = max(range(step.ranks), key=lambda rank: load_S[members[rank]].sum())
    order = np.concatenate([members[slowest]] + [part for rank, part in enumerate(members) if rank != slowest])
    floor_S = np.floor(load_S[order] + 1e-9)
    left = int(counts_E.sum() - floor_S.sum())
    floor_S[np.argsort(floor_S - load_S[order], kind="stable")[: max(left, 0)]] += 1
    return floor_S[: len(members[slowest])].astype(np.int64)


def greedy_pack(load_S: FloatArray, ranks: int) -> list[IntArray]:
    """Return the slots of each rank: heaviest slot first, to the least loaded rank that has room."""
    most = len(load_S) // ranks
    members: list[list[int]] = [[] for _ in range(ranks)]
    heap = [(0.0, rank) for rank in range(ranks)]
    for slot in np.argsort(-load_S, kind="stable")[: most * ranks]:
        load, rank = heapq.heappop(heap)
        members[rank].append(int(slot))
        if len(members[rank]) < most:
            heapq.heappush(heap, (load + float(load_S[slot]), rank))
    return [np.array(part, dtype=np.int64) for part in members]
