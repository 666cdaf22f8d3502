"""Clusters taken otherwise: hosts, NICs, scale-up links."""

from __future__ import annotations

import pytest

from topologies import BadInput, load_cluster
from topologies.build import build_cluster
from topologies.load import resolve
from topologies.spec import ClusterSpec
from topologies.vary import with_hosts, with_nic_gbps, with_scale_up


def _spec(name: str) -> ClusterSpec:
    return resolve(name).spec


def _speeds(spec: ClusterSpec) -> dict[str, set[float]]:
    cluster = build_cluster(spec)
    return {kind: {gbps for k, gbps in zip(cluster.link_kinds, cluster.link_gbps.tolist(), strict=True) if k == kind}
            for kind in set(cluster.link_kinds)}  # fmt: skip


@pytest.mark.parametrize("hosts", [1, 3, 8])
def test_more_and_fewer_hosts_are_the_catalogs_own(hosts):
    other, catalog = build_cluster(with_hosts(_spec("hgx-h100:4"), hosts)), load_cluster(f"hgx-h100:{hosts}")
    assert other.ranks == catalog.ranks
    assert other.link_kinds == catalog.link_kinds
    assert (other.link_gbps == catalog.link_gbps).all()


def test_the_same_number_of_hosts_is_the_same_cluster():
    assert with_hosts(_spec("hgx-h100:4"), 4) == _spec("hgx-h100:4")


def test_faster_nics_bring_the_pcie_that_feeds_them():
    speeds = _speeds(with_nic_gbps(_spec("hgx-h100:2"), 100.0))
    assert speeds["nic"] == {100.0}
    assert min(speeds["pcie"]) == 100.0  # was 63
    slower = _speeds(with_nic_gbps(_spec("hgx-h100:2"), 25.0))
    assert slower["nic"] == {25.0}
    assert slower["pcie"] == _speeds(_spec("hgx-h100:2"))["pcie"]


def test_scale_up_links_take_the_factor_and_others_do_not():
    before, after = _speeds(_spec("hgx-h100:2")), _speeds(with_scale_up(_spec("hgx-h100:2"), 2.0))
    assert after["nvlink"] == {2 * gbps for gbps in before["nvlink"]}
    assert {kind: gbps for kind, gbps in after.items() if kind != "nvlink"} == {
        kind: gbps for kind, gbps in before.items() if kind != "nvlink"
    }


def test_a_name_and_a_note_say_what_was_changed():
    spec = with_scale_up(with_nic_gbps(with_hosts(_spec("hgx-h100:4"), 2), 100.0), 0.5)
    assert spec.name == "hgx-h100:4, 2 hosts, NICs at 100 GB/s, scale-up x0.5"
    assert spec.provenance[-1] == "taken otherwise: scale-up x0.5"


@pytest.mark.parametrize("hosts", [0, -1, 5000])
def test_no_cluster_has_so_many_hosts(hosts):
    with pytest.raises(BadInput, match=f"{hosts} hosts; a cluster has 1 to 4096"):
        with_hosts(_spec("hgx-h100:2"), hosts)
