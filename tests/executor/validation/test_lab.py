"""Validation in a lab: predicted and measured meet, and a slowed link is named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyroute2", reason="pyroute2 is not installed")

from executor.lab import open_lab, scale_for_nic
from executor.launch import RankPool
from executor.validation.flows import flow_patterns, slow_links
from executor.validation.link_loads import Links
from executor.validation.report import ValidationReport
from executor.validation.timing import Setting, time_flows
from executor.validation.validate import Candidate, Validation, make_report
from planner import Placement, build_workload, load_model, load_profile
from planner.baselines import baseline
from planner.routing import Routing
from topologies import Cluster, load_cluster

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="the lab needs root"),
    pytest.mark.skipif(not Path("/proc/self/ns/net").exists(), reason="no network namespaces"),
]


def small_cluster() -> Cluster:
    """Return two hosts with two ranks each."""
    return load_cluster("hgx-h100:2").subset([0, 1, 8, 9])


def run(cluster: Cluster) -> ValidationReport:
    """Validate linear, and a placement that keeps nothing at home, on skewed routing: 4 ranks, 32 experts."""
    folder = Path(__file__).resolve().parents[3] / "planner" / "bundled" / "tiny_moe"
    model = load_model(str(folder / "config.json"))
    rng = np.random.default_rng(0)
    p_E = np.arange(1, model.experts + 1) ** 1.5
    ids = [rng.choice(model.experts, (512, 1), p=p_E / p_E.sum()) + np.zeros((1, model.top_k), int) for _ in range(4)]
    ids = [(one + np.arange(model.top_k)) % model.experts for one in ids]
    counts = np.bincount(np.concatenate(ids).ravel(), minlength=model.experts)[None, None].astype(float)
    workload = build_workload(model, cluster, Routing(layers=(1,), counts=counts, name="skewed"), 512)
    slots_R = np.full(4, 9)
    candidates = [
        Candidate(name, exchange, {1: _placed(name, workload, slots_R)})
        for exchange in ("pairwise", "two-level")
        for name in ("linear", "eplb-global")
    ]
    scale = scale_for_nic(cluster, 8.0)
    setting = Setting(model.hidden, "bfloat16", 3, 1, tuple(cluster.domain_of_rank), tuple(cluster.rail_of_rank))
    with open_lab(cluster, scale=scale) as lab, RankPool(4, places=lab.places) as pool:
        validation = Validation(
            pool, lab, Links(cluster), scale, workload, load_profile(), {1: ids}, setting, timeout_s=120, compute=False
        )
        return make_report(validation, candidates, "lab", lambda _: None)


def _placed(name: str, workload: object, slots_R: np.ndarray) -> Placement:
    return baseline(name, workload, slots_R)[0].without_duplicates()  # type: ignore[arg-type]


def test_bytes_rows_and_times_in_the_lab() -> None:
    """Rows are exact, bytes within 3 %; times only roughly, as this machine may be busy (see benchmarks/lab.py)."""
    report = run(small_cluster())
    assert [problem for case in report.cases for problem in case.problems] == []
    assert report.link_errors(least_bytes=100_000)
    assert max(report.link_errors(least_bytes=100_000)) < 0.03
    assert report.summary()["median_error"] < 0.5
    assert report.disagreeing == ()


def test_a_link_slowed_by_hand_is_named() -> None:
    cluster = load_cluster("hgx-h100:3").subset([0, 1, 8, 9, 16, 17])
    links, scale = Links(cluster), scale_for_nic(cluster, 40.0)
    patterns, entries = flow_patterns(cluster.domain_of_rank, cluster.rail_of_rank), 400_000
    with open_lab(cluster, scale=scale) as lab, RankPool(6, places=lab.places) as pool:
        slowed = links.names[lab.throttle("h1/nic0->leaf0.0", 0.25)]
        of_rank = pool.run(time_flows, patterns, entries, 3, timeout_s=120)
    us_PR = np.array([[np.median(us[p]) for us in of_rank] for p in range(len(patterns))])
    assert [slow.link for slow in slow_links(patterns, us_PR, entries, links, scale)] == [slowed]
