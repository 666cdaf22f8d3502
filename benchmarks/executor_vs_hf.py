"""Our EP layer beside Hugging Face's all-to-all EP and a plain one: same weights, tokens and ranks, in turn in one run.

    python -m benchmarks.executor_vs_hf [--repeats 15]      prints a Markdown table; all times in it are measured

Needs transformers >= 5.23 (`pip install transformers==5.23.0`). gloo on this machine, one thread a rank; forward and
backward of the experts of one layer, routing given. Uniform routing runs a contiguous placement on all sides; the
bundled trace runs contiguous on theirs, which know no other, and the planned placement on ours. The plain one is what
anybody writes first: sort by expert, torch's `all_to_all_single`, a matrix product for each expert, and back.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from executor.exchange import Exchange, make_exchange
from executor.experts import PackedExperts
from executor.launch import RankPool
from executor.layout import LayerLayout, contiguous_layout
from executor.transport import Transport
from planner import (
    Placement,
    build_workload,
    load_cluster,
    load_model,
    load_profile,
    load_routing,
    slots_of_ranks,
    solve,
)


@dataclass(frozen=True)
class Job:
    """One row of the table.

    Attributes:
        what: for the table.
        ranks, tokens: of the group, and of each rank.
        experts, top_k, hidden, intermediate: of the layer.
        ids_RTK: the experts of every rank's tokens.
        placement: ours; None for the contiguous one.
        exchange: ours.

    """

    what: str
    ranks: int
    tokens: int
    experts: int
    top_k: int
    hidden: int
    intermediate: int
    ids_RTK: np.ndarray
    placement: Placement | None
    exchange: str


def uniform(ranks: int, tokens: int, experts: int, top_k: int, hidden: int, intermediate: int, exchange: str) -> Job:
    """Return a job in which every token picks its experts at random."""
    rng = np.random.default_rng(0)
    ids_RTK = rng.random((ranks, tokens, experts)).argsort(axis=-1)[..., :top_k]
    return Job("uniform", ranks, tokens, experts, top_k, hidden, intermediate, ids_RTK, None, exchange)


def planned(ranks: int, tokens: int, hidden: int, intermediate: int, exchange: str) -> Job:
    """Return a job on the most skewed layer of the bundled trace: planned on its first half, run on its second."""
    folder = files("planner") / "bundled" / "tiny_moe"
    model = load_model(str(folder / "config.json"))
    routing = load_routing(str(folder / "skewed.npz"), model)
    loads = routing.expert_counts.max(axis=1) / routing.expert_counts.mean(axis=1)
    routing = routing.select([routing.layers[int(loads.argmax())]])
    head, tail = routing.split(0.5)
    cluster = load_cluster("hgx-h100:1").subset(range(ranks))
    workload = build_workload(model, cluster, head, tokens)
    slots_R = slots_of_ranks(model, cluster, model.experts // ranks + 2, 1)
    solution = solve(workload, load_profile(), slots_R, exchange=exchange, objective="balance")
    assert tail.trace is not None
    picks = np.random.default_rng(0).permutation(tail.trace.shape[1])[: ranks * tokens]
    ids_RTK = np.asarray(tail.trace[0][picks], dtype=np.int64).reshape(ranks, tokens, -1)
    shape = (model.experts, model.top_k, hidden, intermediate)
    return Job("bundled trace", ranks, tokens, *shape, ids_RTK, solution.placements[0], exchange)


def hugging_face(job: Job, gate_up: Tensor, down: Tensor) -> tuple[Callable[..., Tensor], nn.Module]:
    """Return their EP layer with the experts of this rank, and its parameters."""
    from transformers import Qwen3MoeConfig  # noqa: PLC0415  # takes seconds, and only the ranks need it
    from transformers.distributed.expert_parallel import AllToAllEP  # noqa: PLC0415
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts  # noqa: PLC0415

    config = Qwen3MoeConfig(
        hidden_size=job.hidden,
        moe_intermediate_size=job.intermediate,
        num_experts=job.experts,
        num_experts_per_tok=job.top_k,
    )
    config._experts_implementation = "grouped_mm"
    experts: Any = Qwen3MoeExperts(config)
    local, rank = job.experts // job.ranks, dist.get_rank()
    mine = slice(rank * local, (rank + 1) * local)
    experts.gate_up_proj, experts.down_proj = nn.Parameter(gate_up[mine].clone()), nn.Parameter(down[mine].clone())
    experts.num_experts, experts._is_expert_parallel = local, True
    mesh = init_device_mesh("cpu", (job.ranks, 1), mesh_dim_names=("ep", "tp"))
    return AllToAllEP(experts, mesh["ep"], mesh["tp"]), experts


def ours(job: Job, gate_up: Tensor, down: Tensor) -> tuple[Callable[..., Tensor], nn.Module, Exchange]:
    """Return our EP layer with the experts of this rank, its parameters, and its exchange."""
    rank = dist.get_rank()
    if job.placement is None:
        layout = contiguous_layout(job.experts, job.ranks, rank)
    else:
        layout = LayerLayout(job.placement, np.zeros(job.ranks, dtype=np.int64), np.arange(job.ranks), rank)
    exchange = make_exchange(job.exchange, layout, Transport(dist.group.WORLD))
    pick = torch.tensor(layout.my_experts)
    experts = PackedExperts.of(nn.Parameter(gate_up[pick].clone()), nn.Parameter(down[pick].clone()))

    def layer(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        dispatched = exchange.dispatch(x, weights, ids)
        return exchange.combine(experts(dispatched.x_NH, dispatched.rows), dispatched)

    return layer, experts, exchange


class _AllToAll(torch.autograd.Function):
    """torch's all-to-all of rows, and the same the other way for the gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sends: list[int], receives: list[int]) -> Tensor:
        ctx.sends, ctx.receives = sends, receives
        out = rows.new_empty(sum(receives), rows.shape[1])
        dist.all_to_all_single(out, rows.contiguous(), receives, sends)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        out = grad.new_empty(sum(ctx.sends), grad.shape[1])
        dist.all_to_all_single(out, grad.contiguous(), ctx.sends, ctx.receives)
        return out, None, None


def plain(job: Job, gate_up: Tensor, down: Tensor) -> tuple[Callable[..., Tensor], nn.Module]:
    """Return an EP layer as anybody writes it first, with the experts of this rank, and its parameters."""
    local, rank = job.experts // job.ranks, dist.get_rank()
    mine = slice(rank * local, (rank + 1) * local)
    held = nn.ParameterList([gate_up[mine].clone(), down[mine].clone()])

    def layer(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        order = ids.view(-1).argsort(stable=True)
        sent = torch.bincount(ids.view(-1), minlength=job.experts)
        heard = torch.empty_like(sent)
        dist.all_to_all_single(heard, sent)
        heard = heard.view(job.ranks, local)
        sends, receives = sent.view(job.ranks, local).sum(1).tolist(), heard.sum(1).tolist()
        rows = _AllToAll.apply(x[order // job.top_k], sends, receives)
        expert = torch.arange(local).repeat(job.ranks).repeat_interleave(heard.view(-1))
        to_expert = expert.argsort(stable=True)
        parts = rows[to_expert].split(heard.sum(0).tolist())
        done = []
        for part, first, second in zip(parts, held[0], held[1], strict=True):
            gate, up = (part @ first.T).chunk(2, dim=-1)
            done.append((nn.functional.silu(gate) * up) @ second.T)
        back = _AllToAll.apply(torch.cat(done)[to_expert.argsort()], receives, sends)
        return (back[order.argsort()].view(*ids.shape, -1) * weights[..., None]).sum(1)

    return layer, held


def measure(rank: int, _size: int, job: Job, repeats: int) -> SimpleNamespace:
    """Run the layers in turn; return medians in seconds, medians of ratios, the difference, and rows sent."""
    g = torch.Generator().manual_seed(0)
    gate_up = torch.randn(job.experts, 2 * job.intermediate, job.hidden, generator=g) / job.hidden**0.5
    down = torch.randn(job.experts, job.hidden, job.intermediate, generator=g) / job.intermediate**0.5
    x = torch.randn(job.ranks, job.tokens, job.hidden, generator=g)[rank].requires_grad_()
    weights = torch.rand(job.ranks, job.tokens, job.top_k, generator=g)[rank].requires_grad_()
    grad = torch.randn(job.ranks, job.tokens, job.hidden, generator=g)[rank]
    ids = torch.from_numpy(job.ids_RTK[rank])
    theirs, their_experts = hugging_face(job, gate_up, down)
    simple, simple_experts = plain(job, gate_up, down)
    mine, my_experts, exchange = ours(job, gate_up, down)

    def step(layer: Callable[..., Tensor], experts: nn.Module) -> tuple[float, Tensor]:
        x.grad = weights.grad = None
        experts.zero_grad()
        dist.barrier()
        start = time.perf_counter()
        y = layer(x, ids, weights)
        y.backward(grad)
        dist.barrier()
        return time.perf_counter() - start, y.detach()

    times: dict[str, list[float]] = {"theirs": [], "plain": [], "ours": []}
    for repeat in range(repeats + 2):
        seconds, their_y = step(theirs, their_experts)
        plain_seconds, plain_y = step(simple, simple_experts)
        our_seconds, our_y = step(mine, my_experts)
        if repeat >= 2:
            times["theirs"].append(seconds)
            times["plain"].append(plain_seconds)
            times["ours"].append(our_seconds)
    assert exchange.last_hops is not None
    local = job.experts // job.ranks
    to_R = np.bincount((job.ids_RTK[rank] // local).ravel(), minlength=job.ranks)
    return SimpleNamespace(
        theirs=statistics.median(times["theirs"]),
        ours=statistics.median(times["ours"]),
        ratio=statistics.median(a / b for a, b in zip(times["ours"], times["theirs"], strict=True)),
        plain=statistics.median(times["plain"]),
        plain_ratio=statistics.median(a / b for a, b in zip(times["ours"], times["plain"], strict=True)),
        error=float(max((one - their_y).abs().max() for one in (our_y, plain_y)) / their_y.abs().max()),
        rows_theirs=int(to_R.sum() - to_R[rank]),
        rows_ours=sum(sum(h.sent_R) - h.sent_R[rank] for h in exchange.last_hops.values()),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    jobs = [
        uniform(ranks, tokens, experts, top_k, hidden, intermediate, exchange)
        for ranks in (2, 4)
        for tokens, experts, top_k, hidden, intermediate in ((1024, 32, 4, 128, 64), (1024, 32, 4, 512, 256))
        for exchange in ("pairwise", "dedup")
    ]
    jobs += [
        planned(2, 2048, hidden, inner, name)
        for hidden, inner in ((128, 64), (512, 256))
        for name in ("pairwise", "dedup")
    ]
    columns = ("routing", "ranks", "layer (T, E, k, H, I)", "our exchange", "HF ms", "plain ms", "ours ms")
    ratios = ("ours / HF", "ours / plain", "rows sent: theirs, ours (all ranks)", "error")
    print("|", " | ".join((*columns, *ratios)), "|")
    print("|" + "---|" * (len(columns) + len(ratios)))
    for job in jobs:
        with RankPool(job.ranks) as pool:
            found = pool.run(measure, job, repeats, timeout_s=300)
        slowest = max(found, key=lambda one: one.ours)
        shape = f"{job.tokens}, {job.experts}, {job.top_k}, {job.hidden}, {job.intermediate}"
        print(
            f"| {job.what} | {job.ranks} | {shape} | {job.exchange} | {max(f.theirs for f in found) * 1e3:.1f} "
            f"| {max(f.plain for f in found) * 1e3:.1f} | {slowest.ours * 1e3:.1f} "
            f"| {statistics.median(f.ratio for f in found):.2f} "
            f"| {statistics.median(f.plain_ratio for f in found):.2f} "
            f"| {sum(f.rows_theirs for f in found):,}, {sum(f.rows_ours for f in found):,} "
            f"| {max(f.error for f in found):.0e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
