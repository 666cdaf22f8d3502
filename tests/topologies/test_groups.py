"""EP groups on one cluster: which ranks they take, and that shared links carry all of them."""

from __future__ import annotations

import numpy as np
import pytest

from topologies import BadInput, Cluster, load_cluster, routes
from topologies.build import build_cluster
from topologies.groups import in_groups, shared_routes
from topologies.load import with_fabric
from topologies.without import without


def fat_tree(hosts: int, oversubscription: float) -> Cluster:
    """Hosts of 8 GPUs, each with all its NICs on a leaf of its own, whose uplinks are so much slower."""
    spec = load_cluster(f"hgx-h100:{hosts}").spec
    return build_cluster(with_fabric(spec, kind="fat-tree", radix=16, oversubscription=oversubscription))


def test_side_by_side_and_strided() -> None:
    """16 ranks in four groups: 0-3 | 4-7 | 8-11 | 12-15, or with stride 2: 0 2 4 6 | 1 3 5 7 | 8 10 12 14 | ..."""
    cluster = load_cluster("hgx-h100:2")
    side_by_side, strided = in_groups(cluster, 4), in_groups(cluster, 4, 2)
    assert [rank.node for rank in side_by_side.ranks] == [f"h0/gpu{i}" for i in range(4)]
    assert [rank.node for rank in strided.ranks] == [f"h0/gpu{i}" for i in (0, 2, 4, 6)]
    assert side_by_side.groups.others[2] == ((1, 4), (1, 5), (1, 6), (1, 7))
    assert strided.groups.others[0] == ((0, 1), (0, 3), (0, 5), (0, 7))
    assert (strided.groups.count, strided.groups.stride) == (4, 2)
    assert side_by_side != strided
    assert side_by_side != cluster.subset(range(4))
    assert in_groups(cluster, 1) is cluster


def test_a_group_of_a_group_is_alone() -> None:
    alone = in_groups(load_cluster("hgx-h100:2"), 4).subset(range(4))
    assert alone.groups.count == 1
    assert (shared_routes(alone) != routes(alone)).nnz == 0


@pytest.mark.parametrize(("hosts", "count", "stride"), [(4, 2, 1), (2, 2, 2), (2, 4, 4), (4, 4, 2)])
def test_shared_routes_add_up_the_transfers_of_all_groups(hosts: int, count: int, stride: int) -> None:
    """Pair by pair and group by group, over the routes of each group alone."""
    cluster = fat_tree(hosts, 4.0)
    group = in_groups(cluster, count, stride)
    size = cluster.num_ranks // count
    expected = np.zeros((size * size, cluster.num_links))
    for number in range(count):
        first = number // stride * size * stride + number % stride
        members = range(first, first + size * stride, stride)
        expected += routes(cluster, ranks=members).toarray()
    np.testing.assert_allclose(shared_routes(group).toarray(), expected)


def test_after_a_loss() -> None:
    """Two of three hosts are left, one group each; GPUs lost on one host leave groups that differ."""
    cluster = load_cluster("hgx-h100:3")
    group = in_groups(without(cluster, ["host1"]), 2)
    assert group.groups.others == (tuple((2, gpu) for gpu in range(8)),)
    lost = without(cluster, ["host0/gpu0", "host0/gpu1", "host0/gpu2", "host0/gpu3", "host2"])
    with pytest.raises(BadInput, match="EP group 1 of 2 has other domains than group 0"):
        in_groups(lost, 2)


@pytest.mark.parametrize(
    ("count", "stride", "line"),
    [
        (3, 1, "16 ranks are no multiple of 3 EP groups; nearest that divide: 2, 4"),
        (32, 1, "16 ranks are no multiple of 32 EP groups; nearest that divide: 16"),
        (4, 3, "4 EP groups with ranks 3 apart: the groups must be a multiple of the stride"),
        (1, 2, "1 EP groups with ranks 2 apart"),
    ],
)
def test_what_is_refused(count: int, stride: int, line: str) -> None:
    with pytest.raises(BadInput, match=line):
        in_groups(load_cluster("hgx-h100:2"), count, stride)


def test_groups_of_other_speeds_are_refused() -> None:
    cluster = load_cluster("hgx-h100:2").with_speeds([1.0] * 8 + [0.5] * 8)
    with pytest.raises(BadInput, match="other GPUs than group 0, and one plan cannot serve both"):
        in_groups(cluster, 2)
