"""Grouped SwiGLU experts of one rank: times over tokens per expert, even and skewed, forward and backward.

Shapes: N rows, H hidden.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from benchmarks.on_gpu.ceilings import Ceilings
from benchmarks.on_gpu.clock import Clock
from benchmarks.on_gpu.shapes import Shape, slot_rows
from executor.experts import PackedExperts, SlotRows

PER_EXPERT = (1, 4, 16, 64, 256, 512, 1024, 4096)
DISTRIBUTIONS = ("balanced", "power_law_1.2")
MAX_ROWS = 2**16  # of a rank: what a step of training brings
BACKWARD_FLOPS = 2.0  # of those of forward: products for the rows and for the weights


def measure_experts(
    clock: Clock,
    shapes: Iterable[Shape],
    dtype: torch.dtype,
    ceilings: Ceilings,
    per_expert: Iterable[int] = PER_EXPERT,
) -> Iterator[dict[str, Any]]:
    """Yield one row for each shape, distribution and mean rows of an expert; columns of a calibration table first."""
    for shape in shapes:
        with torch.device(clock.device):
            experts = PackedExperts(shape.slots, shape.hidden, shape.intermediate).to(dtype)
        for distribution in DISTRIBUTIONS:
            for mean in per_expert:
                counts = slot_rows(shape, mean, distribution)
                if 0 < sum(counts) <= MAX_ROWS:
                    yield _case(clock, shape, experts, counts, mean, distribution, ceilings)
        del experts


def _case(
    clock: Clock,
    shape: Shape,
    experts: PackedExperts,
    counts: list[int],
    mean: int,
    distribution: str,
    ceilings: Ceilings,
) -> dict[str, Any]:
    rows = SlotRows.of(counts, clock.device)
    dtype = experts.down.dtype
    x_NH = torch.randn(rows.total, shape.hidden, device=clock.device).to(dtype).requires_grad_()
    grad_NH = torch.randn(rows.total, shape.hidden, device=clock.device).to(dtype)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return experts(x_NH, rows)

    held: list[torch.Tensor] = []

    def prepare() -> None:
        x_NH.grad = None
        experts.zero_grad(set_to_none=True)
        held[:] = [experts(x_NH, rows)]

    forward_us = clock.us(forward)
    backward_us = clock.us(lambda: held[0].backward(grad_NH), before=prepare)
    tflops = 2 * shape.expert_params * rows.total / forward_us / 1e6
    return {
        "model": shape.name,
        "kernel": "epplan-grouped-mm",
        "dtype": str(dtype).removeprefix("torch."),
        "ranks": shape.ranks,
        "tokens": shape.tokens(mean),
        "hidden": shape.hidden,
        "intermediate": shape.intermediate,
        "top_k": shape.top_k,
        "experts": shape.experts,
        "slots": shape.experts,
        "distribution": distribution,
        "time_us": forward_us,
        "backward_us": backward_us,
        "tokens_per_expert": mean,
        "rows": rows.total,
        "largest": max(counts),
        "median_rows": statistics.median(counts),
        "tflops": tflops,
        "of_gemm_ceiling": tflops / ceilings.gemm_tflops,
        "backward_of_gemm_ceiling": BACKWARD_FLOPS * tflops * forward_us / backward_us / ceilings.gemm_tflops,
        "weight_gbps": _active_bytes(shape, counts, dtype) / forward_us / 1e3,
    }


def _active_bytes(shape: Shape, counts: list[int], dtype: torch.dtype) -> int:
    """Return the bytes of the weights of the experts that got rows."""
    return shape.expert_params * dtype.itemsize * sum(count > 0 for count in counts)
