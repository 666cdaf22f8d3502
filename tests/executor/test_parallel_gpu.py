"""Tensor parallelism and FSDP2 under NCCL: the cases of the CPU tests on GPUs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from executor.launch import RankPool
from tests.executor.parallel_steps import Layout, on_trajectory, one_step, train
from tests.executor.planned import plan_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
pytest.importorskip("transformers", reason="transformers is not installed")

LAYOUTS = [
    Layout(fsdp=1),
    Layout(tp=2, sequence=True),
    Layout(tp=2, slices=True),
    Layout(fsdp=1, ep=2),
    Layout(tp=2, ep=2, fsdp=1, sequence=True),
    Layout(tp=2, ep=2, fsdp=2, sequence=True, slices=True),
]


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_as_in_one_process(family: str, layout: Layout) -> None:
    """One rank to a GPU; one step in fp32 (TF32 is off by default), training in fp64."""
    if layout.ranks > torch.cuda.device_count():
        pytest.skip(f"{torch.cuda.device_count()} GPU: needs {layout.ranks}")
    on_gpu, plan = replace(layout, device="cuda"), plan_for(layout.ep, "ours")
    with RankPool(layout.ranks, backend="nccl") as pool:
        for errors in pool.run(one_step, family, on_gpu, plan, timeout_s=240):
            assert all(error < 1e-4 for error in errors.values()), errors
        for most in pool.run(train, family, on_gpu, plan, timeout_s=240):
            assert on_trajectory(most), most
