"""Lint: every check on a host with that one defect, its cost by arithmetic, and silence on the host without it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.topologies.samples import SWITCHES, bridge, cpu, gpu, nic, system, two_sockets
from topologies.catalog import load_system
from topologies.importing import Knowledge, join_hosts, parse_topology
from topologies.lint import Finding, lint
from topologies.load import resolve, with_fabric
from topologies.spec import ClusterSpec

LINE = SWITCHES.split("/>")[0] + "/>"


def _spec(content: bytes, *, hosts: int = 1) -> ClusterSpec:
    return join_hosts([parse_topology(content, "sample", Knowledge())], Knowledge(), name="sample", hosts=hosts)


def _change(old: str, new: str, count: int = 1) -> bytes:
    text = two_sockets().decode()
    assert old in text
    return text.replace(old, new, count).encode()


def _one(content: bytes) -> Finding:
    (finding,) = lint(_spec(content))
    return finding


def test_clean_hosts_are_silent() -> None:
    assert lint(_spec(two_sockets())) == []
    assert lint(_spec(two_sockets(ports=2, mbps=200_000), hosts=3)) == []


def test_a_link_less() -> None:
    finding = _one(_change(LINE, ""))
    assert (finding.check, finding.parts) == ("uneven-nvlink", ("gpu0",))
    assert finding.now_gbps == pytest.approx(9 * 20.6)
    assert finding.cost_gbps == pytest.approx(9 * 20.6)


def test_no_link_at_all() -> None:
    finding = _one(_change(SWITCHES, ""))
    assert (finding.check, finding.parts) == ("gpu-without-nvlink", ("gpu0",))
    assert finding.now_gbps is not None
    assert finding.now_gbps < 48
    assert finding.cost_gbps == pytest.approx(18 * 20.6 - finding.now_gbps)


def test_a_missing_edge_of_a_mesh() -> None:
    spec = resolve("mi300x:1").spec
    (host,) = spec.hosts.values()
    links = tuple(link for link in host.links if (link.a, link.b) != ("gpu2", "gpu5"))
    nodes = tuple(
        node.model_copy(update={"lanes": 6}) if node.name in ("gpu2", "gpu5") else node for node in host.nodes
    )
    broken = spec.model_copy(update={"hosts": {"mi300x": host.model_copy(update={"nodes": nodes, "links": links})}})
    (finding,) = lint(broken)
    assert (finding.check, finding.parts) == ("uneven-nvlink", ("gpu2", "gpu5"))
    assert finding.cost_gbps == pytest.approx(448 / 2)  # the pair's bytes double the load of the links they detour over


def test_a_slow_nic_halves_everything() -> None:
    finding = _one(_change('speed="400000"', 'speed="200000"'))
    assert (finding.check, finding.parts) == ("slow-nic", ("nic0",))
    assert "25 GB/s, below 50" in finding.message
    assert finding.now_gbps == pytest.approx(7 / 4 * 25)  # four rows of seven leave by each NIC
    assert finding.cost_gbps == pytest.approx(7 / 4 * 48 - 7 / 4 * 25)  # PCIe 5 x16 counts as 48


def test_a_pcie_link_that_trained_down() -> None:
    finding = _one(_change('link_width="16"><nic>', 'link_width="4"><nic>'))
    assert (finding.check, finding.parts) == ("slow-pcie", ("nic0", "pci0"))
    assert "12 GB/s, x4" in finding.message
    assert finding.cost_gbps == pytest.approx(7 / 4 * (48 - 12))


def test_gpus_that_lack_or_share_a_nic() -> None:
    lacking = system(cpu(0, bridge(0, gpu(0, SWITCHES) + nic(0)) + bridge(1, gpu(1, SWITCHES))))
    finding = _one(lacking)
    assert (finding.check, finding.parts) == ("gpu-without-near-nic", ("gpu1",))
    assert "PHB" in finding.message
    shared = system(
        cpu(0, bridge(0, gpu(0, SWITCHES) + gpu(1, SWITCHES) + nic(0)) + bridge(1, gpu(2, SWITCHES) + nic(1)))
    )
    finding = _one(shared)
    assert (finding.check, finding.parts) == ("shared-nic", ("gpu0", "gpu1"))
    assert finding.cost_gbps is not None
    assert finding.cost_gbps > 0
    even = system(cpu(0, bridge(0, gpu(0, SWITCHES) + gpu(1, SWITCHES) + nic(0))))
    assert lint(_spec(even)) == []  # a design, not a defect


def test_nics_on_the_wrong_side() -> None:
    crowded = system(cpu(0, gpu(0, SWITCHES) + nic(0) + nic(1)), cpu(1, gpu(1, SWITCHES)))
    finding = _one(crowded)
    assert (finding.check, finding.parts) == ("nic-wrong-numa", ("gpu1", "nic0", "nic1"))
    assert finding.cost_gbps is not None
    assert finding.cost_gbps > 0
    fair = system(cpu(0, gpu(0, SWITCHES) + nic(0)), cpu(1, gpu(1, SWITCHES) + nic(1)))
    assert lint(_spec(fair)) == []


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda text: text.replace(LINE, ""), "nvlink-below-class"),
        (lambda text: text.replace('speed="400000"', 'speed="200000"'), "slow-nic"),
        (lambda text: text.replace(nic(1), "").replace(nic(3), "").replace(bridge(1, ""), ""), "gpu-without-near-nic"),
    ],
)
def test_the_class_that_the_user_names(change: Callable[[str], str], check: str) -> None:
    found = lint(_spec(change(two_sockets().decode()).encode()), load_system("hgx-h100"))
    assert check in {finding.check for finding in found}
    assert lint(_spec(two_sockets()), load_system("hgx-h100")) == []


def test_oversubscription_costs_what_crosses_the_spine() -> None:
    spec = resolve("hgx-h100:16").spec
    (finding,) = lint(with_fabric(spec, oversubscription=4.0, radix=8))
    assert finding.check == "oversubscribed"
    # a leaf serves 4 of 16 hosts: of a NIC's 8 * 15 rows to other hosts 8 * 12 pass the spine at a quarter of 50 GB/s
    assert finding.now_gbps == pytest.approx(127 / (8 * 12 / 12.5))
    assert finding.cost_gbps == pytest.approx(127 / (8 * 15 / 50) - 127 / (8 * 12 / 12.5))
    (finding,) = lint(with_fabric(spec, oversubscription=4.0))
    assert finding.cost_gbps == 0  # one leaf a rail: PXN keeps off the spine


def test_hosts_that_are_cut_off() -> None:
    alone = system(cpu(0, gpu(0, SWITCHES) + gpu(1, SWITCHES)))
    (finding,) = lint(_spec(alone, hosts=2))
    assert finding.check == "no-path"
    assert finding.cost_gbps is None
    assert "no path from rank 0" in finding.message


def test_narrow_links_that_all_siblings_have_are_a_design() -> None:
    """As on MI250 boards: every GPU behind a x8 bridge under a x16 switch."""

    def pair(i: int, width: int) -> str:
        narrow = bridge(4 + i, gpu(i, SWITCHES)).replace('link_width="16"', f'link_width="{width}"', 1)
        return bridge(i, narrow + nic(i))

    assert lint(_spec(system(cpu(0, pair(0, 8) + pair(1, 8)), cpu(1, pair(2, 8) + pair(3, 8))))) == []
    (finding,) = lint(_spec(system(cpu(0, pair(0, 8) + pair(1, 4)), cpu(1, pair(2, 8) + pair(3, 8)))))
    assert finding.check == "slow-pcie"
    assert "x4" in finding.message
