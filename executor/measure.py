"""PhaseClock: how long route, dispatch, compute and combine of a MoE layer take on this rank, forward and backward.

    forward   start -- route --> routed -- dispatch --> dispatched -- compute --> computed -- combine --> combined
    backward  the same marks, met the other way round

On CUDA the marks are events in the stream, read when the times are asked for; on CPU they are `time.perf_counter`.

Shapes: R ranks.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from executor.recompute import in_backward
from executor.transport import Transport

MARKS = ("start", "routed", "dispatched", "computed", "combined")
PHASES = ("route", "dispatch", "compute", "combine")
_PHASE_BETWEEN = {frozenset(marks): phase for marks, phase in zip(pairwise(MARKS), PHASES, strict=True)}
Moment = Any  # seconds on CPU, torch.cuda.Event on CUDA


@dataclass(frozen=True)
class Spread:
    """Quartiles over the steps of one rank, in microseconds."""

    q1_us: float
    median_us: float
    q3_us: float


@dataclass(frozen=True)
class PhaseTimes:
    """What the phases took on every rank.

    Attributes:
        isolated: whether all ranks began each phase together, so that none pays for another's earlier phase.
        steps: that were counted, warm-up excluded.
        forward, backward: for each phase that was met, the spread over steps of each rank [R].

    """

    isolated: bool
    steps: int
    forward: Mapping[str, tuple[Spread, ...]]
    backward: Mapping[str, tuple[Spread, ...]]

    def median_us_R(self, phase: str, *, backward: bool = False) -> list[float]:
        """Return each rank's median of a phase."""
        return [spread.median_us for spread in (self.backward if backward else self.forward)[phase]]

    def as_json(self) -> dict[str, Any]:
        """Return plain dicts and lists."""
        return asdict(self)


class PhaseClock:
    """Notes when a MoE layer passes its marks: set it as the layer's `clock`.

    Attributes:
        device: where the layer computes.
        barrier: waits for all ranks; called at every mark, outside the time that is measured. Phases are isolated then.
            Without it each rank runs on as it does in production, and a phase includes waiting for slower ranks.

    """

    def __init__(self, device: torch.device | str = "cpu", barrier: Callable[[], object] | None = None) -> None:
        self.device, self.barrier = torch.device(device), barrier
        self._last: dict[bool, tuple[str, Moment]] = {}
        self._spans: dict[tuple[bool, str], list[tuple[Moment, Moment]]] = defaultdict(list)

    def note(self, name: str, *, backward: bool) -> None:
        """Note that the layer passes a mark; a phase ends here, and the next one begins."""
        end = self._now()
        before, begin = self._last.get(backward, ("", None))
        phase = _PHASE_BETWEEN.get(frozenset((before, name)))
        if phase is not None:
            self._spans[backward, phase].append((begin, end))
        if self.barrier is not None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.barrier()
        self._last[backward] = (name, self._now())

    def clear(self) -> None:
        """Forget all steps."""
        self._last.clear()
        self._spans.clear()

    def spreads(self, warmup: int = 0) -> dict[bool, dict[str, Spread]]:
        """Return the spread of each phase over the steps after the first `warmup`: [backward][phase]."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        found: dict[bool, dict[str, Spread]] = {False: {}, True: {}}
        for (backward, phase), spans in self._spans.items():
            us = [_between_us(begin, end) for begin, end in spans[warmup:]]
            if us:
                found[backward][phase] = Spread(*(float(q) for q in np.quantile(us, (0.25, 0.5, 0.75))))
        return found

    def times(self, transport: Transport, warmup: int = 0) -> PhaseTimes:
        """Return the times of all ranks; every rank must ask."""
        of_rank = transport.gather("phase times", self.spreads(warmup))
        forward, backward = (
            {phase: tuple(spreads[way][phase] for spreads in of_rank) for phase in PHASES if phase in of_rank[0][way]}
            for way in (False, True)
        )
        steps = max((len(spans) for spans in self._spans.values()), default=0) - warmup
        return PhaseTimes(self.barrier is not None, max(steps, 0), forward, backward)

    def _now(self) -> Moment:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        event.record(torch.cuda.current_stream(self.device))
        return event


def _between_us(begin: Moment, end: Moment) -> float:
    return 1e6 * (end - begin) if isinstance(begin, float) else 1e3 * float(begin.elapsed_time(end))


class _Mark(torch.autograd.Function):
    """Identity that tells the clock when it is passed, and when its gradient is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clock: PhaseClock, name: str) -> Tensor:
        ctx.clock, ctx.name = clock, name
        if not in_backward():
            clock.note(name, backward=False)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        ctx.clock.note(ctx.name, backward=True)
        return grad, None, None


def mark(clock: PhaseClock | None, x: Tensor, name: str) -> Tensor:
    """Return `x`, and have the clock note the moment here and in backward; without a clock return `x` itself.

    Args:
        clock: of the layer, or None.
        x: what the phase before has made.
        name: one of `MARKS`.

    A forward that activation checkpointing computes again is not noted: its time is part of the backward phase that
    asks for it, `combine`.
    """
    if clock is None:
        return x
    marked: Tensor = _Mark.apply(x, clock, name)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return marked
