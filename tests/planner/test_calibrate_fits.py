"""Fits against models that the test made itself: known terms must come back, outliers must not count."""

import numpy as np
import pandas as pd
import pytest

from planner import load_profile
from planner.calibrate import Table, calibrate, compare, error_groups, profile_text, read_table
from planner.calibrate.cases import build_cases, distinct
from planner.calibrate.exchanges import FitSource, fit_exchanges
from planner.calibrate.regimes import fit_regimes, robust_nnls
from planner.timing import TimingProfile

ORIGIN = FitSource("test", "2026-11-21")


def fit(table):
    return calibrate([table], load_profile("vendor"), name="fit", date="2026-11-21")


def nccl_table(*, alpha=5.0, growth=1.0, gbps=300.0, noise=None, system="h200_sxm"):
    rows = [(system, n, s) for n in (2, 4, 8) for s in 2.0 ** np.arange(10, 29)]
    frame = pd.DataFrame(rows, columns=["system", "ranks", "bytes_per_rank"])
    wire = frame["bytes_per_rank"] * (frame["ranks"] - 1) / frame["ranks"]
    frame["time_us"] = alpha + growth * np.log2(frame["ranks"]) + wire / (gbps * 1e3)
    if noise is not None:
        frame["time_us"] *= noise(len(frame))
    return Table("made", "nccl", frame.assign(dtype="half"))


def test_known_terms_come_back():
    (model,) = fit_exchanges(build_cases(nccl_table()), ORIGIN)
    assert len(model.regimes) == 1
    us = model.regimes[0].us
    assert us["start"] == pytest.approx(5.0, rel=1e-3)
    assert us["doubling"] == pytest.approx(1.0, rel=1e-3)
    assert us["wire"] == pytest.approx(1 / 300, rel=1e-3)  # us per KB is 1 / (GB/s)
    assert model.fit.mape < 1e-4
    assert model.link_gbps == 450


def test_a_start_that_few_sizes_of_groups_tell_from_doublings_comes_back():
    """Low-latency kernels on 1, 2 and 4 hosts of 8: 9 us in a host, 15 across, 2 a doubling, 300 and 40 GB/s."""
    rows = [(8 * nodes, nodes, tokens) for nodes in (1, 2, 4) for tokens in 2.0 ** np.arange(0, 9)]
    frame = pd.DataFrame(rows, columns=["ranks", "nodes", "tokens_per_rank"])
    frame = frame.assign(system="h200_sxm", top_k=8, experts=256, hidden=7168)
    for op, row_bytes in (("dispatch", 7168 * (1 + 4 / 128)), ("combine", 2 * 7168)):
        sent = frame["tokens_per_rank"] * 8 * row_bytes
        inside = 9 + sent * (frame["ranks"] - 1) / frame["ranks"] / 300e3
        outside = 15 + sent * (frame["nodes"] - 1) / frame["nodes"] / 40e3
        frame[f"{op}_us"] = 2 * np.log2(frame["ranks"]) + np.where(frame["nodes"] > 1, outside, inside)
    for model in fit_exchanges(build_cases(Table("made", "deepep", frame)), ORIGIN):
        (regime,) = model.regimes
        assert regime.us == pytest.approx(
            {"doubling": 2, "inter_start": 15, "start": 9, "wire": 1 / 300, "inter_wire": 1 / 40}, rel=0.01
        )


def test_outliers_do_not_count():
    rng = np.random.default_rng(0)

    def spikes(n):
        return np.where(rng.random(n) < 0.2, rng.uniform(1.5, 6, n), 1.0)

    profile = fit(nccl_table(noise=spikes))
    clean = compare(profile, nccl_table()).rows
    assert clean["error"].abs().median() < 0.01
    assert clean["error"].abs().mean() < 0.03


def test_a_change_of_protocol_is_found():
    size = np.repeat(2.0 ** np.arange(8, 24), 3)
    time_us = np.where(size <= 16384, 6 + size / 4e3, 13 + size / 300e3)
    values = {"start": np.ones(len(size)), "message": size / 1e3}
    low, high = fit_regimes(("start", "message"), values, size, time_us)
    assert 16384 <= low.max_bytes <= 32768
    assert high.max_bytes is None
    assert low.us["message"] == pytest.approx(1 / 4, rel=0.01)
    assert high.us["message"] == pytest.approx(1 / 300, rel=0.01)


def test_terms_are_never_negative():
    us, _ = robust_nnls(np.stack([np.ones(5), np.arange(5.0)], axis=1), np.array([5.0, 4.0, 3.0, 2.0, 1.0]))
    assert (us >= 0).all()


def test_one_row_is_enough_for_a_fit(tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("system,ranks,nodes,dtype,bytes_per_rank,time_us\nmine,8,1,half,1048576,20\n")
    profile = fit(read_table(path))
    _, everything = error_groups(compare(profile, read_table(path)))
    assert everything.mape < 1e-6
    assert TimingProfile.model_validate(__import__("yaml").safe_load(profile_text(profile))) == profile


def test_several_nodes_of_nccl_use_the_nic():
    rows = [("h100", n * 8, n, s) for n in (1, 2, 4) for s in 2.0 ** np.arange(14, 28)]
    frame = pd.DataFrame(rows, columns=["system", "ranks", "nodes", "bytes_per_rank"])
    far = frame["nodes"] > 1
    inside = frame["bytes_per_rank"] * (frame["ranks"] - 1) / frame["ranks"] / 300e3
    outside = frame["bytes_per_rank"] * (frame["nodes"] - 1) / frame["nodes"] / 45e3
    frame["time_us"] = np.where(far, 25 + outside, 10 + inside)
    (model,) = fit_exchanges(build_cases(Table("made", "nccl", frame.assign(dtype="x"))), ORIGIN)
    us = model.regimes[-1].us
    assert 1 / us["inter_wire"] == pytest.approx(45, rel=0.01)
    assert us["inter_start"] == pytest.approx(25, rel=0.05)


def test_distinct_targets_against_counting():
    rng = np.random.default_rng(1)
    experts, targets, top_k = 32, 4, 5
    tokens = np.stack([rng.permutation(experts)[:top_k] for _ in range(4000)])
    counted = np.mean([len(set(row // (experts // targets))) for row in tokens])
    formula = distinct(np.array([targets * 1.0]), np.array([experts * 1.0]), np.array([top_k * 1.0]))
    assert formula[0] == pytest.approx(counted, rel=0.01)


def test_the_executors_own_table(tmp_path):
    lines = ["exchange,phase,ranks,domains,bytes_out_max,time_us"]
    lines += [
        f"two-level,{phase},8,2,{size},{50 + size / 2e3}"
        for phase in ("dispatch", "combine")
        for size in (1e4, 1e5, 1e6, 1e7)
    ]
    path = tmp_path / "executor.csv"
    path.write_text("\n".join(lines))
    profile = fit(read_table(path))
    assert {(m.kernel, m.op) for m in profile.exchanges} == {
        ("executor-two-level", "dispatch"),
        ("executor-two-level", "combine"),
    }
    _, everything = error_groups(compare(profile, read_table(path)))
    assert everything.mape < 0.001


def test_labels_say_what_was_not_measured():
    profile = fit(nccl_table())
    beyond = nccl_table()
    beyond = Table("made", "nccl", beyond.frame.assign(ranks=beyond.frame["ranks"] * 4))
    assert set(compare(profile, nccl_table()).rows["provenance"]) == {"fitted"}
    assert set(compare(profile, beyond).rows["provenance"]) == {"fitted", "extrapolated"}  # 8 ranks were measured
    assert set(compare(profile, nccl_table(system="a100_sxm")).rows["provenance"]) == {"extrapolated"}
    assert set(compare(load_profile("vendor"), nccl_table()).rows["provenance"]) == {"vendor"}


def test_what_was_measured_in_one_host_says_nothing_of_several():
    """A profile of one host predicts rows across hosts as the vendor figures do, instead of 0 us."""
    near = nccl_table().frame.assign(nodes=1)
    far = near[near["ranks"] == 8].assign(ranks=16, nodes=2)
    profile = fit(nccl_table())
    rows = compare(profile, Table("made", "nccl", pd.concat([near, far], ignore_index=True))).rows
    vendor = compare(load_profile("vendor"), Table("made", "nccl", far)).rows
    across = rows[rows["ranks"] == 16]
    assert across["predicted_us"].to_numpy() == pytest.approx(vendor["predicted_us"].to_numpy())
    assert (across["predicted_us"] > 0).all()
    assert set(across["provenance"]) == {"extrapolated"}
    assert set(rows[rows["ranks"] < 16]["provenance"]) == {"fitted"}
