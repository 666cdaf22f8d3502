"""The catalog: every system against its cited figures, and against networkx."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from topologies import BadInput, Cluster, catalog_names, load_cluster, rail_peers, routes
from topologies.catalog import gpu_entries, load_system
from topologies.lint import lint
from topologies.summary import bisection_gbps, scale_out_gbps, scale_up_gbps

# scale-up and scale-out GB/s per GPU and direction, HBM GB, as the vendors state them (hardware facts, section 6)
CITED = {
    "hgx-a100": (300, 25, 80), "dgx-a100": (300, 25, 80), "hgx-h100": (450, 50, 80), "hgx-h800": (200, 50, 80),
    "hgx-h20": (450, 50, 96), "hgx-h200": (450, 50, 141), "hgx-b200": (900, 50, 180), "hgx-b300": (900, 100, 288),
    "gb200-nvl72": (900, 50, 186), "gb300-nvl72": (900, 100, 288), "mi300x": (448, 50, 192), "mi355x": (535.5, 50, 288),
}  # fmt: skip


def test_the_catalog_is_what_the_citations_cover() -> None:
    assert catalog_names() == sorted(CITED)


@pytest.mark.parametrize("name", sorted(CITED))
def test_bandwidth_per_gpu_is_the_cited_figure(name: str) -> None:
    up, out, memory = CITED[name]
    cluster = load_cluster(f"{name}:2")
    for paths in cluster.wiring.paths:
        assert scale_up_gbps(paths) == pytest.approx([up] * len(paths.gpus))
        assert scale_out_gbps(paths) == pytest.approx([out] * len(paths.gpus))
    assert {gpu.memory_bytes for gpu in cluster.gpus} == {memory * 10**9}
    assert "bf16" in cluster.gpus[0].peak_tflops
    system = load_system(name)
    for source in (system.scale_up.source, system.nics.source, system.pcie.source, system.fabric.source):
        assert len(source) > 10
    assert all(entry.figures.source for entry in gpu_entries().values())


def _flow(graph: nx.DiGraph, source: str, sinks: list[str]) -> float:
    graph = graph.copy()
    for sink in sinks:
        graph.add_edge(sink, "the rest", capacity=float("inf"))
    return float(nx.maximum_flow_value(graph, source, "the rest"))


def _reach(cluster: Cluster, rank: int) -> nx.DiGraph:
    """Return the links that the transfers of a rank cross when it uses its own NICs."""
    matrix = routes(cluster, "direct")
    rows = matrix[rank * cluster.num_ranks : (rank + 1) * cluster.num_ranks]
    used = np.unique(rows.indices)
    graph = nx.DiGraph()
    for index in used.tolist():
        link = cluster.links[index]
        graph.add_edge(link.source, link.target, capacity=link.gbps)
    return graph


@pytest.mark.parametrize("name", sorted(CITED))
def test_max_flow_from_any_rank_to_the_rest_is_its_injection_bandwidth(name: str) -> None:
    up, out, _ = CITED[name]
    cluster = load_cluster(f"{name}:2")
    scale_up = nx.DiGraph()
    for link in cluster.links:
        if link.kind in ("nvlink", "xgmi"):
            scale_up.add_edge(link.source, link.target, capacity=link.gbps)
    nodes = [rank.node for rank in cluster.ranks]
    for rank in range(0, cluster.num_ranks, max(1, cluster.num_ranks // 16)):
        rest = nodes[:rank] + nodes[rank + 1 :]
        domain = cluster.ranks[rank].domain
        inside = [other.node for other in cluster.ranks if other.domain == domain and other.rank != rank]
        assert _flow(scale_up, nodes[rank], inside) == pytest.approx(up)
        assert _flow(_reach(cluster, rank), nodes[rank], rest) == pytest.approx(up + out)


@pytest.mark.parametrize("name", sorted(CITED))
def test_pcie_never_throttles_the_nic(name: str) -> None:
    cluster = load_cluster(f"{name}:2")
    load = np.asarray(routes(cluster).sum(axis=0))
    nic = max(load[i] / link.gbps for i, link in enumerate(cluster.links) if link.kind == "nic")
    assert all(
        load[i] / link.gbps <= nic + 1e-9 for i, link in enumerate(cluster.links) if link.kind in ("pcie", "c2c")
    )


@pytest.mark.parametrize("name", sorted(CITED))
def test_uniform_alltoall_on_rails_loads_no_spine_link(name: str) -> None:
    cluster = load_cluster(f"{name}:3")
    load = np.asarray(routes(cluster, "pxn").sum(axis=0))
    fabric = np.array([kind == "fabric" for kind in cluster.link_kinds])
    assert fabric.any()
    assert load[fabric].max() == 0
    assert np.asarray(routes(cluster, "direct").sum(axis=0))[fabric].max() > 0
    nic = np.array([kind == "nic" for kind in cluster.link_kinds])
    assert np.ptp(load[nic]) == 0  # balanced over all NICs


@pytest.mark.parametrize("name", sorted(CITED))
def test_lint_is_silent(name: str) -> None:
    assert lint(load_cluster(f"{name}:2").spec) == []


def test_shape_of_hgx_and_nvl72() -> None:
    hgx, rack, two = load_cluster("hgx-h100:4"), load_cluster("gb200-nvl72:1"), load_cluster("gb200-nvl72:2")
    assert (hgx.num_ranks, hgx.num_hosts, hgx.num_domains) == (32, 4, 4)
    assert (rack.num_ranks, rack.num_hosts, rack.num_domains) == (72, 18, 1)
    assert (two.num_ranks, two.num_hosts, two.num_domains) == (144, 36, 2)
    assert [(rank.host, rank.gpu) for rank in hgx.ranks[:10]] == [*((0, gpu) for gpu in range(8)), (1, 0), (1, 1)]
    assert hgx.rail_of_rank.tolist() == list(range(8)) * 4
    assert rail_peers(hgx.domain_of_rank, hgx.rail_of_rank)[9].tolist() == [1, 9, 17, 25]
    assert rail_peers(two.domain_of_rank, two.rail_of_rank)[75].tolist() == [3, 75]


def test_bisection_agrees_with_networkx() -> None:
    for spec, expected in (("hgx-h100:1", 4 * 450 + 22), ("hgx-h100:2", 400), ("hgx-a100:4", 400)):
        cluster = load_cluster(spec)
        graph = cluster.graph.copy()
        nx.set_edge_attributes(graph, {(a, b): data["gbps"] for a, b, data in graph.edges(data=True)}, "capacity")
        half = cluster.num_ranks // 2
        for rank in cluster.ranks[:half]:
            graph.add_edge("first", rank.node, capacity=float("inf"))
        for rank in cluster.ranks[half:]:
            graph.add_edge(rank.node, "second", capacity=float("inf"))
        assert bisection_gbps(cluster) == pytest.approx(nx.maximum_flow_value(graph, "first", "second"), rel=1e-3)
        assert bisection_gbps(cluster) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hgx-h10", "nearest: hgx-h100"), ("hgx-h100:0", "from 1 to 4096, not '0'"), ("hgx-h100:x", "not 'x'"),
        ("", "unknown"),
        ("hgx-h100:5000", "limit of 4096"), ("none.yaml", "no such file"), ("dir/none", "no such file"),
        ("hgx-h100:", "not ''"),
        ("hgx-h100:\u0663", "from 1"), ("gb200-nvl72:300", "limit of 4096"), ("a" * 5000, "unknown cluster"),
        ("\0", "unknown"),
    ],
)  # fmt: skip
def test_unknown_names_and_counts_are_one_clear_line(spec: str, words: str) -> None:
    with pytest.raises(BadInput) as error:
        load_cluster(spec)
    assert words in str(error.value)


def test_radix_and_oversubscription_shape_the_fabric() -> None:
    cluster = load_cluster("hgx-h100:8", radix=8, oversubscription=2.0)
    leaves = [
        name for name, kind in zip(cluster.wiring.node_names, cluster.wiring.node_kinds, strict=True) if kind == "leaf"
    ]
    assert len(leaves) == 16  # 4 ports down: two leaves a rail
    assert {link.gbps for link in cluster.links if link.kind == "fabric"} == {4 * 50 / 2}
    with pytest.raises(BadInput, match="oversubscription"):
        load_cluster("hgx-h100:8", oversubscription=0.5)
    with pytest.raises(BadInput, match="radix"):
        load_cluster("hgx-h100:8", radix=1)
