"""Flows over shared links: each flow gets its max-min fair rate, until it is done and lets others through.

No flow can be made faster without slowing down one that is no faster (progressive filling). Flows may wait for others:
for a group of flows to be in, and a delay after that. Everything is worked out on flat arrays of (flow, link) pairs.

Shapes: F flows, N links, G groups of flows, Z (flow, link) pairs in order of flow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from planner.placement import FloatArray, IntArray

_TIE = 1e-9  # relative: shares this close are the same bottleneck


@dataclass(frozen=True, eq=False)
class Flows:
    """What is sent, and what has to happen before.

    Attributes:
        bytes_F: size of each flow; a flow of 0 bytes is done as soon as it may start.
        us_FN: microseconds of link n for each byte of flow f.
        group_F: group that has to be in before the flow starts; -1 for none.
        delay_F: microseconds between that (or time 0) and its first byte.
        member_F: group that the flow belongs to; -1 for none.
        num_groups: G; a group without members is in at time 0.

    """

    bytes_F: FloatArray
    us_FN: sp.csr_array
    group_F: IntArray
    delay_F: FloatArray
    member_F: IntArray
    num_groups: int


@dataclass(eq=False)
class Timeline:
    """When everything happened.

    Attributes:
        start_F, finish_F: of every flow, microseconds.
        group_G: when the last flow of each group was in.
        spans: (from, to, use of every link [N] between 0 and 1), in order of time.

    """

    start_F: FloatArray
    finish_F: FloatArray
    group_G: FloatArray
    spans: list[tuple[float, float, NDArray[np.float32]]] = field(default_factory=list)


def fair_rates(us_FN: sp.csr_array) -> FloatArray:
    """Return the max-min fair rates [F], bytes per microsecond, of flows that all send at once; every one uses a link.

    Progressive filling, many bottlenecks a round: a link is one if it is the tightest for all its flows.
    """
    F, N = us_FN.shape
    flow_Z = np.repeat(np.arange(F), np.diff(us_FN.indptr))
    link_Z, us_Z = us_FN.indices, us_FN.data
    first_F = us_FN.indptr[:-1]
    rate_F = np.zeros(F)
    open_F = np.ones(F, dtype=bool)
    left_N = np.ones(N)
    while open_F.any():
        load_N = np.bincount(link_Z, us_Z * open_F[flow_Z], N)
        share_N = np.full(N, np.inf)
        np.divide(left_N, load_N, out=share_N, where=load_N > 1e-300)
        tightest_F = np.minimum.reduceat(share_N[link_Z], first_F)
        loose_Z = open_F[flow_Z] & (tightest_F[flow_Z] < share_N[link_Z] * (1 - _TIE))
        bottleneck_N = np.isfinite(share_N)
        bottleneck_N[link_Z[loose_Z]] = False
        frozen_F = open_F & (np.bincount(flow_Z, bottleneck_N[link_Z], F) > 0)
        rate_F[frozen_F] = tightest_F[frozen_F]
        open_F &= ~frozen_F
        used_N = np.bincount(link_Z, us_Z * (rate_F * frozen_F)[flow_Z], N)
        left_N = np.maximum(left_N - used_N, 0.0)
    return rate_F


def run_flows(flows: Flows, resolution_us: float = 0.0, on_percent: Callable[[int], None] = lambda _: None) -> Timeline:
    """Let the flows run; ends within `resolution_us` of each other are handled at once.

    `on_percent` is called with the part of the flows that are done. With resolution 0 the times are those of exact
    max-min sharing. With more, what ends leaves its share of the links unused until the next moment; no link ever
    carries more than its speed, so no bottleneck is beaten.
    """
    run = _Run(flows, resolution_us)
    while run.step():
        on_percent(int(100 * run.done_F.mean()))
    return run.timeline


class _Run:
    """State of a simulation."""

    def __init__(self, flows: Flows, resolution_us: float) -> None:
        self.flows, self.resolution_us = flows, resolution_us
        F = len(flows.bytes_F)
        self.now = 0.0
        self.left_F = flows.bytes_F.astype(float)
        self.release_F = np.where(flows.group_F < 0, flows.delay_F, np.inf)
        self.active_F = np.zeros(F, dtype=bool)
        self.done_F = np.zeros(F, dtype=bool)
        self.rate_F = np.zeros(F)
        self.missing_G = np.bincount(flows.member_F[flows.member_F >= 0], minlength=flows.num_groups)
        self.timeline = Timeline(np.full(F, np.inf), np.full(F, np.inf), np.zeros(flows.num_groups))
        for group in np.flatnonzero(self.missing_G == 0):
            self._release(int(group), 0.0)

    def step(self) -> bool:
        """Go to the next moment at which something ends or starts; return False when all is done."""
        if self.done_F.all():
            return False
        self._start()
        ends_F = np.full(len(self.left_F), np.inf)
        np.divide(self.left_F, self.rate_F, out=ends_F, where=self.active_F & (self.rate_F > 0))
        ends_F += self.now
        waiting = ~self.active_F & ~self.done_F
        first_end = float(ends_F.min(initial=np.inf))
        first_start = float(self.release_F[waiting].min(initial=np.inf))
        assert min(first_end, first_start) < np.inf, "a flow waits for a group that waits for it"
        until = min(first_end + self.resolution_us, first_start) if first_start > self.now else self.now
        until = max(until, min(first_end, first_start), self.now)
        if self.active_F.any() and until > self.now:
            use_N = self.flows.us_FN.T @ np.where(self.active_F, self.rate_F, 0.0)
            self.timeline.spans.append((self.now, until, use_N.astype(np.float32)))
        ended = self.active_F & (ends_F <= until * (1 + 1e-12))
        self.left_F = np.where(
            self.active_F, np.maximum(self.left_F - self.rate_F * (until - self.now), 0.0), self.left_F
        )
        self.now = until
        self._finish(np.flatnonzero(ended), ends_F)
        return True

    def _start(self) -> None:
        """Start what may start by now, and share the links anew if anything changed."""
        ready = ~self.active_F & ~self.done_F & (self.release_F <= self.now * (1 + 1e-12) + 1e-12)
        self.timeline.start_F[ready] = np.maximum(self.release_F[ready], self.now)
        empty = ready & (self.flows.bytes_F <= 0)
        self.active_F |= ready & ~empty
        if empty.any():
            self._finish(np.flatnonzero(empty), np.full(len(self.left_F), self.now))
            self._start()
            return
        active = np.flatnonzero(self.active_F)
        self.rate_F = np.zeros(len(self.left_F))
        if active.size:
            self.rate_F[active] = fair_rates(sp.csr_array(self.flows.us_FN[active]))

    def _finish(self, ended: IntArray, ends_F: FloatArray) -> None:
        self.done_F[ended] = True
        self.active_F[ended] = False
        self.left_F[ended] = 0.0
        self.timeline.finish_F[ended] = ends_F[ended]
        groups = self.flows.member_F[ended]
        for flow, group in zip(ended[groups >= 0], groups[groups >= 0], strict=True):
            self.missing_G[group] -= 1
            self.timeline.group_G[group] = max(self.timeline.group_G[group], ends_F[flow])
            if self.missing_G[group] == 0:
                self._release(int(group), float(self.timeline.group_G[group]))

    def _release(self, group: int, moment: float) -> None:
        waiting = self.flows.group_F == group
        self.release_F[waiting] = moment + self.flows.delay_F[waiting]
