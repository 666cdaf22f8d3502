"""The shared dumps of real machines: what a person reads off each file."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.topologies.samples import data_file
from topologies.affinity import HostPaths
from topologies.build import build_cluster
from topologies.cluster_file import dump_spec, parse_spec
from topologies.importing import Knowledge, join_hosts, parse_topology
from topologies.lint import lint
from topologies.load import resolve
from topologies.routes import routes
from topologies.spec import SCALE_UP

FAR8 = ["SYS"] * 8


@dataclass(frozen=True)
class Expected:
    """What a file says: GPUs, NICs, links on each GPU, scale-up GB/s of each, CPUs, and the NICs near each GPU."""

    gpus: int
    nics: int
    lanes: int | None
    scale_up: float
    cpus: int
    kind: str
    near: list[list[int]]
    rails: list[int]


def _diagonal(count: int) -> list[list[int]]:
    return [[i] for i in range(count)]


def _pairs(count: int) -> list[list[int]]:
    return [[i - i % 2, i - i % 2 + 1] for i in range(count)]


EXPECTED = {
    # 4 NVSwitches with 5, 5, 4 and 4 links; one eth0 below both CPUs
    "nccl_xml/hgx_h200_8x_nccl_topo.xml": Expected(8, 1, 18, 18 * 20.6, 2, "PHB", [[0]] * 8, [0] * 8),
    # links that name their own GPU join nothing; eth0 on CPU 0
    "nccl_xml/ncv4-topo.xml": Expected(4, 1, 12, 0, 4, "PHB", [[0], [], [], []], [0] * 4),
    "nccl_xml/ndv4-topo.xml": Expected(8, 8, None, 0, 4, "PIX", _pairs(8), list(range(8))),
    "nccl_xml/ndv5-topo.xml": Expected(8, 8, None, 0, 2, "PIX", _diagonal(8), list(range(8))),
    "nccl_xml/p4d-24xl-topo.xml": Expected(
        8, 4, None, 0, 2, "PIX", [[i // 2] for i in range(8)], [0, 0, 1, 1, 2, 2, 3, 3]
    ),
    # four links to each of three peers; GPU 0 beside cxi3, GPU 3 beside cxi0
    "nccl_xml/perlmutter_a100_4x_nccl_topo.xml": Expected(
        4, 4, 12, 12 * 20, 4, "PHB", [[3], [2], [1], [0]], [3, 2, 1, 0]
    ),
    "nccl_xml/rccl_mi300_8p.xml": Expected(8, 8, 7, 7 * 48, 2, "PXB", _diagonal(8), list(range(8))),
    "nvidia_smi/dgx_a100_8x_12nic.txt": Expected(
        8, 12, 12, 12 * 20, 6, "PXB", [[0, 1], [0, 1], [2, 3], [2, 3], [6, 7], [6, 7], [8, 9], [8, 9]], list(range(8))
    ),
    "nvidia_smi/h20_8x_8nic_pix_rail_aligned.txt": Expected(
        8, 8, 18, 18 * 20.6, 2, "PIX", _diagonal(8), list(range(8))
    ),
    "nvidia_smi/a100_8x_4nic_asymmetric.txt": Expected(
        8, 4, 12, 12 * 20, 3, "PXB", [[0, 1], [0, 1], [2, 3], [2, 3], [], [], [], []], [0, 1, 2, 3, 0, 1, 2, 3]
    ),
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_reads_as_a_person_reads_it(name: str) -> None:
    expected = EXPECTED[name]
    (host,) = resolve(str(data_file(name))).spec.hosts.values()
    paths = HostPaths(host)
    assert (len(paths.gpus), len(paths.nics), len(host.of_kind("cpu"))) == (expected.gpus, expected.nics, expected.cpus)
    assert [host.nodes[i].lanes for i in paths.gpus] == [expected.lanes] * expected.gpus
    for i in paths.gpus:
        links = [link.gbps for link in host.links if link.kind in SCALE_UP and host.nodes[i].name in (link.a, link.b)]
        assert sum(links) == pytest.approx(expected.scale_up)
    near = [[nic for nic, kind in enumerate(row) if kind == expected.kind] for row in paths.affinity]
    if name != "nccl_xml/rccl_mi300_8p.xml":
        assert near == expected.near
    assert [paths.nearest(gpu)[1] for gpu, nics in enumerate(expected.near) if nics] == [n for n in expected.near if n]
    assert list(paths.rail_of_gpu) == expected.rails


def test_the_whole_matrix_of_the_h20_host() -> None:
    (host,) = resolve(str(data_file("nvidia_smi/h20_8x_8nic_pix_rail_aligned.txt"))).spec.hosts.values()
    for gpu, row in enumerate(HostPaths(host).affinity):
        expected = ["SYS"] * 8
        expected[4 * (gpu // 4) : 4 * (gpu // 4) + 4] = ["NODE"] * 4
        expected[gpu] = "PIX"
        assert row == expected


def test_models_and_nic_speeds() -> None:
    def models_and_speeds(name: str) -> tuple[set[str | None], set[float | None]]:
        (host,) = resolve(str(data_file(f"nccl_xml/{name}"))).spec.hosts.values()
        paths = HostPaths(host)
        return {host.nodes[i].model for i in paths.gpus}, {host.nodes[i].gbps for i in paths.nics}

    assert models_and_speeds("hgx_h200_8x_nccl_topo.xml") == ({"h200-141gb"}, {1.25})
    assert models_and_speeds("ncv4-topo.xml") == ({"a100-pcie-80gb"}, {12.5})
    assert models_and_speeds("ndv5-topo.xml") == ({None}, {None})
    assert models_and_speeds("p4d-24xl-topo.xml") == ({"a100-40gb"}, {None})
    assert models_and_speeds("perlmutter_a100_4x_nccl_topo.xml") == ({"a100-40gb"}, {25.0})
    assert models_and_speeds("rccl_mi300_8p.xml") == ({"mi300x"}, {50.0})


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_yaml_round_trip_and_routes(name: str) -> None:
    for knowledge in (Knowledge(), Knowledge("hgx-a100", 25.0)):
        spec = resolve(str(data_file(name)), knowledge).spec
        again = parse_spec(dump_spec(spec), "again")
        assert again == spec
        assert dump_spec(again) == dump_spec(spec)
        one, two = build_cluster(spec, strict=False), build_cluster(again, strict=False)
        assert one == two
        assert one.links == two.links
        assert one.graph.number_of_edges() == one.num_links  # no two links between the same parts
        assert (routes(one) != routes(two)).nnz == 0


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_lint_finds_the_far_gpus_and_is_silent_on_clean_dumps(name: str) -> None:
    findings = lint(resolve(str(data_file(name))).spec)
    if "asymmetric" not in name:
        assert findings == []
        return
    (finding,) = findings
    assert finding.check == "gpu-without-near-nic"
    assert finding.parts == ("gpu4", "gpu5", "gpu6", "gpu7")
    assert finding.cost_gbps == pytest.approx(
        11.25
    )  # half of the NICs: 15 peers / (8 / 25 GB/s ...) doubles when repaired
    assert finding.now_gbps == pytest.approx(11.25)


def test_lint_finds_a_deleted_nvlink_in_the_h200_dump() -> None:
    text = data_file("nccl_xml/hgx_h200_8x_nccl_topo.xml").read_text()
    line = '          <nvlink target="0000:c5:00.0" count="5" tclass="0x068000"/>\n'
    assert line in text
    reading = parse_topology(text.replace(line, "", 1).encode(), "h200", Knowledge())
    (finding,) = lint(join_hosts([reading], Knowledge(), name="h200"))
    assert (finding.check, finding.parts) == ("uneven-nvlink", ("gpu0",))
    assert "gpu0 has 13; siblings have 18" in finding.message
    assert finding.cost_gbps == pytest.approx(5 * 20.6)
