"""The exchanges under NCCL: the cases of test_exchange.py on a GPU, with one rank and with several on one GPU."""

from __future__ import annotations

import os

import pytest
import torch

from executor.launch import RankPool
from tests.executor.layers import Case
from tests.executor.test_exchange import cases_for, run_cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def on_gpu(rank: int, size: int, cases: list[Case], dtype: torch.dtype) -> list[str]:
    device = f"cuda:{rank % torch.cuda.device_count()}"
    torch.cuda.set_device(device)
    return run_cases(rank, size, cases, dtype, device)


def apart(rank: int, size: int, cases: list[Case], dtype: torch.dtype) -> list[str]:
    """Run with a host id of its own for each rank: NCCL then lets them share a GPU (facts, executor.md 6.3)."""
    os.environ |= {"NCCL_HOSTID": f"rank{rank}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}
    return on_gpu(rank, size, cases, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_rank(dtype: torch.dtype) -> None:
    cases = [Case((9,), contiguous=True), Case((9,), seed=3, replicas=0.0), Case((0,)), Case((5,), routing="one")]
    with RankPool(1, backend="nccl") as pool:
        assert pool.run(on_gpu, cases, dtype, timeout_s=120) == [[]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_ranks_on_one_gpu(dtype: torch.dtype) -> None:
    """Two ranks with host ids of their own, over sockets; whether NCCL lets them run together is its affair."""
    with RankPool(2, backend="nccl") as pool:
        assert pool.run(apart, cases_for(2), dtype, timeout_s=240) == [[], []]


def test_one_rank_to_a_gpu() -> None:
    """As many ranks as there are GPUs, up to 8."""
    size = min(torch.cuda.device_count(), 8)
    if size < 2:
        pytest.skip(f"{size} GPU: needs two")
    with RankPool(size, backend="nccl") as pool:
        assert pool.run(on_gpu, cases_for(size), torch.float32, timeout_s=240) == [[]] * size
