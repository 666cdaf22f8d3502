"""The matrix of `nvidia-smi topo -m`, in the shapes in which people paste it."""

from __future__ import annotations

import re

import pytest

from tests.topologies.samples import MATRIX
from topologies import BadInput
from topologies.affinity import HostPaths
from topologies.importing import Knowledge, parse_topology
from topologies.nvidia_smi import read_nvidia_smi

CELLS = [
    ["PIX", "NODE", "SYS"],
    ["NODE", "PXB", "SYS"],
    ["SYS", "SYS", "PHB"],
    ["SYS", "SYS", "NODE"],
]


def _paths(text: str) -> HostPaths:
    return HostPaths(read_nvidia_smi(text.encode(), "topo.txt").hosts[0])


def test_every_cell_comes_back_as_the_path_that_it_names() -> None:
    paths = _paths(MATRIX)
    # PXB between two devices alone is a switch above two; the file has one GPU and one NIC there
    assert paths.affinity == CELLS
    assert [paths.host.nodes[i].lanes for i in paths.gpus] == [18] * 4
    assert [paths.host.nodes[i].model for i in paths.nics] == ["mlx5_0", "mlx5_1", "mlx5_bond_0"]
    assert len(paths.host.of_kind("cpu")) == 2
    assert {link.kind for link in paths.host.links if "nvswitch" in (link.a, link.b)} == {"nvlink"}


def test_four_links_a_pair_are_a_board_without_switch() -> None:
    paths = _paths(MATRIX.replace("NV18", "NV4"))
    assert not paths.host.of_kind("nvswitch")
    assert sum(link.kind == "nvlink" for link in paths.host.links) == 6
    assert [paths.host.nodes[i].lanes for i in paths.gpus] == [12] * 4


def test_three_gpus_seen_of_a_switched_host_share_its_switch() -> None:
    """A container with three of eight A800: 8 links each, to the switch. Side by side they would need 16."""
    lines = ["\tGPU0\tGPU1\tGPU2"]
    lines += [f"GPU{i}\t" + "\t".join("X" if i == j else "NV8" for j in range(3)) for i in range(3)]
    paths = _paths("\n".join(lines))
    assert len(paths.host.of_kind("nvswitch")) == 1
    assert [paths.host.nodes[i].lanes for i in paths.gpus] == [8] * 3
    assert [link.gbps for link in paths.host.links if link.kind == "nvlink"] == [160.0] * 3  # 20 GB/s a link of an A100


@pytest.mark.parametrize(
    "change",
    [
        lambda text: re.sub(r"\x1b\[[0-9]*m", "", text),
        lambda text: text.replace("\t", "   "),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "$ nvidia-smi topo -m\n\n" + text,
        lambda text: text.split("Legend")[0],
        lambda text: re.sub(r"\t[0-9-]+\t[01]\t\tN/A", "", text).replace(
            "\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID", ""
        ),
        lambda text: "\n".join(line for line in text.split("\n") if not line.startswith("NIC2\t")),
        lambda text: text.replace("NIC0\tPIX\tNODE\tSYS\tSYS\t X \tNODE\tSYS", "NIC0\tPIX\tNODE"),
        lambda text: text.replace("NV18\tNV18\t X \tNV18\tSYS\tSYS\tPHB\t32-63\t1\t\tN/A", "NV18\tNV1"),
        lambda text: text.replace("GPU1\tNV18\t X \tNV18\tNV18\tNODE", "GPU1\tNV18\t X \tNV18NV18\tNODE"),
        lambda text: text.replace("0-31\t0", "\t0").replace("32-63\t1", "\t1"),
        lambda text: (
            text.replace("\t0\t\tN/A", "").replace("\t1\t\tN/A", "").replace("\tNUMA Affinity\tGPU NUMA ID", "")
        ),
        lambda text: text.replace("\tNIC1\tNIC2\tCPU", "\tNIC1\nCPU").replace("GPU NUMA ID", ""),
    ],
    ids=[
        "plain",
        "spaces",
        "crlf",
        "prompt",
        "no legend",
        "no affinity",
        "lost row",
        "cut row",
        "cut cell",
        "run together",
        "no CPUs",
        "no NUMA",
        "cut header",
    ],
)
def test_pasted_shapes(change: object) -> None:
    assert callable(change)
    paths = _paths(change(MATRIX))
    assert paths.affinity[:3] == CELLS[:3]
    assert [paths.host.nodes[i].lanes for i in paths.gpus] == [18] * 4


def test_gpus_on_c2c_take_the_nics_of_their_cpu() -> None:
    tray = MATRIX.replace("PIX", "SYS").replace("PXB", "SYS").replace("PHB", "SYS").replace("NODE", "SYS")
    reading = parse_topology(tray.encode(), "tray", Knowledge("gb200-nvl72"))
    paths = HostPaths(reading.hosts[0])
    assert [kind for kind, _ in map(paths.nearest, range(4))] == ["P2C"] * 4
    assert {link.gbps for link in paths.host.links if link.kind == "c2c"} == {223.6}
    assert [paths.nearest(0)[0] for paths in [_paths(tray)]] == ["SYS"]  # without the system, as printed


def test_disagreeing_rows_take_the_worse_and_say_so() -> None:
    text = MATRIX.replace("NIC0\tPIX", "NIC0\tSYS")
    reading = read_nvidia_smi(text.encode(), "topo.txt")
    assert HostPaths(reading.hosts[0]).affinity[0][0] in ("SYS", "NODE")
    assert any("GPU0" in note and "worse" in note for note in reading.notes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("GPU0 GPU1\nGPU0 X\n", "GPU0 - GPU1 is missing"),
        ("GPU0 GPU1\nGPU0 X QQ\nGPU1 NV4 X\n", "row GPU0, column GPU1: 'QQ'"),
        ("GPU0 GPU1\nGPU0 NV4 X\nGPU1 NV4 X\n", "shifted"),
        ("hello GPU0\n", "no line of column names"),
        ("GPU0 GPU0\nGPU0 X NV4\n", "twice"),
        ("\n" * 6000 + "GPU0", "limit"),
        ("GPU0 " + " ".join(f"NIC{i}" for i in range(400)) + "\nGPU0 X\n", "limit"),
    ],
)
def test_broken_text_is_one_clear_line(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words) as error:
        read_nvidia_smi(text.encode(), "topo.txt")
    assert str(error.value).startswith("topo.txt: ")
    assert "\n" not in str(error.value)


def test_two_islands_of_nvlink() -> None:
    def row(gpu: int) -> str:
        cells = ["X" if i == gpu else "NV18" if i // 4 == gpu // 4 else "SYS" for i in range(8)]
        return "\t".join([f"GPU{gpu}", *cells, "0-23" if gpu < 4 else "24-47", str(gpu // 4)])

    header = "\t" + "\t".join(f"GPU{i}" for i in range(8)) + "\tCPU Affinity\tNUMA Affinity"
    paths = _paths("\n".join([header, *map(row, range(8))]))
    assert len(paths.host.of_kind("nvswitch")) == len(paths.host.of_kind("cpu")) == 2
    assert paths.scale_up_path(0, 3) is not None
    assert paths.scale_up_path(0, 4) is None


def test_a_host_with_six_nics_near_four_of_its_gpus() -> None:
    """As a Dell H100 host prints it: two NICs at GPU0 and GPU4, one at GPU3 and GPU6, none near the others."""
    near = {0: (0, 1), 3: (2,), 4: (3, 4), 6: (5,)}
    names = [f"GPU{i}" for i in range(8)] + [f"NIC{i}" for i in range(6)]
    lines = ["\t".join(["", *names, "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"])]
    for gpu in range(8):
        cells = [" X " if i == gpu else "NV18" for i in range(8)]
        cells += ["PIX" if nic in near.get(gpu, ()) else "NODE" for nic in range(6)]
        lines.append("\t".join([f"GPU{gpu}", *cells, "", "0" if gpu < 4 else "1", "", "N/A"]))
    for nic in range(6):
        pairs = [["PIX" if nic in near.get(gpu, ()) else "NODE" for gpu in range(8)]]
        pairs.append([" X " if i == nic else "PIX" if {i, nic} in ({0, 1}, {3, 4}) else "NODE" for i in range(6)])
        lines.append("\t".join([f"NIC{nic}", *pairs[0], *pairs[1], "", "", "", ""]))
    paths = _paths("\n".join(lines))
    assert [(rail.nics, rail.owners) for rail in paths.rails] == [
        ((0, 1), (0,)),
        ((2,), (3,)),
        ((3, 4), (4,)),
        ((5,), (6,)),
    ]
    assert paths.rail_of_gpu == (0, 0, 2, 1, 2, 0, 3, 2)
    assert [kind for kind, _ in map(paths.nearest, range(8))] == [
        "PIX",
        "NODE",
        "NODE",
        "PIX",
        "PIX",
        "NODE",
        "PIX",
        "NODE",
    ]
