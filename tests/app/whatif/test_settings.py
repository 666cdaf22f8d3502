"""Settings as a link: there and back, and nothing but known names in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.whatif.cases import make_case
from app.whatif.settings import Settings
from app.whatif.uploads import Uploads
from topologies import BadInput

ANY = st.builds(
    Settings,
    cluster=st.sampled_from(["hgx-h100:4", "gb200-nvl72:1"]),
    skew=st.floats(0, 4),
    tokens=st.none() | st.floats(0.5, 1e7),
    slots=st.none() | st.integers(1, 4096),
    exchange=st.sampled_from(["auto", "dedup"]),
    lost=st.lists(st.sampled_from(["host3", "host1/gpu2", "host0/nic4"]), unique=True).map(tuple),
    nic_gbps=st.none() | st.floats(0.1, 1e5),
    slow_rank=st.none() | st.integers(0, 100),
)


@given(ANY)
def test_a_link_opens_the_settings_it_was_made_from(settings):
    assert Settings.of_query(settings.query()) == settings


def test_defaults_make_an_empty_link_and_strangers_are_passed_over():
    assert Settings().query() == {}
    assert Settings.of_query({"utm_source": "mail"}) == Settings()


@pytest.mark.parametrize(
    ("query", "culprit"),
    [
        ({"tokens": "many"}, "tokens = 'many'"),
        ({"slots": "0"}, "slots = '0'"),
        ({"exchange": "smoke"}, "exchange = 'smoke'"),
        ({"lost": "host3,../etc"}, "lost = '../etc'"),
        ({"nic_gbps": "nan"}, "nic_gbps = 'nan'"),
        ({"cluster": "x" * 300}, "cluster = "),
    ],
)
def test_a_broken_link_names_its_parameter(query, culprit):
    with pytest.raises(BadInput) as caught:
        Settings.of_query(query)
    assert str(caught.value).startswith(culprit)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"exchange": "coherent"}, "'auto', 'pairwise', 'dedup' or 'two-level'"),
        (
            {"lost": "rack7"},
            "lost = 'rack7': a part is a host, a GPU or a NIC, such as host3, host1/gpu2 or host0/nic4",
        ),
    ],
)
def test_a_broken_link_says_what_may_stand_there(query, said):
    with pytest.raises(BadInput) as caught:
        Settings.of_query(query)
    assert said in str(caught.value)


def test_changes_name_both_values():
    a = Settings()
    assert a.changes(a) == {}
    assert a.changes(a.but(slots=4, lost=("host1",))) == {"slots": (None, 4), "lost": ((), ("host1",))}


@pytest.mark.parametrize("field", ["cluster", "model", "profile", "routing"])
@pytest.mark.parametrize("value", ["/etc/passwd", "../../x.json", "planner", "~/x", "pyproject.toml", "vendor.yaml"])
def test_a_link_opens_no_file_of_the_server(field, value):
    with pytest.raises(BadInput):
        make_case(Settings(**{field: value}), Uploads())


@pytest.mark.parametrize("field", ["cluster", "model", "profile", "routing"])
def test_a_link_opens_no_upload_of_another_session(field):
    mine, theirs = Uploads(), Uploads()
    kind = {"cluster": "c.yaml", "model": "config.json", "profile": "p.yaml", "routing": "loads.json"}
    reference = theirs.add(field, kind[field], b"{}").reference  # type: ignore[arg-type]  # a kind
    with pytest.raises(BadInput, match="files are not shared with a link"):
        make_case(Settings(**{field: reference}), mine)
