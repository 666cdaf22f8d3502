"""A plan for one of several EP groups: priced with the load of all of them, alone where they share no link."""

import numpy as np
import pytest

from planner.coherent import coherent_step
from planner.placement import Placement
from planner.predict import predict
from planner.simulate import simulate_layer
from planner.timing import EXCHANGES
from planner.workload import build_workload
from tests.planner.coherent_loops import coherent_times
from tests.planner.definitions import PROFILE, link_us, pair_rows, routing_of, tiny_model
from tests.planner.test_coherent import drawn, made
from tests.topologies.test_groups import fat_tree
from topologies import BadInput, load_cluster
from topologies.groups import in_groups


def step(cluster, experts=16, tokens=4096):
    rng = np.random.default_rng(0)
    counts = rng.zipf(1.6, experts).clip(1, 50)
    return build_workload(tiny_model(experts), cluster, routing_of(counts), tokens)


def in_order(cluster, experts=16):
    rank_E = np.arange(experts) * cluster.num_ranks // experts
    return Placement.of_slots(np.arange(experts), rank_E, experts, cluster.num_ranks, cluster.num_domains)


def times(cluster, exchange):
    (one,) = predict("plan", [in_order(cluster)], step(cluster), PROFILE, exchange).layers
    return one.dispatch_us, one.compute_us, one.combine_us


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_groups_on_hosts_of_their_own_are_as_fast_as_one_alone(exchange):
    """Two groups of two hosts each on a non-blocking spine: no link is theirs in common that one would fill."""
    alone = load_cluster("hgx-h100:2")
    both = in_groups(load_cluster("hgx-h100:4"), 2)
    assert times(both, exchange) == pytest.approx(times(alone, exchange))


@pytest.mark.parametrize("back", [False, True])
def test_interleaved_groups_load_the_uplinks_with_their_sum(back):
    """Even and odd GPUs of two hosts; a leaf has uplinks for a 16th of its NICs: counted group by group."""
    cluster = fat_tree(2, 16.0)
    group = in_groups(cluster, 2, 2)
    workload, placement = step(group), in_order(group)
    rows, _ = pair_rows(workload, placement)
    model = workload.model
    row_bytes = model.combine_row_bytes if back else model.dispatch_row_bytes
    regime = PROFILE.regime(4096 * model.top_k / 8 * row_bytes)
    efficiency = {"local": 1.0, **regime.efficiency}
    members = [cluster.subset(range(first, 16, 2)) for first in (0, 1)]
    load = [link_us(one, rows, row_bytes, back, efficiency) for one in members]
    found = times(group, "pairwise")[2 if back else 0]
    assert found == pytest.approx(regime.alpha_inter_us + sum(load).max())
    assert sum(load).max() == pytest.approx(2 * load[0].max())  # the uplinks are what is slow, for one group too


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_sharing_never_makes_it_faster(exchange):
    cluster = fat_tree(2, 4.0)
    group = in_groups(cluster, 2, 2)
    shared, alone = times(group, exchange), times(group.subset(range(8)), exchange)
    assert shared[0] > alone[0]
    assert shared[1] == alone[1]
    assert shared[2] > alone[2]


def test_coherent_counts_all_groups_too():
    """Its rows on the links of both groups; loops over tokens for one, at twice the load where all links are shared."""
    cluster = fat_tree(2, 16.0)
    group = in_groups(cluster, 2, 2)
    trace = drawn(0, experts=16)
    both = coherent_step(made(trace, 16, group, tokens=4096), PROFILE, "dedup")
    found = both.predict("plan", [in_order(group)] * 3)
    alone = coherent_times(made(trace, 16, group.subset(range(8)), tokens=4096), [in_order(group)] * 3, "dedup")
    start_up = PROFILE.regimes[-1].alpha_inter_us
    for one, (dispatch_us, _, _) in zip(found.layers, alone, strict=True):
        assert one.dispatch_us - start_up == pytest.approx(2 * (dispatch_us - start_up))


def test_simulated_flows_share_the_links_too():
    """Equal groups in step: every phase takes at least as long as its busiest link, and longer than one group's."""
    group = in_groups(fat_tree(2, 16.0), 2, 2)
    alone = group.subset(range(8))
    shared, single = (
        simulate_layer(step(one), in_order(one), 0, PROFILE, "pairwise", barriers=True) for one in (group, alone)
    )
    assert shared.dispatch_us >= shared.closed_form.dispatch_us * (1 - 1e-9)
    assert shared.closed_form.dispatch_us == pytest.approx(times(group, "pairwise")[0])
    assert shared.dispatch_us > 1.5 * single.dispatch_us


@pytest.mark.parametrize("groups", [1, 2])
def test_a_cluster_too_large_for_one_group_is_refused_before_memory_runs_out(groups):
    """520 hosts, 4,160 ranks: the fewest groups of whole hosts, and of at most 256 ranks, are 20 of 26 hosts."""
    cluster = in_groups(load_cluster("hgx-h100:520"), groups)
    words = f"an EP group of {4160 // groups} ranks.*limit of 2048.*--ep-groups 20 makes them 208 ranks"
    with pytest.raises(BadInput, match=words):
        step(cluster)
