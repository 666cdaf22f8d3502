"""Long recordings are read in memory that does not grow with them: peak memory of fresh processes, measured."""

import json
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import sys
from pathlib import Path
from planner.readers import csv_counts, npy, tally, traces
tally.MAX_SAMPLED_BYTES = traces.MAX_SAMPLED_BYTES = 2**20
csv_counts.PIECE_ROWS, npy.PIECE_BYTES = 10_000, 2**18  # so that the small file too has several pieces
from planner.routing import load_routing
seen = []
routing = load_routing(sys.argv[1], progress=lambda done, total: seen.append((done, total)))
assert seen[-1][0] == seen[-1][1] > 0, seen[-1:]
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(status["VmHWM"].split()[0], int(routing.counts.sum()))  # ru_maxrss would be at least that of who started us
"""


def peak_kib(path) -> tuple[int, int]:
    """Peak resident memory of a process that reads a file, and the pairs that it counted."""
    call = [sys.executable, "-c", PROGRAM, str(path)]
    done = subprocess.run(call, capture_output=True, text=True, check=True, timeout=300)
    peak, pairs = done.stdout.split()
    return int(peak), int(pairs)


def megatron(path, steps):
    ids = np.array([np.random.default_rng(0).permutation(64)[:8] for _ in range(2048)]).tolist()
    with path.open("w") as file:
        for step in range(steps):
            for layer in range(4):
                record = {"step": step, "layer": layer, "rank": 0, "num_tokens": 2048, "topk": 8, "top_indices": ids}
                file.write(json.dumps(record) + "\n")
    return 2048 * 8 * 4 * steps


def csv(path, steps):
    with path.open("w") as file:
        file.write("step,layer,expert,count\n")
        for step in range(40 * steps):
            file.write("".join(f"{step},{layer},{expert},1\n" for layer in range(8) for expert in range(64)))
    return 40 * steps * 8 * 64


def npz(path, steps):
    ids = np.tile(np.arange(8, dtype=np.uint8), (4, 8192 * steps, 1))
    with path.open("wb") as file:
        np.savez(file, topk_ids=ids)
    return ids.size


@pytest.mark.parametrize("write", [megatron, csv, npz])
def test_peak_memory_does_not_grow_with_the_file(write, tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    written = [write(small, 4), write(large, 100)]
    found = [peak_kib(small), peak_kib(large)]
    assert [pairs for _, pairs in found] == written
    grown = large.stat().st_size - small.stat().st_size
    assert grown > 20e6
    assert (found[1][0] - found[0][0]) * 1024 < 0.35 * grown
    assert found[1][0] < 1.35 * found[0][0]
