"""Clock: medians of what a device does, by its own events; on a CPU by the host's clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

FLUSH_BYTES = 256 * 2**20  # several times the last-level cache of any GPU that we know


class Clock:
    """Times functions on one device.

    Attributes:
        device: that computes.
        repeats, warmup: runs that count, and runs before them.

    """

    def __init__(self, device: torch.device, repeats: int = 20, warmup: int = 3) -> None:
        self.device, self.repeats, self.warmup = device, repeats, warmup
        self._flush = torch.empty(FLUSH_BYTES if device.type == "cuda" else 1, dtype=torch.uint8, device=device)

    def us(self, run: Callable[[], object], before: Callable[[], object] | None = None) -> float:
        """Return the median microseconds of `run`; `before`, where given, runs ahead of each, outside the time.

        The cache is overwritten before every run, so that inputs come from memory, as they do in a model.
        """
        times = [self._once(run, before) for _ in range(self.warmup + self.repeats)]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        us = [read() for read in times[self.warmup :]]
        return statistics.median(us)

    def _once(self, run: Callable[[], object], before: Callable[[], object] | None) -> Callable[[], float]:
        if before is not None:
            before()
        self._flush.zero_()
        if self.device.type != "cuda":
            start_s = time.perf_counter()
            run()
            spent_us = 1e6 * (time.perf_counter() - start_s)
            return lambda: spent_us
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        return lambda: 1e3 * float(begin.elapsed_time(end))
