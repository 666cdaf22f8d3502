"""The claims of issue 4 on the measured tables: fitted on some rows, held to the others."""

import pandas as pd
import pytest

from planner import load_profile
from planner.calibrate import calibrate, choices, compare, error_groups
from planner.calibrate.published import published_normal
from tests.planner.measured import FOLDER, measured

SIZES = [512 * 2**i for i in range(21)]
TOKENS = [
    1,
    2,
    4,
    8,
    12,
    16,
    24,
    32,
    48,
    64,
    96,
    128,
    160,
    256,
    512,
    1024,
    2048,
    4096,
    8192,
    16384,
    32768,
    65536,
    131072,
]


def held_out(name, fit_rows, on_rows):
    table = measured(name)
    profile = calibrate([table.where(fit_rows)], load_profile("vendor"), name="fit", date="2026-11-21")
    return compare(profile, table.where(on_rows))


@pytest.mark.parametrize(
    ("fit_rows", "on_rows"),
    [("ranks != 4", "ranks == 4")]
    + [(f"bytes_per_rank in {SIZES[i::2]}", f"bytes_per_rank not in {SIZES[i::2]}") for i in (0, 1)],
)
def test_nccl(fit_rows, on_rows):
    rows = held_out("nccl_alltoall.csv", fit_rows, on_rows).rows
    for system in ("a100_sxm", "h200_sxm"):
        mine = rows[rows["system"] == system]
        large = mine["tokens_or_bytes"] >= 65536
        assert mine[large]["error"].abs().mean() <= 0.06
        assert mine[~large]["error"].abs().mean() <= 0.12


def test_deepep_low_latency():
    _, everything = error_groups(held_out("deepep_low_latency.csv", "nodes < 4", "nodes == 4"))
    assert everything.mape <= 0.06
    assert everything.provenance == {"extrapolated": everything.n}  # 4 nodes were not measured


@pytest.mark.parametrize("start", [0, 1])
def test_deepep_normal(start):
    chosen, wide = TOKENS[start::2], "dispatch_sms >= 20"
    _, everything = error_groups(
        held_out(
            "deepep_normal.csv",
            f"{wide} and tokens_per_rank in {chosen}",
            f"{wide} and tokens_per_rank not in {chosen}",
        )
    )
    assert everything.mape <= 0.08


def test_deepep_published_table():
    table = measured("deepep_normal.csv").where("dispatch_sms >= 20")
    profile = calibrate([table], load_profile("vendor"), name="fit", date="2026-11-21")
    rows = published_normal(pd.read_csv(FOLDER / "published_ep_kernels.csv"), profile.exchanges, "h200_sxm")
    assert len(rows) == 8
    assert rows["error"].abs().mean() <= 0.10


def test_gb200():
    _, everything = error_groups(held_out("trtllm_alltoall_gb200.csv", "ranks <= 16", "ranks == 32"))
    assert everything.mape <= 0.08


def test_expert_compute():
    _, everything = error_groups(held_out("expert_compute_bf16.csv", "ranks in [1, 4, 16]", "ranks in [2, 8, 32]"))
    assert everything.median <= 0.08


def test_which_redundancy_is_fastest():
    found = choices(
        held_out(
            "wide_ep_expert_compute.csv", "ranks in [2, 8] and hidden == 7168", "hidden == 7168 and experts == 256"
        )
    )
    assert found is not None
    assert found.right / found.clear >= 0.9
    assert found.any_right / found.any_clear >= 0.9
    assert found.regret < 0.02


@pytest.mark.parametrize(
    ("profile", "name", "rows", "limit"),
    [
        ("a100", "nccl_alltoall.csv", "system == 'a100_sxm'", 0.05),
        ("h200", "nccl_alltoall.csv", "system == 'h200_sxm'", 0.07),
        ("h200", "deepep_low_latency.csv", None, 0.05),
        ("gb200", "trtllm_alltoall_gb200.csv", None, 0.05),
    ],
)
def test_shipped_profiles(profile, name, rows, limit):
    _, everything = error_groups(compare(load_profile(profile), measured(name).where(rows)))
    assert everything.mape <= limit
    assert everything.provenance == {"fitted": everything.n}
