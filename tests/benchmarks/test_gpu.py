"""benchmarks.gpu tried on a CPU: every part runs, derived numbers follow from the times, fits find what is there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import gpu
from benchmarks.on_gpu.fit import fit_half
from benchmarks.on_gpu.shapes import SHAPES, slot_rows


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    gpu.main(["--tiny", "--device", "cpu", "-o", str(path)])
    return json.loads(path.read_text())


def test_every_part_has_rows_and_none_failed(found):
    parts = ("ceilings", "rows", "layer", "several ranks", "experts")
    assert all(found[part] for part in parts)
    assert not [name for name in found if name.endswith("failed")]
    assert "fit" not in found  # a CPU has no rated figures


def test_rates_follow_from_times(found):
    """A SwiGLU expert has three matrices, and a multiply-add is two operations."""
    peak = found["ceilings"][0]["gemm_tflops"]
    for row in found["experts"]:
        flops = row["rows"] * 3 * 2 * row["hidden"] * row["intermediate"]
        assert row["tflops"] == pytest.approx(flops / row["time_us"] / 1e6)
        assert row["of_gemm_ceiling"] == pytest.approx(row["tflops"] / peak)


def test_several_ranks_equal_the_dense_layer(found):
    assert [(row["exchange"], row["ran"], row["right"]) for row in found["several ranks"]] == [
        (name, True, True) for name in ("pairwise", "dedup", "two-level")
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_balanced_rows_of_a_rank(shape):
    """Even loads give each of the rank's slots its mean, to the row."""
    rows = slot_rows(shape, 64, "balanced")
    assert len(rows) == shape.slots
    assert all(abs(count - 64) <= 1 for count in rows)


def test_the_fit_finds_a_roofline():
    """Times made of a start, a rate of weights and a rate of rows, the longer of the two: the other half follows."""
    rows = []
    for shape in SHAPES[:2]:
        for mean in (1, 4, 16, 64, 256, 512, 1024, 4096):
            counts = slot_rows(shape, mean, "balanced")
            read_us = 2 * shape.expert_params * len(counts) / 4.0e6
            flop_us = 2 * shape.expert_params * sum(counts) / 6.0e8
            rows.append(
                {
                    "kernel": "made up",
                    "dtype": "bfloat16",
                    "ranks": shape.ranks,
                    "tokens": shape.tokens(mean),
                    "hidden": shape.hidden,
                    "intermediate": shape.intermediate,
                    "top_k": shape.top_k,
                    "experts": shape.experts,
                    "slots": shape.experts,
                    "distribution": "balanced",
                    "time_us": 20.0 + max(read_us, flop_us),
                }
            )
    fit = fit_half(rows, "NVIDIA H200", "2026-11-21")
    assert (fit["fitted_cases"], fit["predicted_cases"]) == (8, 8)
    assert fit["median_error"] < 0.05
    assert fit["largest_error"] < 0.25


BARE = """
import importlib.machinery as machinery, sys
missing = {"click", "defusedxml", "highspy", "joblib", "pandas", "pulp", "pydantic", "rich", "scipy", "yaml"}
find = machinery.PathFinder.find_spec
machinery.PathFinder.find_spec = lambda name, *rest: None if name.split(".")[0] in missing else find(name, *rest)
from benchmarks import gpu
from benchmarks.on_gpu.shapes import SHAPES, slot_rows
slot_rows(SHAPES[0], 8, "power_law_1.2")
assert not missing & set(sys.modules), missing & set(sys.modules)
print("needs torch and NumPy alone")
"""


def test_a_gpu_machine_needs_torch_and_numpy_alone():
    """All that is measured imports without the packages that the planner needs."""
    told = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, timeout=120, check=False)
    assert told.stdout == "needs torch and NumPy alone\n", told.stderr
