"""Several NCCL ranks on the GPUs that are there: whether they run, whether they are right, and what they take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.on_gpu.clock import Clock
from benchmarks.on_gpu.shapes import Shape, routed_ids
from executor.exchange import make_exchange
from executor.experts import PackedExperts
from executor.launch import RankPool
from executor.layout import contiguous_layout
from executor.reference import dense_moe
from executor.transport import Transport

EXCHANGES = ("pairwise", "dedup", "two-level")
TIMEOUT_S = 90.0
TOLERANCE = 0.03  # of the largest output: bf16 sums in another order


def measure_several(ranks: int, backend: str, shape: Shape, tokens: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each exchange: its times, or why it did not run."""
    for exchange in EXCHANGES:
        row: dict[str, Any] = {"ranks": ranks, "backend": backend, "exchange": exchange, "tokens": tokens}
        try:
            with RankPool(ranks, backend=backend) as pool:
                found = pool.run(_on_rank, exchange, shape, tokens, timeout_s=TIMEOUT_S)
        except Exception as error:  # whatever NCCL has against ranks that share a GPU is the finding
            yield row | {"ran": False, "reason": " ".join(str(error).split())[:300]}
            continue
        error = max(one["error"] for one in found)
        yield row | {
            "ran": True,
            "right": error <= TOLERANCE,
            "largest_error": error,
            "step_us": max(one["step_us"] for one in found),
        }


def _on_rank(rank: int, size: int, exchange: str, shape: Shape, tokens: int) -> dict[str, float]:
    """Run forward and backward of one exchange; return its time and its distance from the dense layer."""
    cuda = torch.cuda.is_available() and torch.distributed.get_backend() == "nccl"
    if (
        cuda and size > torch.cuda.device_count()
    ):  # NCCL then lets ranks share a GPU, if it does (facts, executor.md 6.3)
        os.environ |= {"NCCL_HOSTID": f"rank{rank}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}
    device = torch.device(f"cuda:{rank % torch.cuda.device_count()}" if cuda else "cpu")
    dtype = torch.bfloat16 if cuda else torch.float32
    if cuda:
        torch.cuda.set_device(device)
    g = torch.Generator().manual_seed(0)
    gate_up, down = (
        (torch.randn(shape.experts, *matrix, generator=g) / matrix[1] ** 0.5).to(device, dtype)
        for matrix in ((2 * shape.intermediate, shape.hidden), (shape.hidden, shape.intermediate))
    )
    x_TH = torch.randn(size, tokens, shape.hidden, generator=g)[rank].to(device, dtype)
    ids_TK = torch.from_numpy(routed_ids(shape, tokens, seed=rank)).to(device)
    weights_TK = torch.full(ids_TK.shape, 1 / shape.top_k, device=device, dtype=dtype)
    layout = contiguous_layout(shape.experts, size, rank)
    transport = Transport(torch.distributed.group.WORLD)
    layer = make_exchange(exchange, layout, transport)
    mine = torch.tensor(layout.my_experts, device=device)
    experts = PackedExperts.of(gate_up[mine].clone(), down[mine].clone())
    leaf = x_TH.clone().requires_grad_()

    def step() -> torch.Tensor:
        leaf.grad = None
        dispatched = layer.dispatch(leaf, weights_TK, ids_TK)
        y_TH = layer.combine(experts(dispatched.x_NH, dispatched.rows), dispatched)
        y_TH.backward(torch.ones_like(y_TH))
        return y_TH.detach()

    wanted = dense_moe(x_TH.double(), ids_TK, weights_TK.double(), gate_up.double(), down.double())
    error = float((step().double() - wanted).abs().max() / wanted.abs().max())
    return {"error": error, "step_us": Clock(device, repeats=10).us(step)}
