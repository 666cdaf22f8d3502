"""Routes, link by link on small hosts, and as a whole on large ones."""

from __future__ import annotations

import resource
import time

import numpy as np
import pytest

from tests.topologies.samples import MATRIX, two_sockets
from topologies import BadInput, Cluster, load_cluster, rail_peers, routes
from topologies.build import build_cluster
from topologies.importing import Knowledge, join_hosts, parse_topology
from topologies.load import with_fabric
from topologies.spec import ClusterSpec


def _cluster(content: bytes, *, hosts: int = 1, fabric: str | None = None, nic_gbps: float | None = None) -> Cluster:
    knowledge = Knowledge("hgx-h100", nic_gbps)
    spec = join_hosts([parse_topology(content, "sample", knowledge)], knowledge, name="sample", hosts=hosts)
    return build_cluster(with_fabric(spec, kind=fabric))


def _way(cluster: Cluster, src: int, dst: int, policy: str = "pxn") -> dict[str, float]:
    """Return the links of one transfer as 'source>target' and their fractions."""
    row = routes(cluster, policy)[[src * cluster.num_ranks + dst]]
    return {
        f"{cluster.links[i].source}>{cluster.links[i].target}": float(part)
        for i, part in zip(row.indices, row.data, strict=True)
    }


def test_inside_a_domain_over_the_switch() -> None:
    cluster = load_cluster("hgx-h100:1")
    assert _way(cluster, 2, 5) == {"h0/gpu2>h0/nvswitch": 1, "h0/nvswitch>h0/gpu5": 1}
    assert _way(cluster, 3, 3) == {}


def test_same_rail_between_hosts() -> None:
    assert _way(load_cluster("hgx-h100:2"), 1, 9) == {
        "h0/gpu1>h0/pci1": 1, "h0/pci1>h0/nic1": 1, "h0/nic1>leaf1.0": 1,
        "leaf1.0>h1/nic1": 1, "h1/nic1>h1/pci1": 1, "h1/pci1>h1/gpu1": 1,
    }  # fmt: skip


def test_cross_rail_by_pxn_and_across_the_spine() -> None:
    cluster = load_cluster("hgx-h100:2")
    tail = ["leaf2.0>h1/nic2", "h1/nic2>h1/pci2", "h1/pci2>h1/gpu2"]
    pxn = ["h0/gpu1>h0/nvswitch", "h0/nvswitch>h0/gpu2", "h0/gpu2>h0/pci2", "h0/pci2>h0/nic2", "h0/nic2>leaf2.0"]
    direct = ["h0/gpu1>h0/pci1", "h0/pci1>h0/nic1", "h0/nic1>leaf1.0", "leaf1.0>spine", "spine>leaf2.0"]
    assert set(_way(cluster, 1, 10)) == {*pxn, *tail}
    assert set(_way(cluster, 1, 10, "direct")) == {*direct, *tail}


def test_pxn_crosses_the_spine_only_between_leaves_of_a_rail() -> None:
    cluster = load_cluster("hgx-h100:4", radix=4)  # two hosts a leaf
    assert not any("spine" in link for link in _way(cluster, 0, 9))
    assert {"leaf1.0>spine", "spine>leaf1.1"} <= set(_way(cluster, 0, 17))


def test_nvl72_between_trays_and_between_racks() -> None:
    cluster = load_cluster("gb200-nvl72:2")
    assert _way(cluster, 0, 71) == {"h0/gpu0>d0/nvswitch": 1, "d0/nvswitch>h17/gpu3": 1}
    assert set(_way(cluster, 0, 73)) == {
        "h0/gpu0>d0/nvswitch", "d0/nvswitch>h0/gpu1", "h0/gpu1>h0/cpu0", "h0/cpu0>h0/nic1", "h0/nic1>leaf1.0",
        "leaf1.0>h18/nic1", "h18/nic1>h18/cpu0", "h18/cpu0>h18/gpu1",
    }  # fmt: skip


def test_two_ports_stripe_the_bytes() -> None:
    cluster = _cluster(two_sockets(ports=2, mbps=200_000), hosts=2)
    way = _way(cluster, 0, 4)
    assert way["h0/nic0>leaf0.0"] == way["h0/nic1>leaf0.0"] == 0.5
    assert way["h0/card0>h0/nic0"] == 0.5
    assert way["h0/pci0>h0/card0"] == 1
    assert [rank.rail for rank in cluster.ranks] == [0, 1, 2, 3] * 2


def test_a_gpu_without_near_nic_goes_through_a_neighbour_and_directly_through_the_cpus() -> None:
    cluster = _cluster(MATRIX.encode(), hosts=2, nic_gbps=50.0)
    assert [rank.rail for rank in cluster.ranks[:4]] == [0, 1, 0, 1]
    way = _way(cluster, 2, 6)
    assert {"h0/gpu2>h0/nvswitch", "h0/nvswitch>h0/gpu0", "h1/gpu0>h1/nvswitch", "h1/nvswitch>h1/gpu2"} <= set(way)
    assert not any("cpu" in link for link in way)
    assert any("cpu0>h0/cpu1" in link or "cpu1>h0/cpu0" in link for link in _way(cluster, 2, 6, "direct"))


def _ring(names: str) -> ClusterSpec:
    """Return a host of GPUs joined in a ring by NVLink, as direct-link boards are."""
    nodes = [{"name": f"gpu{i}", "kind": "gpu"} for i in range(len(names))]
    links = [
        {"a": f"gpu{i}", "b": f"gpu{(i + 1) % len(names)}", "kind": "nvlink", "gbps": 80.0, "lanes": 4}
        for i in range(len(names))
    ]
    return ClusterSpec.model_validate(
        {"name": "ring", "hosts": {"ring": {"nodes": nodes, "links": links}}, "layout": [{"host": "ring"}]}
    )


def test_direct_link_boards_forward_through_other_gpus() -> None:
    cluster = build_cluster(_ring("abcd"), strict=False)
    assert _way(cluster, 0, 1) == {"h0/gpu0>h0/gpu1": 1}
    there, back = _way(cluster, 0, 2), _way(cluster, 2, 0)
    assert len(there) == len(back) == 2
    assert {tuple(link.split(">")[::-1]) for link in there} == {tuple(link.split(">")) for link in back}
    load = np.asarray(routes(cluster).sum(axis=0))
    assert load.sum() == 8 + 2 * 4  # 8 neighbours one hop apart, 4 opposite pairs two
    with pytest.raises(BadInput, match="GPU model"):
        build_cluster(_ring("abcd"))


def test_every_route_is_a_path_that_conserves_bytes() -> None:
    for cluster in (load_cluster("dgx-a100:2"), load_cluster("mi300x:2"), _cluster(two_sockets(ports=2), hosts=2)):
        for policy in ("pxn", "direct"):
            matrix = routes(cluster, policy)
            nodes = {name: i for i, name in enumerate(cluster.wiring.node_names)}
            for src in cluster.ranks:
                for dst in cluster.ranks:
                    row = matrix[[src.rank * cluster.num_ranks + dst.rank]]
                    net = np.zeros(len(nodes))
                    np.add.at(net, cluster.wiring.source[row.indices], row.data)
                    np.add.at(net, cluster.wiring.target[row.indices], -row.data)
                    expected = np.zeros(len(nodes))
                    if src.rank != dst.rank:
                        expected[nodes[src.node]], expected[nodes[dst.node]] = 1, -1
                    np.testing.assert_allclose(net, expected, atol=1e-12)


def test_other_fabrics() -> None:
    fat = _cluster(two_sockets(), hosts=4, fabric="fat-tree")
    assert not any("spine" in link for link in _way(fat, 0, 4, "direct"))
    assert _way(fat, 0, 5, "direct").keys() >= {"h0/nic0>leaf0.0", "leaf0.0>h1/nic1"}
    rails = _cluster(two_sockets(), hosts=2, fabric="rail-only")
    assert not any("spine" in link for link in _way(rails, 0, 5))
    with pytest.raises(BadInput, match="no path from rank 0"):
        routes(rails, "direct")
    one = _cluster(two_sockets(), hosts=2, fabric="single-switch")
    assert one.wiring.node_kinds.count("leaf") == 1
    with pytest.raises(BadInput, match="no spine"):
        _cluster(two_sockets(), hosts=17, fabric="single-switch")


def test_subsets_keep_the_links_and_relay_only_through_members() -> None:
    cluster = load_cluster("hgx-h100:2")
    half = cluster.subset([0, 1, 8, 9])
    assert (half.num_ranks, half.num_hosts, half.num_links) == (4, 2, cluster.num_links)
    np.testing.assert_array_equal(
        routes(half).toarray(),
        routes(cluster).toarray().reshape(16, 16, -1)[np.ix_([0, 1, 8, 9], [0, 1, 8, 9])].reshape(16, -1),
    )
    np.testing.assert_array_equal(routes(cluster, ranks=[0, 1, 8, 9]).toarray(), routes(half).toarray())
    lonely = cluster.subset([0, 9])
    assert {"leaf0.0>spine", "spine>leaf1.0"} <= set(
        _way(lonely, 0, 1)
    )  # no GPU of the group is on rail 1 at the source
    turned = cluster.subset([9, 0])
    assert [rank.node for rank in turned.ranks] == ["h1/gpu1", "h0/gpu0"]
    assert rail_peers(half.domain_of_rank, half.rail_of_rank).tolist() == [[0, 2], [1, 3], [0, 2], [1, 3]]
    for ranks in ([], [0, 0], [16], [-1]):
        with pytest.raises(BadInput, match="subset"):
            cluster.subset(ranks)


def test_rail_peers_where_rails_differ() -> None:
    cluster = load_cluster("hgx-h100:2").subset([0, 1, 10])
    assert rail_peers(cluster.domain_of_rank, cluster.rail_of_rank).tolist() == [[0, 2], [1, 2], [0, 2]]


def test_unknown_policy() -> None:
    with pytest.raises(BadInput, match="unknown routing policy 'pnx'; nearest: pxn"):
        routes(load_cluster("hgx-h100:1"), "pnx")


def test_512_hosts_and_1024_ranks_are_quick() -> None:
    start = time.perf_counter()
    large = load_cluster("hgx-h100:512")
    assert large.graph.number_of_edges() == large.num_links
    built = time.perf_counter() - start
    start = time.perf_counter()
    matrix = routes(load_cluster("hgx-h100:128"))
    routed = time.perf_counter() - start
    assert large.num_ranks == 4096
    assert matrix.shape[0] == 1024**2
    assert built < 5
    assert routed < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * 2**20  # KiB
