"""A long job in small: 2,000 training steps on 4 gloo ranks, a random plan every 50, everything checked all the time.

    python -m benchmarks.soak                    # a few minutes; --steps 200 for a glance

Every step runs under conformance: rows moved are the planner's, as integers. Every 50 steps the experts and their Adam
state migrate to a random plan (random copies, shares, numbers of slots and exchange), in chunks of at most 64 KiB. At
each migration all copies of every expert must hold the same bits. Memory is each rank's resident set; after the first
plans it must not grow. Exit code 1 where anything of this fails.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from executor import (
    MoE,
    PackedExperts,
    Router,
    RouterConfig,
    apply_expert_parallel,
    check_replicas_equal,
    find_moe_layers,
    migrate_to,
    sum_replica_gradients,
)
from executor.conformance import Conformance
from executor.launch import run_ranks
from planner import MoEModel, Placement, Plan, build_workload, load_cluster, load_profile
from planner.importers import Imported, import_plan
from planner.placement import sums_by
from planner.routing import Routing
from planner.timing import EXCHANGES

RANKS, LAYERS, EXPERTS, TOP_K, HIDDEN, INTERMEDIATE, TOKENS = 4, 3, 16, 2, 32, 64, 64
CLUSTER = Path(__file__).parents[1] / "examples" / "two_small_hosts.yaml"
MEMORY_BYTES = 64 * 1024
WARM_UP = 0.2  # of the steps, after which memory must be flat
MAX_GROWTH = 0.03  # of the resident set, over all that follows


@dataclass(frozen=True)
class Soaked:
    """What one rank saw.

    Attributes:
        migrations, moves, moved_bytes: done, of all ranks together.
        rows, problems: rows that crossed between ranks under conformance, and what was wrong with them.
        rss_bytes: resident set at each migration.
        first_loss, last_loss: means over the first and the last 50 steps.
        step_us, migration_us: measured medians.

    """

    migrations: int
    moves: int
    moved_bytes: int
    rows: int
    problems: tuple[str, ...]
    rss_bytes: tuple[int, ...]
    first_loss: float
    last_loss: float
    step_us: float
    migration_us: float

    @property
    def growth(self) -> float:
        """Growth of the resident set past the warm-up, as a part of it: means over the first and the last quarter."""
        rest = self.rss_bytes[int(len(self.rss_bytes) * WARM_UP) :]
        quarter = max(1, len(rest) // 4)
        return float(np.mean(rest[-quarter:]) / np.mean(rest[:quarter]) - 1)


class Model(nn.Module):
    """Residual MoE layers that learn a random linear map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            MoE(Router(RouterConfig(EXPERTS, TOP_K), HIDDEN), PackedExperts(EXPERTS, HIDDEN, INTERMEDIATE))
            for _ in range(LAYERS)
        )

    def forward(self, x_TH: Tensor) -> Tensor:
        """Return [T, H]."""
        for layer in self.layers:
            x_TH = x_TH + layer(x_TH)
        return x_TH


def random_plan(seed: int) -> Plan:
    """Return a plan with random copies, slots, shares and exchange for the four ranks of two small hosts."""
    rng, cluster = np.random.default_rng(seed), load_cluster(str(CLUSTER))
    model = MoEModel(
        name="soak", experts=EXPERTS, top_k=TOP_K, hidden=HIDDEN, intermediate=INTERMEDIATE, num_layers=LAYERS,
        moe_layers=tuple(range(LAYERS)),
    )  # fmt: skip
    even = Routing(model.moe_layers, np.ones((LAYERS, 1, EXPERTS)), name="even")
    workload = build_workload(model, cluster, even, TOKENS)
    placements = tuple(_random_placement(rng, cluster.num_domains) for _ in range(LAYERS))
    most = max(int(one.slots_R.max()) for one in placements)
    exchange = EXCHANGES[int(rng.integers(len(EXCHANGES)))]
    found = Imported(model.moe_layers, placements, most)
    return import_plan(found, workload, load_profile(), exchange, fmt="random", inputs={}, command="benchmarks.soak")


def _random_placement(rng: np.random.Generator, num_domains: int) -> Placement:
    has_RE = rng.random((RANKS, EXPERTS)) < rng.uniform(0, 0.5)
    has_RE[rng.integers(0, RANKS, EXPERTS), np.arange(EXPERTS)] = True
    slots = [rng.permutation(np.flatnonzero(row_E)).tolist() for row_E in has_RE]
    placement = Placement.equal_shares(slots, EXPERTS, num_domains)
    raw_DS = rng.random(placement.share_DS.shape) + 1e-3
    return placement.with_shares(raw_DS / sums_by(raw_DS, placement.expert_S, EXPERTS)[:, placement.expert_S])


def soak(rank: int, size: int, steps: int, every: int) -> Soaked:
    """Train on one rank; raises NotConforming where copies of an expert come to differ."""
    model = Model()
    apply_expert_parallel(model, init_device_mesh("cpu", (size,), mesh_dim_names=("ep",)), random_plan(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    layers = find_moe_layers(model)
    transport = next(iter(layers.values())).exchange.transport
    target = torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(1)) / HIDDEN**0.5
    reports, losses, step_us, rss, problems, rows = [], [], [], [], [], 0
    for step in range(steps):
        if step and step % every == 0:
            reports.append(migrate_to(model, random_plan(step), optimizer, memory_bytes=MEMORY_BYTES))
            check_replicas_equal(model)
            gc.collect()
            rss.append(_resident_bytes())
        started = time.perf_counter()
        x_TH = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(step * size + rank))
        with Conformance(layers) as watched:
            loss = (model(x_TH) - x_TH @ target).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _sum_dense(model, transport)
        sum_replica_gradients(model)
        optimizer.step()
        step_us.append(1e6 * (time.perf_counter() - started))
        verdicts = watched.verdicts()
        rows += sum(one.rows for one in verdicts)
        problems += [problem for one in verdicts for problem in one.problems]
        losses.append(float(loss.detach()))
    check_replicas_equal(model)
    return Soaked(
        migrations=len(reports),
        moves=sum(one.moves for one in reports),
        moved_bytes=sum(one.moved_bytes for one in reports),
        rows=rows,
        problems=tuple(problems[:10]),
        rss_bytes=tuple(rss),
        first_loss=float(np.mean(losses[:50])),
        last_loss=float(np.mean(losses[-50:])),
        step_us=float(np.median(step_us)),
        migration_us=float(np.median([one.measured_us for one in reports])),
    )


def _sum_dense(model: nn.Module, transport: Any) -> None:
    for layer in model.layers:  # type: ignore[union-attr]  # a ModuleList
        grad = layer.router.weight.grad
        grad.copy_(transport.sum_over_ranks("router gradients", grad))


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def _page(found: Sequence[Soaked], steps: int) -> str:
    first, mib = found[0], 2**20
    lines = [
        f"{steps:,} steps on {RANKS} gloo ranks: loss {first.first_loss:.4f} -> {first.last_loss:.4f},"
        f" {first.step_us / 1e3:.1f} ms a step measured (median)",
        f"{first.migrations} migrations: {first.moves:,} experts, {first.moved_bytes / mib:,.1f} MiB with Adam state,"
        f" {first.migration_us / 1e3:.1f} ms each measured (median)",
        f"{first.rows:,} rows crossed, {sum(len(one.problems) for one in found)} differ from the planner's",
    ]
    for rank, one in enumerate(found):
        mid = one.rss_bytes[int(len(one.rss_bytes) * WARM_UP)]
        lines.append(
            f"rank {rank}: resident {one.rss_bytes[0] / mib:,.1f} MiB at the first migration, {mid / mib:,.1f} after"
            f" the warm-up, {one.rss_bytes[-1] / mib:,.1f} at the last: {one.growth:+.2%} past the warm-up"
        )
    return "\n".join(lines)


@click.command()
@click.option("--steps", type=click.IntRange(100), default=2000, show_default=True)
@click.option("--every", type=click.IntRange(1), default=50, show_default=True, help="Steps between migrations.")
@click.option("--json", "json_", is_flag=True, help="Print what every rank saw.")
def main(steps: int, every: int, json_: bool) -> None:
    """Soak the executor."""
    found = run_ranks(soak, RANKS, steps, every, timeout_s=max(600.0, 5.0 * steps))
    print(json.dumps([asdict(one) for one in found]) if json_ else _page(found, steps))
    wrong = [f"rank {rank}: {problem}" for rank, one in enumerate(found) for problem in one.problems]
    wrong += [
        f"rank {rank} grows by {one.growth:.2%} past the warm-up, more than {MAX_GROWTH:.0%}"
        for rank, one in enumerate(found)
        if one.growth > MAX_GROWTH
    ]
    for line in wrong:
        print(line, file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
