"""The rank's side of a validation: exchanges and single transfers, timed phase by phase from a common start.

Shapes: T tokens of this rank, K top_k, H hidden, N rows at this rank, R ranks, S repeats.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from executor.exchange import HopRows, make_exchange
from executor.layout import LayerLayout
from executor.transport import Transport
from planner.placement import IntArray, Placement
from planner.timing import Exchange


@dataclass(frozen=True, eq=False)
class Trial:
    """One step of one layer on all ranks.

    Attributes:
        placement: of its experts.
        ids_RTK: the experts of every rank's tokens.
        exchange: that carries the rows.
        compute_us_R: how long each rank waits in place of its experts; zeros leave compute out.

    """

    placement: Placement
    ids_RTK: Sequence[IntArray]
    exchange: Exchange
    compute_us_R: Sequence[float]


@dataclass(frozen=True)
class Setting:
    """What all trials share: width, type and device of a row, repeats, warm-up, and where the ranks sit."""

    hidden: int
    dtype: str
    repeats: int
    warmup: int
    domain_R: tuple[int, ...]
    rail_R: tuple[int, ...]
    device: str = "cpu"

    @property
    def row_bytes(self) -> int:
        """Bytes of a row on the wire."""
        return self.hidden * int(getattr(torch, self.dtype).itemsize)


@dataclass(frozen=True)
class TrialTimes:
    """What one rank measured: microseconds of every repeat [S] by phase, and the rows of each hop."""

    us: dict[str, tuple[float, ...]]
    hops: dict[str, HopRows]


def time_trials(rank: int, _size: int, trials: Sequence[Trial], setting: Setting) -> list[TrialTimes]:
    """Run several trials in turn, repeat by repeat, so that whatever slows the machine down slows all of them."""
    transport = Transport(dist.group.WORLD, domain_of_rank=setting.domain_R)
    runs = [_Run(trial, setting, transport, rank) for trial in trials]
    for repeat in range(setting.warmup + setting.repeats):
        for run in runs:
            run.step(counted=repeat >= setting.warmup)
    return [run.result() for run in runs]


class _Run:
    """One trial on this rank."""

    def __init__(self, trial: Trial, setting: Setting, transport: Transport, rank: int) -> None:
        domain_R, rail_R = np.array(setting.domain_R), np.array(setting.rail_R)
        self.exchange = make_exchange(trial.exchange, LayerLayout(trial.placement, domain_R, rail_R, rank), transport)
        ids_TK = np.asarray(trial.ids_RTK[rank], dtype=np.int64)
        self.device = torch.device(setting.device)
        self.ids_TK = torch.from_numpy(ids_TK).to(self.device)
        self.x_TH = torch.randn(len(ids_TK), setting.hidden).to(self.device, getattr(torch, setting.dtype))
        self.weights_TK = torch.full(ids_TK.shape, 1.0 / ids_TK.shape[1], device=self.device)
        self.wait_s = trial.compute_us_R[rank] * 1e-6
        self.us: dict[str, list[float]] = {"dispatch": [], "compute": [], "combine": []}

    @torch.no_grad()
    def step(self, *, counted: bool) -> None:
        """Run the step once; every phase begins when all ranks are ready for it."""
        marks = [_together()]
        dispatched = self.exchange.dispatch(self.x_TH, self.weights_TK, self.ids_TK)
        marks += [_done(self.device), _together()]
        if self.wait_s:
            time.sleep(self.wait_s)
        marks += [_done(self.device), _together()]
        self.exchange.combine(dispatched.x_NH, dispatched)
        marks.append(_done(self.device))
        if counted:
            for phase, begin, end in zip(self.us, marks[::2], marks[1::2], strict=True):
                self.us[phase].append((end - begin) * 1e6)

    def result(self) -> TrialTimes:
        assert self.exchange.last_hops is not None
        return TrialTimes({phase: tuple(us) for phase, us in self.us.items()}, self.exchange.last_hops)


def time_flows(
    rank: int, _size: int, patterns: Sequence[Sequence[int]], entries: int, repeats: int, device: str = "cpu"
) -> list[tuple[float, ...]]:
    """Send `entries` bytes from every rank r to patterns[i][r] (r itself: to nobody), all at once.

    Returns, pattern by pattern, the microseconds [S] until this rank had received its bytes; empty where it gets none.
    """
    block, into = (torch.zeros(entries, dtype=torch.uint8, device=device) for _ in range(2))
    times = []
    for target_R in patterns:
        sources = [src for src, dst in enumerate(target_R) if dst == rank and src != rank]
        us = []
        for repeat in range(repeats + 1):
            start = _together()
            receiving = [dist.irecv(into, src) for src in sources]
            sending = dist.isend(block, target_R[rank]) if target_R[rank] != rank else None
            for work in receiving:
                if work is not None:
                    work.wait()
            if repeat:
                us.append((_done(block.device) - start) * 1e6)
            if sending is not None:
                sending.wait()
        times.append(tuple(us) if sources else ())
    return times


def wait_together(_rank: int, _size: int, times: int) -> None:
    """Wait for all ranks some times: what a trial does besides its exchanges."""
    for _ in range(times):
        _together()


def _done(device: torch.device) -> float:
    """Wait for what this rank has asked of its device; return the moment."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _together() -> float:
    """Wait for all ranks; return the moment."""
    dist.barrier()
    return time.perf_counter()
