"""JSON and CSV."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.readers.detect import read_raw
from planner.readers.raw import RawRouting
from tests.planner.routing_data import FUZZ, check_one_line, json_bytes
from topologies.errors import BadInput


def refusal(data: bytes | str) -> str:
    with pytest.raises(BadInput) as caught:
        read_raw(data if isinstance(data, bytes) else data.encode(), "file")
    check_one_line(caught.value)
    return str(caught.value)


MATRIX = st.integers(1, 5).flatmap(
    lambda experts: st.lists(
        st.lists(st.integers(0, 2**40) | st.floats(0, 1e12), min_size=experts, max_size=experts), min_size=1, max_size=4
    )
)


@FUZZ
@given(MATRIX)
def test_json_is_read_as_written(matrix):
    raw = read_raw(json_bytes(matrix), "file")
    assert isinstance(raw, RawRouting)
    assert (raw.counts[:, 0] == np.array(matrix, dtype=float)).all()
    again = read_raw(b"\xef\xbb\xbf \n" + json_bytes([matrix, matrix]), "file")  # two steps, a byte order mark
    assert (again.counts == 2 * raw.counts).all()


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([[1, 2], [3]], "logical_count[1]: has 1 entries, the row before it 2"),
        ([[1, 2], 3], "logical_count[1]: is a number where the entries before it are lists"),
        ([1, [2]], "logical_count[1]: has 1 entries, the row before it is a number"),
        ([[1, "2"]], "logical_count[0][1] = '2': not a number"),
        ([[1, None]], "logical_count[0][1] = 'None': not a number"),
        ([[1, True]], "logical_count[0][1] = 'True': not a number"),
        ([[1, -2]], "logical_count[0, 1] = -2: a count is a finite number of at least 0"),
        ([[1, float("nan")]], "logical_count[0, 1] = nan"),
        ([[1, float("inf")]], "logical_count[0, 1] = inf"),
        ([[1, 10**400]], "logical_count[0][1]: a number of 1329 bits"),
        ([[1, -(10**30)]], "a count is a finite number"),
        ([], "logical_count: is empty"),
        ([[]], "logical_count: is empty"),
        ([1, 2], "has 1 dimensions"),
        ([[[[1]]]], "has 4 dimensions"),
        ("all", "logical_count is 'all', not a list"),
    ],
)
def test_json_counts_that_are_none(counts, words):
    assert words in refusal(json_bytes(counts))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("{", "not valid JSON"),
        ('{"logical_count": [[1, 2], [3', "not valid JSON"),
        ("[[1, 2]]", 'a JSON list, not an object with "logical_count"'),
        ("{}", 'no "logical_count"; keys: none'),
        ('{"physical_to_logical_map": [[0]]}', "keys: physical_to_logical_map; this is a placement"),
        ('{"a\\nb": 1}', "keys: a b"),
        ("[" * 100_000, "nested too deeply"),
        (
            '{"logical_count": ' + "[" * 900 + "]" * 900 + "}",
            "logical_count[0][0][0]: is a list, where [layers][experts]",
        ),
        ('{"logical_count": [[' + "9" * 5000 + "]]}", "not valid JSON"),
        (b"\xff\xfe{", "not UTF-8"),
        (b'{"logical_count": \xff}', "not UTF-8"),
    ],
)
def test_json_that_is_none_of_ours(text, words):
    assert words in refusal(text)


def test_jsonl_with_blank_lines_anywhere():
    line = json_bytes([[1, 2], [3, 4]])
    for text in (b"\n\n" + line + b"\n  \n\n" + line + b"\n\n", line + b"\r\n\r\n" + line):
        assert read_raw(text, "file").counts.tolist() == [[[2, 4]], [[6, 8]]]


def test_jsonl_of_several_models():
    """A line of fewer experts or layers is not one whose last experts or layers were idle."""
    first = json_bytes([[1, 2], [3, 4]]) + b"\n\n"
    assert "line 3: logical_count: [layers][experts] = [2, 1], in line 1 [2, 2]" in refusal(
        first + json_bytes([[1], [3]])
    )
    assert "[layers][experts] = [1, 2], in line 1 [2, 2]" in refusal(first + json_bytes([[1, 2]]))
    assert read_raw(first + json_bytes([[[1, 1], [1, 1]]] * 3), "file").counts.tolist() == [[[4, 5]], [[6, 7]]]


def test_integers_past_64_bits_are_counts():
    assert read_raw(json_bytes([[2**70, 1]]), "file").counts[0, 0, 0] == 2.0**70


CSV = "layer,expert,count\n"


def test_csv_in_any_order_and_dress():
    raw = read_raw(b"# counts of a run\n\nCount; Expert ; layer\n 2.5;1;7\n# more\n\n1;0;3\n", "file")
    assert raw.layers == (3, 7)
    assert raw.counts.tolist() == [[[1, 0]], [[0, 2.5]]]
    assert raw.listed
    assert read_raw(b"\xef\xbb\xbflayer\texpert\tcount\r\n0\t0\t1\r\n", "file").counts.tolist() == [[[1]]]
    assert read_raw(b'"layer","expert","count"\n"0","1","3"\n', "file").counts.tolist() == [[[0, 3]]]


def test_csv_with_sources_and_steps():
    text = "step,source,layer,expert,count\n0,2,5,0,1\n1,2,5,0,10\n0,0,5,1,3\n"
    assert read_raw(text.encode(), "file").counts.tolist() == [[[0, 3], [0, 0], [11, 0]]]


@given(st.dictionaries(st.tuples(st.integers(0, 9), st.integers(0, 7)), st.integers(0, 10**9), min_size=1))
@FUZZ
def test_csv_is_read_as_written(table):
    text = CSV + "".join(f"{layer},{expert},{count}\n" for (layer, expert), count in table.items())
    raw = read_raw(text.encode(), "file")
    assert raw.counts.sum() == sum(table.values())
    for (layer, expert), count in table.items():
        assert raw.counts[raw.layers.index(layer), 0, expert] == count


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello, world\n", "not a known routing format; known: JSON"),
        ("# only this\n", "no lines but comments"),
        ("layer,expert\n1,2\n", "no column count"),
        ("layer,expert,count,colour\n1,2,3,4\n", "column 'colour'"),
        ("layer,expert,count,layer\n1,2,3,4\n", "a column twice"),
        (CSV, "a header and no counts"),
        (CSV + "1,2\n", "line 2: 2 fields, the header has 3"),
        (CSV + "1,2,3\n1,2,4\n", "line 3: layer 1, expert 2 comes twice"),
        (CSV + "-1,2,3\n", "line 2: layer = '-1' is not an integer from 0 to 99999"),
        (CSV + "1,2.0,3\n", "expert = '2.0'"),
        (CSV + "1,32768,3\n", "expert = '32768'"),
        (CSV + "1,\u0663,3\n", "expert = "),
        (CSV + "1,2,nan\n", "line 2: count = 'nan'"),
        (CSV + "1,2,-1\n", "count = '-1'"),
        (CSV + "1,2,inf\n", "count = 'inf'"),
        (CSV + "1,2,\n", "count = ''"),
        (CSV + '1,2,"3\n', "line 2"),
        ("layer,expert,count,source\n0,32767,1,99999\n", "would take"),
        (b"layer,expert,count\n\x00", "not a known routing format"),
    ],
)
def test_csv_that_is_wrong(text, words):
    assert words in refusal(text)


@given(st.binary(max_size=200))
@FUZZ
def test_any_bytes(data):
    try:
        read_raw(data, "file")
    except BadInput as error:
        check_one_line(error)


@given(st.text(alphabet='{}[]",:0123456789.-eE \nlayerxptcounsi#\t', max_size=60))
@FUZZ
def test_any_text(text):
    for start in ("", CSV, '{"logical_count": '):
        try:
            read_raw((start + text).encode(), "file")
        except BadInput as error:
            check_one_line(error)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


@given(JSON_VALUES)
@FUZZ
def test_any_json(value):
    try:
        raw = read_raw(json.dumps({"logical_count": value}).encode(), "file")
    except BadInput as error:
        check_one_line(error)
    else:
        assert raw.counts.ndim == 3
        assert np.isfinite(raw.counts).all()
