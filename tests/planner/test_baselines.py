"""Baselines against DeepSeek's published vector, and against the rules of EPLB written out in plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.baselines import balanced_packing, baseline, eplb, replicate
from planner.workload import build_workload
from tests.planner.definitions import routing_of, tiny_cluster, tiny_model
from topologies import BadInput, Infeasible

# README of deepseek-ai/EPLB @ d52c72d: weights, and the phy2log printed for 16 replicas, 4 groups, 2 nodes, 8 GPUs
PUBLISHED = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]


def test_published_vector():
    phy2log, logcnt = eplb(np.array(PUBLISHED, float), 16, 4, 2, 8)
    assert phy2log.tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]
    assert logcnt.tolist() == [[1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1], [1, 2, 1, 1, 1, 2, 2, 1, 2, 1, 1, 1]]


def test_published_gpu_loads():
    phy2log, logcnt = eplb(np.array(PUBLISHED, float), 16, 4, 2, 8)
    per_slot = np.take_along_axis(np.array(PUBLISHED) / logcnt, phy2log, axis=1)
    assert per_slot.reshape(2, 8, 2).sum(axis=2).tolist() == [
        [121.5, 86.5, 125, 113, 147.5, 131.5, 156, 152],
        [173, 179.5, 120.5, 172, 123, 152, 118.5, 117.5],
    ]


def naive_packing(weight, packs):
    """LPT with exactly len(weight) / packs items a pack, one item at a time."""
    capacity = len(weight) // packs
    if capacity == 1:
        return list(range(len(weight)))
    load, filled, pack = [0.0] * packs, [0] * packs, [0] * len(weight)
    for item in sorted(range(len(weight)), key=lambda i: -weight[i]):
        target = min((p for p in range(packs) if filled[p] < capacity), key=lambda p: load[p])
        pack[item] = target
        load[target] += weight[item]
        filled[target] += 1
    return pack


@given(st.integers(1, 4), st.integers(1, 4), st.lists(st.integers(0, 50), min_size=16, max_size=16))
def test_packing_follows_the_rule(packs, capacity, weights):
    weight = np.array(weights[: packs * capacity], float)
    pack, place = balanced_packing(weight[None], packs)
    assert pack[0].tolist() == naive_packing(weight, packs)
    assert sorted(zip(pack[0].tolist(), place[0].tolist(), strict=True)) == [
        (p, s) for p in range(packs) for s in range(capacity)
    ]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 6))
def test_replicas_go_to_the_largest_load_per_copy(weights, spare):
    phy2log, logcnt = replicate(np.array([weights], float), len(weights) + spare)
    count = [1] * len(weights)
    expected = list(range(len(weights)))
    for _ in range(spare):
        hottest = max(range(len(weights)), key=lambda e: (weights[e] / count[e], -e))
        count[hottest] += 1
        expected.append(hottest)
    assert phy2log[0].tolist() == expected
    assert logcnt[0].tolist() == count


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_layers_do_not_mix(seed):
    weight = np.random.default_rng(seed).integers(0, 100, (3, 16)).astype(float)
    together, _ = eplb(weight, 24, 4, 2, 8)
    alone = [eplb(weight[[layer]], 24, 4, 2, 8)[0][0] for layer in range(3)]
    assert together.tolist() == [row.tolist() for row in alone]


def workload_of(counts, groups=1):
    model = tiny_model(len(counts), groups=groups, top_groups=groups)
    return build_workload(model, tiny_cluster(), routing_of(counts), 100)


@pytest.mark.parametrize(
    ("name", "slots"),
    [("linear", [[0, 1], [2, 3], [4, 5], [6, 7]]), ("round-robin", [[0, 4], [1, 5], [2, 6], [3, 7]])],
)
def test_simple_rules(name, slots):
    assert baseline(name, workload_of(range(1, 9)), np.full(4, 2))[0].slots() == slots


def test_hierarchical_where_groups_divide_by_hosts():
    """Four groups of two on two hosts: a group's experts stay on one host; three groups would not divide."""
    placement = baseline("eplb", workload_of([9, 1, 2, 3, 4, 5, 6, 7], groups=4), np.full(4, 3))[0]
    host_of = {int(e): int(g) // 2 for e, g in zip(placement.expert_S, placement.rank_S, strict=True)}
    assert all(host_of[2 * group] == host_of[2 * group + 1] for group in range(4))


def test_eplb_is_global_where_ranks_do_not_divide_by_hosts():
    """Two hosts of which one has lost a GPU: three ranks; four groups divide by two hosts, three ranks do not."""
    model = tiny_model(8, groups=4, top_groups=4)
    workload = build_workload(model, tiny_cluster().subset([0, 1, 2]), routing_of([9, 1, 2, 3, 4, 5, 6, 7]), 100)
    both = [baseline(name, workload, np.full(3, 3))[0].slots() for name in ("eplb", "eplb-global")]
    assert both[0] == both[1]


def test_eplb_takes_the_smallest_of_uneven_slots_where_they_suffice():
    slots_R = np.array([2, 2, 3, 3])
    uneven, even = (baseline("eplb", workload_of(range(8)), slots)[0] for slots in (slots_R, np.full(4, 2)))
    assert uneven.slots() == even.slots()
    with pytest.raises(Infeasible, match=r"same number of slots.*1 \* 4 ranks = 4 < experts \(8\)"):
        baseline("eplb", workload_of(range(8)), np.array([1, 2, 3, 3]))


def test_unknown_name_suggests():
    with pytest.raises(BadInput, match="unknown baseline 'linar'; nearest: linear"):
        baseline("linar", workload_of(range(8)), np.full(4, 2))
