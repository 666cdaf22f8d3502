"""Hostile and broken topology files: one clear line, never a traceback, a hang or a read of another file."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.topologies.samples import HIDDEN, MATRIX, cpu, gpu, nic, system, two_sockets
from topologies import BadInput, load_cluster
from topologies.build import build_cluster
from topologies.errors import unknown_name
from topologies.files import read_bytes, read_text, write_text
from topologies.importing import Knowledge, join_hosts, parse_topology
from topologies.lint import lint
from topologies.routes import routes

LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(12)
)
HOSTILE = {
    "entity expansion": (f"{LAUGHS}]><system>&m;</system>".encode(), "document type"),
    "external entity": (b'<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><system>&x;</system>', "document type"),
    "external dtd": (b'<!DOCTYPE system SYSTEM "http://localhost:1/x.dtd"><system/>', "document type"),
    "deep nesting": (b"<system>" + b"<pci>" * 100_000, "nest deeper than 64"),
    "deep bridges": (b'<system><cpu numaid="0">' + b'<pci busid="a">' * 80, "nest deeper than 64"),
    "very many": (b"<system>" + b"<cpu/>" * 60_000 + b"</system>", "more than 50000"),
    "wide element": (b"<system " + b" ".join(b'a%d=""' % i for i in range(100)) + b"/>", "attributes"),
    "wrong root": (b"<topology/>", "root element is <topology>"),
    "graph file": (b'<graphs version="1"/>', "NCCL_TOPO_DUMP_FILE"),
    "cut off": (two_sockets()[:500], "not well-formed"),
    "empty system": (b"<system/>", "no <cpu>"),
    "no gpu": (system(cpu(0, nic(0))), "no GPU"),
    "nothing": (b"", "neither NCCL topology XML"),
    "binary": (bytes(range(256)), "neither NCCL topology XML"),
    "xml-like binary": (b"<\xff\xfe\x00", "not well-formed"),
    "unknown encoding": (b'<?xml version="1.0" encoding="klingon"?><system/>', "not well-formed"),
    "busid twice": (system(cpu(0, gpu(0) + gpu(1, busid="0000:10:00.0"))), "'0000:10:00.0' is given twice"),
    "busid within itself": (b'<system><cpu><pci busid="A"><pci busid="a"/></pci></cpu></system>', "'a' is given twice"),
    "no busid": (b"<system><cpu><pci/></cpu></system>", "no busid"),
    "port twice": (system(cpu(0, gpu(0) + nic(0) + nic(0).replace("0000:20", "0000:30"))), "given twice"),
    "pcilink to itself": (
        system(cpu(0, gpu(0) + '<pci busid="a"><pcilink target="A"/><pci busid="b"/></pci>')), "leads to itself"),
    "count of links": (system(cpu(0, gpu(0, '<nvlink target="x" count="-3"/>'))), "count='-3'"),
    "target of links": (system(cpu(0, gpu(0, '<nvlink count="3"/>'))), "no target"),
    "speed": (system(cpu(0, gpu(0) + nic(0).replace("400000", "fast"))), "speed='fast'"),
    "huge speed": (system(cpu(0, gpu(0) + nic(0, 99_999_999_999))), "gbps"),
    "width": (system(cpu(0, nic(0, width=10**15))), "link_width"),
    "capability": (system(cpu(0, gpu(0, HIDDEN).replace('"90"', '"ninety"'))), "sm="),
    "control characters": (system(cpu(0, gpu(0) + nic(0).replace("mlx5_0_0", "a&#9;b"))), "printable"),
    "dense graph": (system(cpu(0, "".join(f'<pci busid="{i}" class="0x030200"/>' for i in range(2000)))), "1024"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_one_clear_line(name: str) -> None:
    content, words = HOSTILE[name]
    start = time.perf_counter()
    with pytest.raises(BadInput, match=words) as error:
        parse_topology(content, "host.xml", Knowledge())
    assert time.perf_counter() - start < 5
    assert "host.xml" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_gigabyte_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.xml"
    with path.open("wb") as stream:
        stream.write(b"<system>")
        stream.truncate(2**30)
    with pytest.raises(BadInput, match="over the limit"):
        load_cluster(str(path))


def test_cycles_of_bridges_are_fine() -> None:
    ring = "".join(
        f'<pci busid="s{i}" class="0x060400"><pcilink target="s{(i + 1) % 3}"/>{gpu(i)}</pci>' for i in range(3)
    )
    reading = parse_topology(system(cpu(0, ring)), "ring.xml", Knowledge())
    cluster = build_cluster(join_hosts([reading], Knowledge(), name="ring"))
    assert routes(cluster).shape[0] == 9


def _survives(content: bytes) -> None:
    said = ""
    try:
        reading = parse_topology(content, "fuzz", Knowledge())
        spec = join_hosts([reading], Knowledge(), name="fuzz")
        routes(build_cluster(spec, strict=False))
        lint(spec)
    except BadInput as error:
        said = str(error)
    assert "\n" not in said


_quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@_quick
@given(st.binary(max_size=300))
def test_any_bytes(content: bytes) -> None:
    for head in (b"", b"<system>", b"GPU0 "):
        _survives(head + content)


@_quick
@given(st.data())
def test_damaged_xml(data: st.DataObject) -> None:
    text = two_sockets(ports=2).decode()
    values = st.sampled_from(
        ["", "0", "-1", "1e9", "x", "0000:10:00.0", "0x030200", "0x060400", "fffffff:ff:ff.0", "99999"]
    )
    for _ in range(data.draw(st.integers(1, 4))):
        quotes = [i for i, sign in enumerate(text) if sign == '"']
        place = data.draw(st.integers(0, len(quotes) // 2 - 1)) * 2
        text = text[: quotes[place] + 1] + data.draw(values) + text[quotes[place + 1] :]
    _survives(text.encode())


@_quick
@given(st.data())
def test_damaged_matrix(data: st.DataObject) -> None:
    words = MATRIX.split("\t")
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(words) - 1))
        words[place] = data.draw(
            st.sampled_from(["SYS", "PIX", "PXB", "PHB", "NODE", "NV4", "NV18", "X", "", "N/A", "GPU0", "??"])
        )
    _survives("\t".join(words).encode())


@pytest.mark.parametrize(
    ("name", "says"), [("pipe", "is a pipe or a device"), ("loop", "is a link to nowhere"), ("none", "no such file")]
)
def test_what_is_no_file_is_named_for_what_it_is(tmp_path: Path, name: str, says: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(BadInput, match=says):
        read_bytes(tmp_path / name)


def test_a_link_in_a_circle_and_a_name_too_long_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("loop", "a" * 300):
        with pytest.raises(BadInput, match="cannot be written"):
            write_text(tmp_path / name, "text")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbf{}")
    assert read_text(tmp_path / "bom") == "{}"


def test_an_error_repeats_only_the_start_of_an_endless_name() -> None:
    assert len(str(unknown_name("cluster", "x" * 5000, ["hgx-h100"]))) < 200
