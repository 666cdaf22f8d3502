"""Exported topologies: NCCL XML read back, costs against routes of single pairs."""

import json

import numpy as np
import pytest

from tests.topologies.samples import data_file
from topologies import BadInput, load_cluster, routes
from topologies.catalog import catalog_names, system_spec
from topologies.exporting import cost_matrix, cost_matrix_json
from topologies.exporting_nccl import nccl_xml
from topologies.nccl_xml import read_nccl_xml
from topologies.spec import Host, HostLink, HostNode

DUMPS = ["hgx_h200_8x_nccl_topo", "ndv4-topo", "ndv5-topo", "p4d-24xl-topo", "perlmutter_a100_4x_nccl_topo",
         "rccl_mi300_8p"]  # fmt: skip


@pytest.mark.parametrize("name", DUMPS)
def test_real_files_come_back_as_they_were(name):
    host = read_nccl_xml(data_file(f"nccl_xml/{name}.xml").read_bytes(), name).hosts[0]
    again = read_nccl_xml(nccl_xml(host, name).encode(), name)
    assert again.hosts[0] == host
    assert again.notes == ()


@pytest.mark.parametrize("name", catalog_names())
def test_catalog_hosts_keep_their_shape(name):
    """Speeds become NCCL's own constants; parts, links and their kinds stay."""
    host = next(iter(system_spec(name, 1).hosts.values()))
    again = read_nccl_xml(nccl_xml(host, name).encode(), name).hosts[0]

    def shape(h):
        return sorted((n.name, n.kind) for n in h.nodes), sorted((link.a, link.b, link.kind) for link in h.links)

    def lanes(h):
        return sorted((link.a, link.b, link.lanes) for link in h.links if link.kind in ("nvlink", "xgmi"))

    assert shape(again) == shape(host)
    assert lanes(again) == lanes(host)


@pytest.mark.parametrize(
    ("model", "kind", "gbps", "lanes"),
    [
        ("a100-80gb", "nvlink", 300.0, 15),  # 20 GB/s each
        ("h100-80gb", "nvlink", 206.0, 10),  # 20.6 GB/s each
        ("h100-80gb", "nvlink", 5.0, 1),
        ("h100-80gb", "nvlink", 450.0, 18),  # 21.8, more than a GPU has
        ("mi300x", "xgmi", 48.0, 1),
        (None, "nvlink", 60.0, 3),  # read as an A100
    ],
)
def test_links_whose_number_is_not_said_come_nearest_in_speed(model, kind, gbps, lanes):
    """gpu0 - gpu1 on a cpu, with a speed and no number of links, as in a cluster file written by hand."""
    nodes = [HostNode(name=f"gpu{i}", kind="gpu", model=model) for i in (0, 1)] + [HostNode(name="cpu0", kind="cpu")]
    links = [HostLink(a=f"gpu{i}", b="cpu0", kind="pcie", gbps=24.0) for i in (0, 1)]
    links.append(HostLink(a="gpu0", b="gpu1", kind=kind, gbps=gbps))
    again = read_nccl_xml(nccl_xml(Host(nodes=tuple(nodes), links=tuple(links)), "x").encode(), "x").hosts[0]
    assert [link.lanes for link in again.links if link.kind == kind] == [lanes]


def test_hosts_that_no_pci_tree_can_show():
    gpu, cpu = HostNode(name="gpu0", kind="gpu"), HostNode(name="cpu0", kind="cpu")
    with pytest.raises(BadInput, match="odd: gpu0 hangs below no CPU"):
        nccl_xml(Host(nodes=(gpu, cpu), links=()), "odd")
    with pytest.raises(BadInput, match="odd: the host has no CPU"):
        nccl_xml(Host(nodes=(gpu,), links=()), "odd")
    link = HostLink(a="gpu0", b="cpu0", kind="pcie", gbps=12.0)
    assert '<gpu dev="0"' in nccl_xml(Host(nodes=(gpu, cpu), links=(link,)), "fine")


def test_costs_are_those_of_the_slowest_link():
    """Two H100 hosts: NVLink 450 GB/s inside, a NIC of 50 GB/s between: 1000/450 and 20 us a megabyte."""
    cluster = load_cluster("hgx-h100:2")
    cost_RR = cost_matrix(cluster)
    same = cluster.host_of_rank[:, None] == cluster.host_of_rank[None]
    expected = np.where(same, 1000 / 450, 20.0) * (1 - np.eye(16))
    assert cost_RR == pytest.approx(expected)
    written = np.array(json.loads(cost_matrix_json(cluster)))
    assert written.shape == (16, 16)
    assert written == pytest.approx(expected, rel=1e-5)
    assert (np.diag(written) == 0).all()
    assert np.isfinite(written).all()


def test_costs_of_an_uneven_machine_by_loops():
    cluster = load_cluster("dgx-a100:2").subset([0, 3, 8, 15])
    route = routes(cluster).toarray()
    expected = (route * 1000 / cluster.link_gbps).max(axis=1).reshape(4, 4)
    assert cost_matrix(cluster) == pytest.approx(expected)
