"""Pictures: well-formed, complete, and safe against names with markup in them."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from tests.topologies.samples import MATRIX, two_sockets
from topologies import load_cluster
from topologies.build import build_cluster
from topologies.draw import draw
from topologies.importing import Knowledge, join_hosts, parse_topology
from topologies.svg import colour

SVG = "{http://www.w3.org/2000/svg}"


def _words(picture: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(picture).iter(f"{SVG}text")]


def test_one_host_shows_every_part() -> None:
    words = _words(draw(load_cluster("hgx-h100:1")))
    parts = [f"{kind}{i}" for kind in ("gpu", "nic", "pci") for i in range(8)] + ["cpu0", "cpu1", "NVSwitch"]
    assert set(parts) <= set(words)
    assert "450  NVLink" in words


def test_eight_hosts_show_leaves_spine_and_every_nic_cable() -> None:
    picture = draw(load_cluster("hgx-h100:8"))
    words = _words(picture)
    assert [f"host {i}" in words for i in range(8)] == [True] * 8
    assert {*(f"leaf{i}" for i in range(8)), "spine"} <= set(words)
    titles = [element.text or "" for element in ET.fromstring(picture).iter(f"{SVG}title")]
    assert sum("rail" in title for title in titles) == 64


@pytest.mark.parametrize("spec", ["mi300x:1", "mi300x:5", "gb200-nvl72:2", "hgx-b300:40", "dgx-a100:2"])
def test_any_cluster_fits_its_frame(spec: str) -> None:
    root = ET.fromstring(draw(load_cluster(spec)))
    width, height = (float(root.attrib[side]) for side in ("width", "height"))
    for shape in root.iter(f"{SVG}rect"):
        if "x" in shape.attrib:
            assert 0 <= float(shape.attrib["x"]) <= float(shape.attrib["x"]) + float(shape.attrib["width"]) <= width
            assert 0 <= float(shape.attrib["y"]) <= float(shape.attrib["y"]) + float(shape.attrib["height"]) <= height


def test_imported_hosts_and_hostile_names() -> None:
    for content in (MATRIX.encode(), two_sockets(ports=2)):
        reading = parse_topology(content, "x", Knowledge("hgx-h100", 50.0))
        for hosts in (1, 2, 6):
            spec = join_hosts([reading], Knowledge(), name="<script>&\"'", hosts=hosts)
            assert "<script>&\"'" in _words(draw(build_cluster(spec)))


def test_colours_grow_with_speed() -> None:
    assert len({colour(gbps) for gbps in (10, 25, 50, 200, 450, 900)}) == 6
