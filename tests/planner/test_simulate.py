"""Flows by hand, and whole layers against the closed form."""

import json
import time

import numpy as np
import pytest
import scipy.sparse as sp

from planner import build_workload, load_cluster, load_profile
from planner.baselines import baseline
from planner.flows import Flows, fair_rates, run_flows
from planner.model import MoEModel
from planner.request import slots_of_ranks
from planner.routing import Routing
from planner.simulate import simulate_layer
from planner.timing import EXCHANGES
from planner.trace import chrome_trace


def flows(sizes, us, group=None, delay=None, member=None, num_groups=0):
    count = len(sizes)
    return Flows(
        bytes_F=np.array(sizes, dtype=float),
        us_FN=sp.csr_array(np.array(us, dtype=float)),
        group_F=np.array(group or [-1] * count),
        delay_F=np.array(delay or [0.0] * count),
        member_F=np.array(member or [-1] * count),
        num_groups=num_groups,
    )


def test_fair_rates_of_the_textbook():
    """Link a (1 byte/us) carries flows 0 and 1, link b (2 bytes/us) 1 and 2: 1/2 each on a, 3/2 is left on b."""
    rates = fair_rates(sp.csr_array(np.array([[1.0, 0.0], [1.0, 0.5], [0.0, 0.5]])))
    assert rates.tolist() == pytest.approx([0.5, 0.5, 1.5])


def test_fair_rates_fill_every_bottleneck_on_random_networks():
    rng = np.random.default_rng(0)
    for _ in range(50):
        dense = np.where(rng.random((12, 6)) < 0.4, rng.uniform(0.5, 2.0, (12, 6)), 0.0)
        dense[np.arange(12), rng.integers(0, 6, 12)] += 0.5
        rates = fair_rates(sp.csr_array(dense))
        use = rates @ dense
        assert (use <= 1 + 1e-9).all()
        for flow in range(12):  # max-min: each flow has a full link on which nobody is faster
            links = np.flatnonzero(dense[flow])
            assert any(use[n] > 1 - 1e-6 and rates[flow] >= rates[dense[:, n] > 0].max() - 1e-9 for n in links)


def test_a_short_flow_lets_the_long_one_through():
    """Two flows share 1 byte/us: 10 and 30 bytes. Both at 1/2 until 20 us, then 20 bytes alone: 40 us."""
    timeline = run_flows(flows([10, 30], [[1.0], [1.0]]))
    assert timeline.finish_F.tolist() == pytest.approx([20, 40])


def test_start_up_is_paid_before_the_bytes():
    """Flow 1 starts at 5: flow 0 has 5 bytes through, then both at 1/2."""
    timeline = run_flows(flows([10, 10], [[1.0], [1.0]], delay=[0.0, 5.0]))
    assert timeline.start_F.tolist() == [0, 5]
    assert timeline.finish_F.tolist() == pytest.approx([15, 20])


def test_a_flow_waits_for_a_group_and_a_delay():
    """Flows 0 and 1 (own links, 4 and 6 us) form a group; flow 2 starts 10 us after it and needs 3 us."""
    timeline = run_flows(
        flows(
            [4, 6, 3],
            [[1, 0, 0], [0, 1, 0], [0, 0, 1.0]],
            group=[-1, -1, 0],
            delay=[0, 0, 10.0],
            member=[0, 0, -1],
            num_groups=1,
        )
    )
    assert timeline.group_G.tolist() == [6]
    assert timeline.finish_F.tolist() == pytest.approx([4, 6, 19])


def test_putting_ends_together_beats_no_bottleneck_and_stays_close():
    rng = np.random.default_rng(2)
    dense = np.where(rng.random((40, 8)) < 0.4, 1.0, 0.0)
    dense[np.arange(40), rng.integers(0, 8, 40)] = 1.0
    sizes = rng.uniform(1, 100, 40)
    exact, rough = (run_flows(flows(sizes.tolist(), dense), step) for step in (0.0, 10.0))
    assert rough.finish_F.max() >= (sizes @ dense).max() - 1e-9
    assert rough.finish_F.max() == pytest.approx(exact.finish_F.max(), rel=0.05)
    assert len(rough.spans) < len(exact.spans)
    assert max(use.max() for _, _, use in rough.spans) <= 1 + 1e-6


def workload(cluster, experts=16, seed=0, tokens=256.0, skew=2.0):
    model = MoEModel(
        name="small", experts=experts, top_k=4, hidden=1024, intermediate=512, num_layers=2, moe_layers=(0, 1)
    )
    rng = np.random.default_rng(seed)
    counts = rng.pareto(skew, (2, 1, experts)) + 0.1
    routing = Routing(layers=(0, 1), counts=counts, trace=None, name="made")
    return build_workload(model, load_cluster(cluster), routing, tokens)


def placements(load, name="linear", extra=1):
    slots = load.num_experts // load.num_ranks + extra
    return baseline(name, load, slots_of_ranks(load.model, load.cluster, slots, load.num_layers))


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("name", ["linear", "eplb"])
def test_one_domain_is_held_up_by_one_link_and_equals_the_closed_form(exchange, name):
    load = workload("hgx-h100:1")
    done = simulate_layer(
        load, placements(load, name)[0], 0, load_profile(), exchange, barriers=True, resolution_us=0.0
    )
    closed = done.closed_form
    assert done.dispatch_us == pytest.approx(closed.dispatch_us)
    assert done.layer_us == pytest.approx(closed.layer_us)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_barriers_never_below_the_closed_form(exchange, seed):
    load = workload("hgx-h100:2", seed=seed, skew=1.2)
    for placement in (placements(load)[0], placements(load, "eplb-global")[0]):
        done = simulate_layer(load, placement, 0, load_profile(), exchange, barriers=True)
        closed = done.closed_form
        assert done.dispatch_us >= closed.dispatch_us * (1 - 1e-9)
        assert done.combine_us >= closed.combine_us * (1 - 1e-9)
        assert done.layer_us >= closed.layer_us * (1 - 1e-9)


def test_forwarding_takes_longer_than_tiers_that_overlap_perfectly():
    """The closed form takes the slower tier; whole messages have to arrive before they are forwarded."""
    load = workload("hgx-h100:2", tokens=8192.0)
    done = simulate_layer(load, placements(load)[0], 0, load_profile(), "two-level", barriers=True)
    assert done.dispatch_us > done.closed_form.dispatch_us


def test_the_more_pieces_the_closer_to_tiers_that_overlap():
    """8,192 tokens a rank on two hosts: what forwarding adds goes as 1 / pieces, and no piece gets lost."""
    load = workload("hgx-h100:2", tokens=8192.0)
    placement, closed_us = placements(load)[0], None
    excess_us, sent = [], []
    for pieces in (1, 2, 4, 8):
        done = simulate_layer(load, placement, 0, load_profile(), "two-level", barriers=True, pieces=pieces)
        closed_us = done.closed_form.layer_us
        excess_us.append(done.layer_us - closed_us)
        sent.append(sum(hop.bytes_F.sum() for hop in done.hops))
    assert excess_us == sorted(excess_us, reverse=True)
    assert excess_us[0] > 0.1 * closed_us
    assert 0 <= excess_us[-1] < 0.3 * excess_us[0]
    assert sent == pytest.approx([sent[0]] * 4)


def test_ranks_start_when_their_own_tokens_are_in():
    load = workload("hgx-h100:2", skew=1.2)
    done = simulate_layer(load, placements(load)[0], 0, load_profile(), "pairwise")
    assert (done.experts_start_R == done.tokens_in_R).all()
    assert np.ptp(done.experts_start_R) > 0


def test_the_trace_is_what_chrome_reads():
    load = workload("hgx-h100:2")
    done = simulate_layer(load, placements(load)[0], 0, load_profile(), "two-level")
    document = json.loads(json.dumps(chrome_trace(done), allow_nan=False))
    spans = [event for event in document["traceEvents"] if event["ph"] == "X"]
    assert {event["ph"] for event in document["traceEvents"]} == {"X", "M"}
    assert {event["tid"] for event in spans if event["pid"] == 1} == set(range(load.num_ranks))
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in spans)
    assert max(event["ts"] + event["dur"] for event in spans) == pytest.approx(done.layer_us, abs=1e-3)
    named = {(event["pid"], event["tid"]) for event in document["traceEvents"] if event["name"] == "thread_name"}
    assert {(event["pid"], event["tid"]) for event in spans} <= named


def test_incast_is_where_the_closed_form_is_too_coarse():
    """Every rank sends to rank 0 alone: its link is the only bottleneck, yet all experts wait for the same moment."""
    load = workload("hgx-h100:1", experts=8, skew=0.3)
    placement = placements(load, extra=0)[0]
    done = simulate_layer(load, placement, 0, load_profile(), "pairwise", barriers=True, resolution_us=0.0)
    assert done.dispatch_us == pytest.approx(done.closed_form.dispatch_us)
    free = simulate_layer(load, placement, 0, load_profile(), "pairwise", resolution_us=0.0)
    assert free.layer_us <= done.layer_us + 1e-6
    assert free.tokens_in_R.min() < done.closed_form.dispatch_us  # ranks that few send to need not wait


def test_one_rank_alone_moves_nothing():
    model = MoEModel(name="small", experts=4, top_k=2, hidden=64, intermediate=64, num_layers=1, moe_layers=(0,))
    routing = Routing(layers=(0,), counts=np.ones((1, 1, 4)), trace=None, name="made")
    load = build_workload(model, load_cluster("hgx-h100:1").subset([0]), routing, 8)
    done = simulate_layer(load, baseline("linear", load, np.array([4]))[0], 0, load_profile(), "pairwise")
    assert done.layer_us == pytest.approx(done.closed_form.compute_us)
    assert chrome_trace(done)["traceEvents"]


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_one_layer_on_64_ranks_takes_less_than_two_seconds(exchange):
    load = workload("hgx-h100:8", experts=256, tokens=1024.0)
    placement = placements(load, "eplb")[0]
    simulate_layer(load, placement, 0, load_profile(), exchange)  # routes and prices are kept
    started = time.perf_counter()
    done = simulate_layer(load, placement, 0, load_profile(), exchange)
    assert time.perf_counter() - started < 2
    assert np.isfinite(done.back_R).all()
