"""Cluster files: out and in without loss, and errors that name the field."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.topologies.samples import two_sockets
from topologies import BadInput, load_cluster
from topologies.cluster_file import dump_spec, load_spec, parse_spec, save_spec
from topologies.importing import Knowledge, join_hosts, parse_topology
from topologies.spec import ClusterSpec, Fabric

GOOD = dump_spec(load_cluster("mi300x:2").spec)


def test_file_round_trip(tmp_path: Path) -> None:
    reading = parse_topology(two_sockets(ports=2), "sample", Knowledge())
    for spec in (load_cluster("gb200-nvl72:2").spec, join_hosts([reading], Knowledge(), name="x", hosts=3)):
        path = tmp_path / "cluster.yaml"
        save_spec(spec, path)
        assert load_spec(path) == spec
        assert load_cluster(str(path)).spec == spec


@given(
    name=st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1).filter(str.strip),
    gbps=st.floats(1e-3, 1e5),
    lanes=st.integers(1, 18) | st.none(),
    hosts=st.integers(1, 64),
    over=st.floats(1, 100),
)
def test_any_valid_spec_survives(name: str, gbps: float, lanes: int | None, hosts: int, over: float) -> None:
    spec = ClusterSpec.model_validate(
        {
            "name": name[:200].strip() or "x",
            "hosts": {
                "one": {
                    "nodes": [
                        {"name": "gpu0", "kind": "gpu"},
                        {"name": "n", "kind": "nic", "gbps": gbps, "model": "a: b #c"},
                    ],
                    "links": [{"a": "gpu0", "b": "n", "kind": "pcie", "gbps": gbps, "lanes": lanes}],
                }
            },
            "layout": [{"host": "one", "count": hosts}],
            "fabric": Fabric(oversubscription=over),
        }
    )
    assert parse_spec(dump_spec(spec), "again") == spec


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("format: epplan.cluster", "format: other", "format: epplan.cluster"),
        ("version: 1", "version: 2", "version 2"),
        ("count: 2", "count: 0", "layout.0.count: .*not 0"),
        ("count: 2", "count: many", "layout.0.count: .*not 'many'"),
        ("host: mi300x", "host: other", "layout names host 'other'"),
        ("gbps: 64.0", "gbps: .nan", "gbps"),
        ("gbps: 64.0", "gbps: -1", "hosts.mi300x.links.0.gbps: .*not -1"),
        ("kind: xgmi", "kind: magic", "hosts.mi300x.links.0.kind"),
        ("a: gpu0, b: gpu1", "a: gpu0, b: gpu0", "ends where it starts"),
        ("a: gpu0, b: gpu1", "a: gpu0, b: nowhere", "names 'nowhere'"),
        ("a: gpu0, b: gpu1", "a: gpu0, b: gpu2", "two links join gpu0 and gpu2"),
        ("name: gpu1, kind", "name: gpu0, kind", "two nodes are named 'gpu0'"),
        ("model: mi300x", "model: other", "is a 'other'"),
        ("kind: gpu", "kind: nic", "no node of kind gpu"),
        ("radix: 64", "radix: 1", "fabric.radix: .*not 1"),
        ("fabric:", "surprise: 1\nfabric:", "surprise: Extra inputs"),
        ("fabric:", "layout: []\nfabric:", "'layout' is given twice"),
        ("layout:", "anchor: &a [1]\nalias: *a\nlayout:", "aliases"),
        ("name: mi300x:2", "name: !!python/object/apply:os.system ['true']", "YAML tags are not accepted"),
        ("name: mi300x:2", "name: " + "[" * 100 + "]" * 100, "nested deeper"),
        ("name: mi300x:2", "name: {a", "not valid YAML"),
    ],
)
def test_errors_name_the_field_in_one_line(old: str, new: str, words: str) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new) if old in ("kind: gpu", "model: mi300x") else GOOD.replace(old, new, 1)
    with pytest.raises(BadInput, match=words) as error:
        parse_spec(text, "c.yaml")
    assert str(error.value).startswith("c.yaml: ")
    assert "\n" not in str(error.value)


def test_domains_need_one_switch_in_each_host() -> None:
    with pytest.raises(BadInput, match="domain_hosts is 2; host 'mi300x' has 0 nvswitch"):
        parse_spec(GOOD.replace("domain_hosts: 1", "domain_hosts: 2"), "c.yaml")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_break_the_reader(content: bytes) -> None:
    with pytest.raises(BadInput) as error:
        parse_spec(content.decode("utf-8", errors="replace"), "c.yaml")
    assert "\n" not in str(error.value)
