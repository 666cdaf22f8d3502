"""NCCL and RCCL topology XML: the parts, their links and speeds."""

from __future__ import annotations

import pytest

from tests.topologies.samples import HIDDEN, bridge, cpu, gpu, nic, system, two_sockets
from topologies import BadInput
from topologies.affinity import HostPaths
from topologies.build import build_cluster
from topologies.importing import Knowledge, join_hosts, parse_topology
from topologies.nccl_xml import read_nccl_xml
from topologies.spec import Host


def _host(content: bytes) -> Host:
    (host,) = read_nccl_xml(content, "sample.xml").hosts
    return host


def _links(host: Host, kind: str) -> dict[tuple[str, str], tuple[float, int | None]]:
    return {(link.a, link.b): (round(link.gbps, 3), link.lanes) for link in host.links if link.kind == kind}


def test_switches_become_one_crossbar_with_ncclspeeds() -> None:
    host = _host(two_sockets())
    assert _links(host, "nvlink") == {(f"gpu{i}", "nvswitch"): (370.8, 18) for i in range(4)}
    assert [host.nodes[i].lanes for i in host.of_kind("gpu")] == [18] * 4
    assert _links(host, "qpi") == {("cpu0", "cpu1"): (22.0, None)}
    assert _links(host, "pcie")["gpu0", "pci0"] == (48.0, 16)
    assert [host.nodes[i].gbps for i in host.of_kind("nic")] == [50.0] * 4
    assert HostPaths(host).affinity == [
        ["PIX", "PHB", "SYS", "SYS"], ["PHB", "PIX", "SYS", "SYS"],
        ["SYS", "SYS", "PIX", "PHB"], ["SYS", "SYS", "PHB", "PIX"],
    ]  # fmt: skip


def test_hidden_switch() -> None:
    assert len(_links(_host(two_sockets(HIDDEN)), "nvlink")) == 4


def test_several_ports_share_a_card() -> None:
    host = _host(two_sockets(ports=2, mbps=200_000))
    assert [host.nodes[i].gbps for i in host.of_kind("nic")] == [25.0] * 8
    assert len(host.of_kind("card")) == 4
    paths = HostPaths(host)
    assert [rail.nics for rail in paths.rails] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert paths.affinity[0][:3] == ["PIX", "PIX", "PHB"]


def test_direct_links_count_as_far_as_both_ends_list_them() -> None:
    def to(*others: int, count: int = 4) -> str:
        return "".join(f'<nvlink target="0000:1{i}:00.0" count="{count}" tclass="0x030200"/>' for i in others)

    host = _host(system(cpu(0, gpu(0, to(1, 2)) + gpu(1, to(0, 2)) + gpu(2, to(0)))))
    assert _links(host, "nvlink") == {("gpu0", "gpu1"): (82.4, 4), ("gpu0", "gpu2"): (82.4, 4)}
    assert [host.nodes[i].lanes for i in host.of_kind("gpu")] == [8, 8, 4]


def test_links_to_itself_and_to_nowhere_join_nothing_and_are_said() -> None:
    links = "".join(f'<nvlink target="0000:{i}:00.0" count="12" tclass="0x030200"/>' for i in (10, 99))
    reading = read_nccl_xml(system(cpu(0, gpu(0, links) + gpu(1))), "sample.xml")
    assert _links(reading.hosts[0], "nvlink") == {}
    assert any("targets that GPU itself" in note for note in reading.notes)
    assert any("0000:99:00.0" in note for note in reading.notes)


def test_c2c_and_fused_hosts() -> None:
    def tray(host: str) -> tuple[str, str]:
        c2c = HIDDEN + '<c2c bw="44712" count="5"/>'
        return (
            cpu(0, gpu(0, c2c, device="0x31c2") + gpu(1, c2c, device="0x31c2") + nic(0, 800_000), host=host),
            cpu(1, gpu(2, c2c, device="0x31c2") + nic(1, 800_000), host=host),
        )

    reading = read_nccl_xml(system(*tray("0xa"), *tray("0xb")), "mnnvl.xml")
    assert reading.joined
    assert len(reading.hosts) == 2
    assert _links(reading.hosts[0], "c2c")["gpu0", "cpu0"] == (223.56, 5)
    assert ("gpu0", "cpu0") not in _links(reading.hosts[0], "pcie")
    assert HostPaths(reading.hosts[0]).affinity[0] == ["P2C", "SYS"]
    cluster = build_cluster(join_hosts([reading], Knowledge(), name="trays"))
    assert (cluster.num_domains, cluster.num_hosts, cluster.num_ranks) == (1, 2, 6)
    assert {gpu.name for gpu in cluster.gpus} == {"GB300 288 GB"}
    assert list(cluster.spec.hosts) == ["trays"]  # equal hosts are described once


@pytest.mark.parametrize(("gcn", "gbps"), [("gfx90a", 72.0), ("910", 72.0), ("gfx942", 96.0), ("gfx906", 48.0)])
def test_rccl_dialect(gcn: str, gbps: float) -> None:
    def xgmi(*others: int) -> str:
        return "".join(f'<xgmi target="0000:1{i}:00.0" count="2" tclass="0x038000"/>' for i in others)

    def die(i: int, other: int) -> str:
        inner = gpu(i, xgmi(other), device="0x7408").replace('vendor="0x10de"', 'vendor="0x1002"')
        return inner.replace('sm="90"', f'sm="910" gcn="{gcn}"').replace("0x030200", "0x038000")

    host = _host(system(cpu(0, die(0, 1) + die(1, 0))))
    assert _links(host, "xgmi") == {("gpu0", "gpu1"): (gbps, 2)}
    assert {host.nodes[i].model for i in host.of_kind("gpu")} == {"mi250x-gcd"}


STATIC = system(
    *(
        cpu(side, "".join(
            f'<pci busid="ffff:ff:0{i}.0" class="0x060400" link_speed="16 GT/s" link_width="16">'
            f'<pci busid="000{9 - i}:00:00.0" class="0x030200" link_speed="16 GT/s" link_width="16"/>'
            f'<pci busid="010{i}:00:00.0" class="0x020700" link_speed="16 GT/s" link_width="16"/></pci>'
            for i in (2 * side, 2 * side + 1)
        ))
        for side in range(2)
    )
)  # fmt: skip


def test_static_files_know_gpus_and_nics_by_class_and_need_the_rest_named() -> None:
    reading = parse_topology(STATIC, "cloud.xml", Knowledge())
    host = reading.hosts[0]
    assert len(host.of_kind("gpu")) == len(host.of_kind("nic")) == 4
    busids = [host.nodes[i].busid for i in host.of_kind("gpu")]
    assert busids == sorted(filter(None, busids))
    assert any("--system" in note for note in reading.notes)
    with pytest.raises(BadInput, match="--system"):
        build_cluster(join_hosts([reading], Knowledge(), name="cloud"))
    knowledge = Knowledge("hgx-a100")
    reading = parse_topology(STATIC, "cloud.xml", knowledge)
    assert any("nvlink taken from the catalog's hgx-a100" in note for note in reading.notes)
    with pytest.raises(BadInput, match="--nic-gbps"):
        build_cluster(join_hosts([reading], knowledge, name="cloud", hosts=2))
    knowledge = Knowledge("hgx-a100", 25.0)
    cluster = build_cluster(join_hosts([parse_topology(STATIC, "c", knowledge)], knowledge, name="cloud", hosts=2))
    assert cluster.num_ranks == 8
    assert {link.gbps for link in cluster.links if link.kind == "nvlink"} == {300.0}


def test_management_port_below_both_cpus_is_one_port() -> None:
    port = '<nic><net name="eth0" dev="0" speed="10000" port="0" guid="0x0"/></nic>'
    host = _host(system(cpu(0, gpu(0) + port), cpu(1, gpu(1) + port)))
    assert len(host.of_kind("nic")) == 1
    assert HostPaths(host).affinity == [["PHB"], ["PHB"]]


def test_unknown_attributes_elements_and_missing_speeds_are_tolerated() -> None:
    extra = (
        gpu(0)
        .replace("<gpu ", '<gpu mlopart="0" future="yes" ')
        .replace('link_speed="32.0 GT/s PCIe"', 'link_speed=""')
    )
    net = nic(0).replace("<net ", '<gin name="x"/><net plane="3" ').replace('speed="400000"', "")
    host = _host(system(cpu(0, bridge(0, extra + net) + "<novelty><pci/></novelty>")))
    assert host.nodes[host.of_kind("nic")[0]].gbps == 1.25  # NCCL's default of 10 Gb/s
    assert _links(host, "pcie")["gpu0", "pci0"] == (12.0, None)  # its default of generation 3


def test_hosts_repeat_or_differ() -> None:
    knowledge = Knowledge()
    four, one = (
        parse_topology(content, "x", knowledge) for content in (two_sockets(), system(cpu(0, gpu(0) + nic(0))))
    )
    spec = join_hosts([four, one], knowledge, name="mixed")
    assert [group.count for group in spec.layout] == [1, 1]
    cluster = build_cluster(spec)
    assert [rank.rail for rank in cluster.ranks] == [0, 1, 2, 3, 0]
    assert cluster.num_hosts == 2
    for readings, hosts in (([four, one], 3), ([four, one], 4)):
        with pytest.raises(BadInput, match="--hosts"):
            join_hosts(readings, knowledge, name="mixed", hosts=hosts)


@pytest.mark.parametrize(
    ("changes", "gbps"),
    [
        ({}, 22.0), ({"143": "207"}, 40.0), ({"143": "85"}, 10.0), ({"143": "-1"}, 6.0), ({"143": "79"}, 6.0),
        ({"GenuineIntel": "AuthenticAMD"}, 16.0), ({"x86_64": "arm64"}, 6.0), ({"x86_64": "ppc64"}, 32.0),
    ],
)  # fmt: skip
def test_links_between_cpus(changes: dict[str, str], gbps: float) -> None:
    text = two_sockets().decode()
    for old, new in changes.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    assert _links(_host(text.encode()), "qpi") == {("cpu0", "cpu1"): (gbps, None)}
