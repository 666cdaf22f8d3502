"""What the machine can do at best: bytes copied and multiply-adds of one large matrix product, a second."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.on_gpu.clock import Clock


@dataclass(frozen=True)
class Ceilings:
    """Measured limits.

    Attributes:
        copy_gbps: GB/s of a device-to-device copy, bytes read plus bytes written.
        gemm_tflops: TFLOP/s of the best large product in `dtype`, on random data.
        dtype: of the product.

    """

    copy_gbps: float
    gemm_tflops: float
    dtype: str


def measure_ceilings(clock: Clock, dtype: torch.dtype, *, copy_bytes: int, sizes: tuple[int, ...]) -> Ceilings:
    """Measure both.

    Args:
        clock: of the device.
        dtype: of the products.
        copy_bytes: that are copied at once; many times the cache.
        sizes: rows and columns of the square products that are tried.

    """
    best_tflops = max(_gemm_tflops(clock, dtype, size) for size in sizes)
    return Ceilings(_copy_gbps(clock, copy_bytes), best_tflops, str(dtype).removeprefix("torch."))


def _copy_gbps(clock: Clock, copy_bytes: int) -> float:
    source = torch.randint(0, 255, (copy_bytes,), dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    return 2 * copy_bytes / clock.us(lambda: target.copy_(source)) / 1e3


def _gemm_tflops(clock: Clock, dtype: torch.dtype, size: int) -> float:
    a, b = (torch.randn(size, size, device=clock.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / clock.us(lambda: torch.mm(a, b, out=out)) / 1e6
