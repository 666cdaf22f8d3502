"""What routing statistics say before any plan: skew, drift, co-activation, and whether placing experts can help at all.

Shapes: L layers, E experts, W windows, T tokens, K top_k, R ranks, P slots.

Definitions, all per layer:
- skew: tokens of the busiest expert over the mean of all.
- drift: how much of the load moves to other experts from one window to the next: the total variation distance of their
  distributions (0 = none, 1 = all), less what windows of that size show by chance alone.
- co-activation: how far pairs of experts in one token are from what their loads alone would make: the same distance
  over pairs, less chance.
- imbalance on R ranks: tokens of the busiest rank over the mean; linear (ids in blocks), packed (each expert once, by
  EPLB's greedy packing), replicated (one spare slot a rank, by EPLB's replication and packing).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from planner.baselines import eplb
from planner.placement import FloatArray, IntArray
from planner.routing import Routing, count_trace
from topologies.errors import BadInput

HELPS = 1.05  # a gain below 5 % is within what drifts from day to day
PAIRED = 0.05  # part of the pairs that co-activation has to move before grouping experts saves rows worth counting
TRACE_WINDOWS = 8
MAX_PAIR_TOKENS = 16_384
DEFAULT_RANKS = 8


@dataclass(frozen=True)
class LayerReport:
    """One layer; see the module for the words. None where the statistics do not tell."""

    layer: int
    tokens: float
    skew: float
    top_tenth: float
    idle_experts: int
    drift: float | None
    co_activation: float | None
    linear: float
    packed: float
    replicated: float


@dataclass(frozen=True)
class Verdict:
    """Whether planning can pay, by the rule that `reasons` spell out.

    Attributes:
        placement: packing experts evens out ranks by `HELPS` or more.
        redundancy: one spare slot a rank evens them out by as much again.
        stale: a placement made on the first half of the recording loses that gain on the second half; None untold.
        grouping: co-activation is strong enough for grouping to save rows on the wire; None untold.

    """

    placement: bool
    redundancy: bool
    stale: bool | None
    grouping: bool | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class RoutingReport:
    """The report of one recording, or of several as windows of one."""

    name: str
    experts: int
    sources: int
    tokens: int | None
    top_k: int | None
    windows: int
    ranks: int
    layers: tuple[LayerReport, ...]
    verdict: Verdict

    def mean(self, field: str) -> float | None:
        """Return the mean over layers of a field, None where no layer has it."""
        values = [value for layer in self.layers if (value := getattr(layer, field)) is not None]
        return float(np.mean(values)) if values else None


def report(routing: Routing, ranks: int | None = None) -> RoutingReport:
    """Examine routing statistics for an EP group of `ranks` (default: 8, or what divides the experts).

    Raises BadInput where `ranks` does not divide the experts.
    """
    load_LE = routing.expert_counts
    experts = routing.num_experts
    if ranks is None:
        ranks = max(r for r in range(1, DEFAULT_RANKS + 1) if experts % r == 0)
    if ranks < 1 or experts % ranks:
        raise BadInput(f"--ranks {ranks} does not divide the {experts} experts of {routing.name}")
    windows_WLE = windows_of(routing)
    drift_L = None if windows_WLE is None else drift(windows_WLE)
    pairs_L = None if routing.trace is None else co_activation(routing.trace, experts)
    linear_L, packed_L, replicated_L = (imbalance(load_LE, *placed(load_LE, ranks, spare)) for spare in (None, 0, 1))
    sorted_LE = -np.sort(-load_LE, axis=1)
    tenth = max(1, round(experts / 10))
    layers = tuple(
        LayerReport(
            layer=layer,
            tokens=float(load_LE[row].sum()),
            skew=float(load_LE[row].max() / load_LE[row].mean()),
            top_tenth=float(sorted_LE[row, :tenth].sum() / load_LE[row].sum()),
            idle_experts=int((load_LE[row] == 0).sum()),
            drift=None if drift_L is None else float(drift_L[row]),
            co_activation=None if pairs_L is None else float(pairs_L[row]),
            linear=float(linear_L[row]),
            packed=float(packed_L[row]),
            replicated=float(replicated_L[row]),
        )
        for row, layer in enumerate(routing.layers)
    )
    return RoutingReport(
        name=routing.name,
        experts=experts,
        sources=routing.num_sources,
        tokens=routing.num_tokens,
        top_k=None if routing.trace is None else int(routing.trace.shape[2]),
        windows=1 if windows_WLE is None else len(windows_WLE),
        ranks=ranks,
        layers=layers,
        verdict=verdict(layers, windows_WLE, ranks),
    )


def windows_of(routing: Routing) -> FloatArray | None:
    """Return counts in consecutive spans [W, L, E]: those of the recording, or of its trace; None of plain counts."""
    if routing.windows is not None or routing.trace is None:
        return routing.windows
    if routing.trace.shape[1] < 2 * TRACE_WINDOWS:
        return None
    parts = np.array_split(np.arange(routing.trace.shape[1]), TRACE_WINDOWS)
    spans = [count_trace(routing.trace[:, part[0] : part[-1] + 1], routing.num_experts) for part in parts]
    return np.stack([span[:, 0] for span in spans])


def drift(windows_WLE: FloatArray) -> FloatArray:
    """Return for each layer the mean drift from a window to the next, chance taken off; idle windows are left out."""
    total_WL = windows_WLE.sum(axis=2)
    moved_L = np.zeros(windows_WLE.shape[1])
    for layer in range(len(moved_L)):
        used_WE = windows_WLE[total_WL[:, layer] > 0, layer]
        if len(used_WE) < 2:
            continue
        share_WE = used_WE / used_WE.sum(axis=1, keepdims=True)
        seen = 0.5 * np.abs(np.diff(share_WE, axis=0)).sum(axis=1)
        count_W = used_WE.sum(axis=1)
        mean_E = used_WE.sum(axis=0) / used_WE.sum()
        variance = (1 / count_W[1:] + 1 / count_W[:-1])[:, None] * (mean_E * (1 - mean_E))[None]
        chance = 0.5 * np.sqrt(2 * variance / np.pi).sum(axis=1)  # mean absolute value of a normal difference
        moved_L[layer] = np.maximum(seen - chance, 0).mean()
    return moved_L


def co_activation(trace_LTK: NDArray[np.integer], experts: int) -> FloatArray:
    """Return for each layer how far pairs of experts are from independence, chance taken off (0 = independent)."""
    tokens = trace_LTK.shape[1]
    kept = np.unique(np.linspace(0, tokens - 1, min(tokens, MAX_PAIR_TOKENS)).round().astype(int))
    return np.array([_paired(ids_TK, experts) for ids_TK in trace_LTK[:, kept]])


def _paired(ids_TK: NDArray[np.integer], experts: int) -> float:
    hit_TE = np.zeros((len(ids_TK), experts + 1), dtype=np.float32)
    hit_TE[np.arange(len(ids_TK))[:, None], ids_TK] = 1  # masked entries (-1) fall into the last column
    hit_TE = hit_TE[:, :experts]
    seen_EE = np.triu(hit_TE.T @ hit_TE, 1).astype(np.float64)
    load_E = hit_TE.sum(axis=0, dtype=np.float64)
    expected_EE = np.triu(np.outer(load_E, load_E), 1)
    total = seen_EE.sum()
    if not total or not expected_EE.any():
        return 0.0
    expected_EE *= total / expected_EE.sum()
    seen = 0.5 * np.abs(seen_EE - expected_EE).sum() / total
    chance = 0.5 * _poisson_deviation(expected_EE[expected_EE > 0]).sum() / total
    return float(max(seen - chance, 0.0))


def _poisson_deviation(mean_N: FloatArray) -> FloatArray:
    """Return the mean absolute deviation of Poisson counts of these means: 2 m^(floor(m) + 1) e^-m / floor(m)!."""
    whole_N = np.floor(mean_N)
    return 2 * np.exp((whole_N + 1) * np.log(mean_N) - mean_N - gammaln(whole_N + 1))


def placed(load_LE: FloatArray, ranks: int, spare: int | None) -> tuple[IntArray, int]:
    """Return the expert of every slot [L, P] and the slots of a rank: in blocks, or by EPLB with `spare` slots each."""
    layers, experts = load_LE.shape
    if spare is None:
        return np.tile(np.arange(experts), (layers, 1)), experts // ranks
    each = min(experts // ranks + spare, experts)
    return eplb(load_LE, each * ranks, 1, 1, ranks)[0], each


def imbalance(load_LE: FloatArray, phy2log_LP: IntArray, slots: int) -> FloatArray:
    """Return busiest rank over mean for each layer when every copy of an expert serves an equal part of its tokens."""
    rows = np.arange(len(load_LE))[:, None]
    copies_LE = np.zeros_like(load_LE)
    np.add.at(copies_LE, (rows, phy2log_LP), 1)
    served_LP = load_LE[rows, phy2log_LP] / copies_LE[rows, phy2log_LP]
    rank_LR = served_LP.reshape(len(load_LE), -1, slots).sum(axis=2)
    return np.asarray(rank_LR.max(axis=1) / rank_LR.mean(axis=1))


def verdict(layers: tuple[LayerReport, ...], windows_WLE: FloatArray | None, ranks: int) -> Verdict:
    """Judge by means over layers; the thresholds are `HELPS` and `PAIRED`."""
    linear, packed, replicated = (
        float(np.mean([getattr(layer, name) for layer in layers])) for name in ("linear", "packed", "replicated")
    )
    placement, redundancy = linear / packed >= HELPS, packed / replicated >= HELPS
    reasons = [
        f"placement {'helps' if placement else 'cannot help'} balance: on {ranks} ranks imbalance is {linear:.3f} with "
        f"experts in blocks and {packed:.3f} packed (rule: at least {HELPS - 1:.0%} less)",
        f"redundancy {'helps' if redundancy else 'cannot help'} balance: one spare slot a rank brings it to "
        f"{replicated:.3f} (rule: at least {HELPS - 1:.0%} less than packed)",
    ]
    stale = None
    if windows_WLE is not None and (placement or redundancy):
        stale, said = _staleness(windows_WLE, ranks)
        reasons.append(said)
    found = [layer.co_activation for layer in layers if layer.co_activation is not None]
    grouping = None
    if found:
        grouping = float(np.mean(found)) >= PAIRED
        reasons.append(
            f"grouping experts on ranks {'can save' if grouping else 'hardly saves'} rows: co-activation moves "
            f"{np.mean(found):.1%} of the pairs (rule: at least {PAIRED:.0%})"
        )
    return Verdict(placement, redundancy, stale, grouping, tuple(reasons))


def _staleness(windows_WLE: FloatArray, ranks: int) -> tuple[bool, str]:
    """Place on the first half of the windows and judge on the second."""
    half = len(windows_WLE) // 2
    old_LE, new_LE = windows_WLE[:half].sum(axis=0), windows_WLE[half:].sum(axis=0)
    kept = (old_LE.sum(axis=1) > 0) & (new_LE.sum(axis=1) > 0)
    if not kept.any():
        return False, "no layer has load in both halves of the recording"
    old_LE, new_LE = old_LE[kept], new_LE[kept]
    linear = float(imbalance(new_LE, *placed(new_LE, ranks, None)).mean())
    carried = float(imbalance(new_LE, *placed(old_LE, ranks, 1)).mean())
    stale = linear / carried < HELPS
    return stale, (
        f"a placement {'goes stale' if stale else 'keeps'}: made on the first half of the recording it has "
        f"{carried:.3f} on the second, where blocks have {linear:.3f} (rule: at least {HELPS - 1:.0%} less)"
    )
