"""Versions of plan.json and its digest: what loads, what is upgraded, what is refused and with which words."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import load_plan
from planner.plan import SCHEMA_FILE, parse_plan
from planner.plan_version import UPGRADES, VERSION, digest, upgraded
from tests.fuzz.seeds import a_plan
from topologies import BadInput

TEXT = a_plan().decode()


def document() -> dict:
    return json.loads(TEXT)


def refusal(content: dict | str) -> str:
    with pytest.raises(BadInput) as caught:
        parse_plan(content if isinstance(content, str) else json.dumps(content), "plan.json")
    assert str(caught.value).startswith("plan.json: ")
    return str(caught.value)


def test_the_digest_is_written_and_the_schema_knows_it():
    assert document()["sha256"] == digest(document())
    jsonschema.validate(document(), json.loads(SCHEMA_FILE.read_text()))
    assert parse_plan(TEXT, "plan.json").to_json() == TEXT


def test_a_known_digest():
    """By hand: printf '{"a":[1,2.5],"b":"x"}' | sha256sum."""
    known = "5cefae54a95b31dc660d6cbbb2198f0811fc70ee37b1cc85b1989870cd293ffb"
    assert digest({"b": "x", "a": [1.0, 2.5], "sha256": "left out"}) == known
    assert digest({"a": [1, 2.5], "b": "x"}) == known


def test_layout_and_order_make_no_difference(tmp_path: Path):
    turned = dict(reversed(document().items()))
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(turned, indent=7))
    assert load_plan(path).to_json() == TEXT


def leaves(node):
    """Return (holder, key) of every number, string and null in a document."""
    found = []
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        found += leaves(value) if isinstance(value, dict | list) else [(node, key)]
    return found


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_changed_value_is_noticed(data):
    changed = document()
    places = [place for place in leaves(changed) if place[1] not in ("sha256", "format", "version")]
    holder, key = places[data.draw(st.integers(0, len(places) - 1))]
    old = holder[key]
    holder[key] = old + 1 if isinstance(old, int | float) else "changed"
    assert "sha256: the file was changed or damaged" in refusal(changed)


def test_an_edited_plan_loads_without_its_digest():
    edited = TEXT.replace('"command": "made"', '"command": "by hand"')
    assert 'delete its line "sha256"' in refusal(edited)
    allowed = re.sub(r'\n  "sha256": "\w+",', "", edited)
    assert allowed.count("sha256") == 0
    again = parse_plan(allowed, "plan.json")
    assert again.provenance.command == "by hand"
    assert parse_plan(again.to_json(), "plan.json") == again  # saved, it has a digest again


def test_version_1_is_upgraded():
    """Version 1 as it was written before there was a digest."""
    old = {key: value for key, value in document().items() if key != "sha256"} | {"version": 1}
    assert parse_plan(json.dumps(old), "plan.json") == parse_plan(TEXT, "plan.json")
    assert sorted(UPGRADES) == list(range(1, VERSION))
    assert upgraded(old, "x")["version"] == VERSION


@pytest.mark.parametrize("version", [0, 3, -1, 2.0, True, "2", None, [], 10**30])
def test_unknown_versions_are_refused(version):
    assert f"is unknown; this epplan reads versions 1 to {VERSION}" in refusal(document() | {"version": version})


@pytest.mark.parametrize(
    "where", [(), ("cluster",), ("cluster", "ranks", 0), ("layers", 0), ("provenance",), ("model",)]
)
def test_unknown_fields_are_refused(where):
    """What this version does not know is never left out in silence."""
    plan = document()
    del plan["sha256"]
    node = plan
    for key in where:
        node = node[key]
    node["novel"] = 1
    assert "novel" in refusal(plan)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 5000])
def test_numbers_that_are_none(value):
    plain = re.sub(r'\n  "sha256": "\w+",', "", TEXT)
    for field in ("total_us", "tokens_per_rank", "gap", "seconds", "imbalance"):
        refusal(re.sub(rf'"{field}": [\d.e+-]+', f'"{field}": {value}', plain, count=1))


def test_keys_that_stand_twice_and_wrong_digests():
    assert "'exchange' stands twice" in refusal(TEXT.replace('"exchange"', '"exchange": "dedup", "exchange"'))
    for wrong in ("", "0" * 64, 5, [], {}):
        assert "sha256" in refusal(document() | {"sha256": wrong})


def test_shares_that_would_take_gigabytes():
    """60,000 ranks in as many domains with 60,000 slots: 28 GB of shares from a file of 4 MB."""
    many = 60_000
    plan = document() | {"cluster": {
        "name": "x", "ranks": [{"rank": n, "host": n, "gpu": 0, "domain": n} for n in range(many)]
    }}  # fmt: skip
    plan["layers"] = [{"layer": 1, "slots": [[n % 6] for n in range(many)]}]
    plan["workload"]["slots_per_rank"] = [1] * many
    del plan["sha256"]
    assert "60000 domains x 60000 slots, over the limit" in refusal(plan)
