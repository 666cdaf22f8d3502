"""Clusters that lost parts: what is left keeps its ways, and nothing touches what is lost.

hgx-h100:2 without host0/nic4        GPU 4 of host 0 receives through the NIC of a neighbour

  h0  g0 g1 g2 g3 g4 g5 g6 g7          h1  g0 .. g7
      |  |  |  |  x  |  |  |               |      |
      n0 n1 n2 n3    n5 n6 n7              n0 ..  n7
"""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topologies import BadInput, load_cluster, routes
from topologies.cluster_file import dump_spec, parse_spec
from topologies.without import split_without, without

HOSTS, PLACES = range(3), (0, 3, 7)
PARTS = [f"host{h}" for h in HOSTS] + [f"host{h}/{k}{i}" for h in HOSTS for k in ("gpu", "nic") for i in PLACES]


def ways(cluster):
    """(source GPU, target GPU) -> {(from node, to node): fraction}."""
    matrix, found = routes(cluster), {}
    for src in cluster.ranks:
        for dst in cluster.ranks:
            row = matrix[[src.rank * cluster.num_ranks + dst.rank]]
            links = (cluster.links[i] for i in row.indices)
            found[src.node, dst.node] = {
                (link.source, link.target): value for link, value in zip(links, row.data, strict=True)
            }
    return found


def node_of(part):
    """host1/gpu2 -> h1/gpu2, host1 -> h1/."""
    host, _, inside = part.partition("/")
    return f"h{host[4:]}/{inside}"


WHOLE = {name: ways(load_cluster(name)) for name in ("hgx-h100:3",)}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=3, unique=True))
def test_what_is_left_keeps_its_ways_and_none_touches_what_is_lost(parts):
    whole = WHOLE["hgx-h100:3"]
    if {"host0", "host1", "host2"} <= set(parts):
        with pytest.raises(BadInput, match="no rank is left"):
            load_cluster(f"hgx-h100:3 without {','.join(parts)}")
        return
    cluster = load_cluster(f"hgx-h100:3 without {','.join(parts)}")
    lost = [node_of(part) for part in parts]

    def is_lost(node):
        return any(node == name or (name.endswith("/") and node.startswith(name)) for name in lost)

    assert [rank.rank for rank in cluster.ranks] == list(range(cluster.num_ranks))
    assert {rank.node for rank in cluster.ranks} == {gpu for gpu, _ in whole if not is_lost(gpu)}
    for pair, way in ways(cluster).items():
        flow = defaultdict(float)
        for (source, target), fraction in way.items():
            assert not is_lost(source)
            assert not is_lost(target)
            flow[source] -= fraction
            flow[target] += fraction
        if pair[0] != pair[1]:  # all that leaves the source arrives, and nothing stays on the way
            assert flow.pop(pair[0]) == pytest.approx(-1)
            assert flow.pop(pair[1]) == pytest.approx(1)
        assert np.allclose(list(flow.values()), 0)
        if not any(is_lost(node) for cable in whole[pair] for node in cable):
            assert way == pytest.approx(whole[pair])


def test_a_lost_nic_leaves_every_other_cable_in_its_place():
    cluster = load_cluster("hgx-h100:2 without host0/nic4")
    cables = {(link.source, link.target): link.gbps for link in cluster.links}
    for host, nic in ((0, 5), (0, 7), (1, 4), (1, 5)):
        assert (f"h{host}/nic{nic}", f"leaf{nic}.0") in cables
    whole = load_cluster("hgx-h100:2")
    assert {link.gbps for link in cluster.links if link.kind == "fabric"} == {
        link.gbps for link in whole.links if link.kind == "fabric"
    }
    assert cluster.rail_of_rank.tolist() == [0, 1, 2, 3, 0, 5, 6, 7, *range(8)]


def test_without_a_neighbour_on_a_scale_up_link_a_gpu_shares_the_nearest_nic(tmp_path):
    """Two GPUs on one PCIe switch with two NICs, no NVLink: one NIC is lost, both GPUs use the other."""
    text = """
format: epplan.cluster
version: 1
name: boxes
gpus: {card: {name: card, memory_bytes: 1000, hbm_gbps: 1.0, peak_tflops: {bf16: 1.0}}}
hosts:
  box:
    nodes:
    - {name: cpu0, kind: cpu}
    - {name: pci0, kind: pci}
    - {name: gpu0, kind: gpu, model: card}
    - {name: gpu1, kind: gpu, model: card}
    - {name: mlx5_0, kind: nic, gbps: 10.0}
    - {name: mlx5_1, kind: nic, gbps: 10.0}
    links:
    - {a: cpu0, b: pci0, kind: pcie, gbps: 30.0}
    - {a: pci0, b: gpu0, kind: pcie, gbps: 30.0}
    - {a: pci0, b: gpu1, kind: pcie, gbps: 30.0}
    - {a: pci0, b: mlx5_0, kind: pcie, gbps: 30.0}
    - {a: pci0, b: mlx5_1, kind: pcie, gbps: 30.0}
layout: [{host: box, count: 2}]
"""
    path = tmp_path / "boxes.yaml"
    path.write_text(text)
    odd = tmp_path / "boxes without host1.yaml"
    odd.write_text(text)
    assert load_cluster(str(odd)).num_ranks == 4  # the name of a file goes first
    cluster = load_cluster(f"{path} without host0/mlx5_0")
    assert cluster.rail_of_rank.tolist() == [1, 1, 0, 1]
    assert ("h0/pci0", "h0/mlx5_1") in ways(cluster)["h0/gpu0", "h1/gpu0"]
    lost_all = load_cluster(f"{path} without host0/mlx5_0,host0/nic1")
    with pytest.raises(BadInput, match="no path from rank 0"):
        routes(lost_all)


def test_names_round_trip_and_losses_add_up():
    assert split_without("hgx-h100:4") == ("hgx-h100:4", ())
    once = load_cluster("hgx-h100:4 without host3,host0/nic4")
    step_by_step = without(without(load_cluster("hgx-h100:4"), ["host0/nic4"]), ["host3"])
    assert once == step_by_step
    assert once.name == step_by_step.name
    assert load_cluster(once.name) == once
    assert parse_spec(dump_spec(once.spec), "again") == once.spec


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("host4", "hosts 0 to 3"),
        ("host0/gpu8", "gpu0 to gpu7"),
        ("host0/fan1", "nic0 to nic7"),
        ("rack1", "names no part"),
        ("host1/", "names no part"),
    ],
)
def test_a_part_that_is_not_there(part, message):
    with pytest.raises(BadInput, match=message):
        without(load_cluster("hgx-h100:4"), [part])
