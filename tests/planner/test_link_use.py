"""What a layer puts on links: bytes added up by hand, and busy time that agrees with bytes over speed."""

from __future__ import annotations

import numpy as np
import pytest

from planner import build_workload, load_cluster, load_model, load_profile
from planner.baselines import baseline
from planner.link_use import link_use, traffic_RR, use_over_time
from planner.restep import restep
from planner.simulate import Simulation, simulate_layer
from planner.synthetic import power_law
from topologies import routes

MODEL = load_model("olmoe-1b-7b")
CLUSTER = load_cluster("hgx-h100:2")


def _simulation(exchange: str, *, barriers: bool = False) -> Simulation:
    workload = build_workload(MODEL, CLUSTER, power_law(MODEL, 0.3), 64)
    placement = baseline("linear", workload, np.full(CLUSTER.num_ranks, 4))[0]
    return simulate_layer(workload, placement, 0, load_profile(), exchange, barriers=barriers)  # type: ignore[arg-type]  # a name


def test_pairwise_traffic_is_rows_times_bytes():
    """Every rank sends the same 64 x 8 pairs: to rank r what r's four experts draw of them."""
    done = _simulation("pairwise")
    routing = power_law(MODEL, 0.3)
    share_R = routing.probabilities[0].reshape(16, 4).sum(axis=1)
    sent_RR = 64 * MODEL.top_k * np.tile(share_R, (16, 1)) * (1 - np.eye(16))
    np.testing.assert_allclose(traffic_RR(done, "dispatch"), sent_RR * MODEL.dispatch_row_bytes)
    np.testing.assert_allclose(traffic_RR(done, "combine"), sent_RR.T * MODEL.combine_row_bytes)


@pytest.mark.parametrize("exchange", ["pairwise", "dedup", "two-level"])
def test_bytes_on_links_add_up_pair_by_pair(exchange):
    done = _simulation(exchange)
    use, route = link_use(done, CLUSTER), routes(CLUSTER).toarray()
    expected_N = np.zeros(CLUSTER.num_links)
    for hop in done.hops:
        if hop.name == "dispatch":
            for source, target, size in zip(hop.source_F, hop.target_F, hop.bytes_F, strict=True):
                expected_N += route[source * 16 + target] * size
    np.testing.assert_allclose(use.dispatch_bytes_N, expected_N)
    busy = use.busy_us_N > 0
    assert (use.busy_us_N <= done.layer_us * (1 + 1e-6)).all()
    assert (busy <= (use.dispatch_bytes_N + use.combine_bytes_N > 0)).all()


def test_a_link_is_busy_for_its_bytes_over_the_speed_it_reaches():
    """On NIC links both phases run at one efficiency: busy time over bytes is the same number on all of them."""
    done = _simulation("pairwise")
    use = link_use(done, CLUSTER)
    nics = np.array([kind == "nic" for kind in CLUSTER.link_kinds])
    speed = (use.dispatch_bytes_N + use.combine_bytes_N)[nics] / use.busy_us_N[nics] / 1e3  # GB/s
    assert speed.max() / speed.min() == pytest.approx(1.0, rel=0.02)
    assert 0.5 * 50 < speed.mean() <= 50.0


def test_use_over_time_holds_the_whole_of_the_busy_time():
    done = _simulation("two-level")
    use_NB, edges_us = use_over_time(done, 37)
    assert use_NB.shape == (CLUSTER.num_links, 37)
    np.testing.assert_allclose(use_NB @ np.diff(edges_us), link_use(done, CLUSTER).busy_us_N, rtol=1e-6, atol=1e-9)
    assert edges_us[0] == 0
    assert done.layer_us <= edges_us[-1] <= 1.05 * done.layer_us
    assert use_NB.max() <= 1 + 1e-6


@pytest.mark.parametrize(("other", "tokens"), [("hgx-h100:3", 64.0), ("hgx-h100:2", 777.7), ("gb200-nvl72:1", None)])
def test_restep_is_build_workload_without_drawing_anew(other, tokens):
    routing, cluster = power_law(MODEL, 0.6), load_cluster(other)
    fresh = build_workload(MODEL, cluster, routing, tokens)
    again = restep(build_workload(MODEL, CLUSTER, routing, 4096), cluster, tokens)
    assert (again.tokens_LPK == fresh.tokens_LPK).all()
    assert (again.rows_LCE == fresh.rows_LCE).all()
    assert again.tokens_per_rank == fresh.tokens_per_rank
