"""The machine at hand as a cluster file: ranks on CPU cores, joined by loopback, with the speed that is measured here.

What a quick measurement says is enough to weigh compute against transfers. GPUs have catalogs and `epplan topology`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import torch
import torch.distributed as dist

from executor import Transport
from topologies.files import write_text

ROUNDS = 5
MATRIX, ROW_FLOATS = 384, 2**20


def write_cluster_file(path: Path) -> None:
    """Measure all ranks at once, as they will run, and write what their mean rank does; every rank must call."""
    transport = Transport(dist.group.WORLD)
    size = transport.size
    a, b = torch.randn(2, MATRIX, MATRIX)
    row, flat = torch.randn(ROW_FLOATS), torch.randn(ROW_FLOATS // size * size)
    splits = [len(flat) // size] * size
    gemm_s = _median_s(transport, lambda: a @ b)
    copy_s = _median_s(transport, row.clone)
    send_s = _median_s(transport, lambda: transport.all_to_all("probe", flat, splits, splits))
    latency_s = _median_s(transport, lambda: transport.all_to_all("probe", flat[:size], [1] * size, [1] * size))
    if transport.rank:
        return
    links = [
        f"      - {{a: gpu{i}, b: gpu{j}, kind: nvlink, gbps: {max(4 * splits[0] / send_s / 1e9, 1e-3):.3g}, "
        f"latency_us: {1e6 * latency_s:.3g}}}"
        for i, j in combinations(range(size), 2)
    ]
    tflops = 2 * MATRIX**3 / gemm_s / 1e12
    lines = [
        f"# {size} ranks on the cores of this machine, as train_moe.py measured them: all at once, median of {ROUNDS}.",
        "format: epplan.cluster",
        "version: 1",
        "name: this-machine",
        "gpus:",
        f"  core: {{name: a rank's share of the CPU, memory_bytes: 4000000000, hbm_gbps: "
        f"{8 * ROW_FLOATS / copy_s / 1e9:.3g}, peak_tflops: {{bf16: {tflops:.3g}}}, source: measured}}",
        "hosts:",
        "  machine:",
        "    nodes:",
        *(f"      - {{name: gpu{i}, kind: gpu, model: core}}" for i in range(size)),
        "    links:" if links else "    links: []",
        *links,
        "layout:",
        "  - {host: machine, count: 1}",
        "fabric: {kind: single-switch}",
        "provenance: [measured by examples/train_moe.py]",
    ]
    write_text(path, "\n".join(lines) + "\n")


def _median_s(transport: Transport, work: Callable[[], object]) -> float:
    """Return the seconds of one call: the mean over ranks of each one's median."""
    work()
    seconds = []
    for _ in range(ROUNDS):
        transport.gather("probe", None)
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    medians = transport.gather("probe", sorted(seconds)[ROUNDS // 2])
    return float(sum(medians) / len(medians))
