import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from planner.readers import npy, zips
from planner.readers.detect import read_raw
from planner.routing import load_routing
from tests.planner.routing_data import FUZZ, check_one_line, npz_bytes
from topologies.errors import BadInput

IDS = np.array([[[0, 1], [2, 3]], [[3, 0], [-1, -1]]])


def refusal(data: bytes) -> str:
    with pytest.raises(BadInput) as caught:
        read_raw(data, "file")
    check_one_line(caught.value)
    return str(caught.value)


def npy_bytes(header: str, body: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """A .npy of any header, true or false."""
    text = header.encode("latin-1") + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + body


def zip_bytes(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return stream.getvalue()


@given(
    hnp.arrays(
        dtype=st.sampled_from(["u1", "i2", ">i4", "i8", "f4", ">f8"]),
        shape=hnp.array_shapes(min_dims=2, max_dims=3, max_side=4),
        elements=st.integers(0, 100),
    ),
    st.booleans(),
)
@FUZZ
def test_counts_are_read_as_written(counts, fortran):
    raw = read_raw(npz_bytes(counts=np.asfortranarray(counts) if fortran else counts), "file")
    expected = counts.astype(float)
    assert raw.counts.shape == (expected[:, None] if counts.ndim == 2 else expected).shape
    assert (raw.counts.reshape(expected.shape) == expected).all()
    assert raw.trace is None


@pytest.mark.parametrize("dtype", ["i1", "i2", ">i4", "i8"])
def test_traces_are_read_as_written(dtype):
    raw = read_raw(npz_bytes(topk_ids=IDS.astype(dtype), layers=[4, 9], token_source=[1, 0], experts=5), "file")
    assert (raw.trace == IDS).all()
    assert (raw.layers, raw.experts) == ((4, 9), 5)
    assert raw.token_source.tolist() == [1, 0]
    assert (read_raw(npz_bytes(topk_ids=IDS[:1].astype("u1")), "file").trace >= 0).all()


def test_notes_beside_the_arrays_are_ignored():
    notes = {"model": np.array("deepseek"), "mask": np.array([True]), "when": np.array("2026", dtype="M8")}
    assert read_raw(npz_bytes(counts=[[1, 2]], **notes), "file").counts.tolist() == [[[1, 2]]]
    logits = np.array([[[3.0, 1.0, 2.0]]])
    assert np.sort(read_raw(npz_bytes(logits=logits, **notes), "file", 2).trace).tolist() == [[[0, 2]]]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"weights": IDS}, "needs one of topk_ids and counts, has neither; arrays: weights"),
        ({"topk_ids": IDS, "counts": IDS}, "has topk_ids and counts"),
        ({"topk_ids": IDS.astype(float)}, "topk_ids: holds float64, not integer expert ids"),
        ({"topk_ids": IDS[0]}, "topk_ids: shape [2, 2], not [layers, tokens, top_k]"),
        ({"topk_ids": IDS[:, :0]}, "topk_ids: shape [2, 0, 2]"),
        ({"topk_ids": IDS - 1}, "topk_ids[1, 1, 0] = -2"),
        ({"topk_ids": np.maximum(IDS, 0) * 20_000}, "topk_ids[0, 1, 1] = 60000"),
        ({"topk_ids": IDS * 0 - 1}, "every entry is masked"),
        ({"topk_ids": np.array([[[0, 1], [5, 5]]])}, "topk_ids[0]: token 1 visits expert 5 twice: [5, 5]"),
        ({"topk_ids": IDS, "token_source": [0]}, "token_source has 1 entries, topk_ids has 2 tokens"),
        ({"topk_ids": IDS, "token_source": [0, -1]}, "token_source: reaches from -1 to 0"),
        ({"topk_ids": IDS, "token_source": [0.0, 1.0]}, "token_source: float64 of shape [2]"),
        ({"topk_ids": IDS, "layers": [[1], [2]]}, "layers: int64 of shape [2, 1]"),
        ({"topk_ids": IDS, "layers": np.array([], dtype=int)}, "layers: int64 of shape [0]"),
        ({"counts": IDS[0, 0]}, "counts has 1 dimensions"),
        ({"counts": np.zeros((0, 3))}, "counts: is empty"),
        ({"counts": np.array([[1.0, np.nan]])}, "counts[0, 1] = nan"),
        ({"counts": np.array([[1.0, -np.inf]])}, "counts[0, 1] = -inf"),
        ({"counts": np.array([[1, -1]])}, "counts[0, 1] = -1"),
        ({"counts": np.array([[1.0, 1e301]])}, "counts[0, 1] = 1e+301"),
        ({"weights": IDS, "note": np.array("text")}, "has neither; arrays: note, weights"),
        ({"counts": IDS[0], "layers": np.array(["1", "2"])}, "layers: holds <U1, not numbers"),
        ({"counts": np.array([["a"]])}, "counts: holds <U1, not numbers"),
        ({"counts": np.array([[True]])}, "counts: holds |b1, not numbers"),
        ({"counts": np.array([[1j]])}, "counts: holds <c16"),
        ({"counts": np.array([[1]], dtype=np.longdouble)}, "wider than float64"),
        ({"counts": np.array([[None]])}, "counts: holds |O, not numbers"),
    ],
)
def test_arrays_that_are_wrong(arrays, words):
    assert words in refusal(npz_bytes(**arrays))


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (npy_bytes("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000000)}"), "holds 0"),
        (npy_bytes("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2)}", b"\0" * 31), "= 32 bytes, holds 31"),
        (npy_bytes("{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1)}", b"\0" * 99), "= 8 bytes, holds 99"),
        (npy_bytes("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1)}", b"\0" * 8), "shape (-1, -1)"),
        (npy_bytes("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"\x80\x04N."), "holds |O"),
        (npy_bytes("__import__('os').system('true')"), "not a .npy array"),
        (npy_bytes("(" * 5000), "not a .npy array"),
        (npy_bytes("{'descr': '<f8'}"), "declares shape None"),
        (npy_bytes("{'descr': '<f7', 'fortran_order': False, 'shape': (1,)}"), "<f7, which NumPy does not know"),
        (npy_bytes("[1]"), "its header is no dict"),
        (npy_bytes("{}", version=(9, 9)), "not a .npy array"),
        (b"\x93NUMPY\x01", "not a .npy array"),
        (b"", "not a .npy array"),
        (b"PK\x03\x04 nothing like it", "not a .npy array"),
    ],
)
def test_headers_that_lie(member, words):
    assert words in refusal(zip_bytes(counts=member))


def test_a_bomb_is_refused_by_what_it_declares(monkeypatch):
    monkeypatch.setattr(npy, "MAX_ARRAY_BYTES", 10**6)
    bomb = npz_bytes(counts=np.zeros((1000, 1000)))
    assert len(bomb) < 20_000
    assert "counts: unpacks to 8000128 bytes from" in refusal(bomb)
    loose = npz_bytes(counts=np.random.default_rng(0).random((500, 500)))
    assert "counts: 2000000 bytes, over the limit of 1000000" in refusal(loose)


def test_a_member_that_declares_less_than_it_holds():
    honest = npz_bytes(counts=np.ones((100, 100)))
    size = struct.pack("<I", 80_128)
    assert honest.count(size) >= 1
    assert "counts" in refusal(honest.replace(size, struct.pack("<I", 128)))


def test_sources_times_experts_have_a_limit(tmp_path):
    (tmp_path / "r").write_bytes(npz_bytes(topk_ids=IDS, token_source=[0, 2**31 - 1]))
    with pytest.raises(BadInput, match="would take"):
        load_routing(tmp_path / "r")


def test_other_packing_and_other_archives():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("counts.npy", b"")
    assert "packed by zip method 12" in refusal(stream.getvalue())
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a\nb.txt", b"")
    assert "a zip archive of a b.txt; neither a torch file nor an .npz" in refusal(stream.getvalue())
    assert "damaged or truncated zip" in refusal(b"PK\x03\x04")
    stream = io.BytesIO()
    np.save(stream, IDS)
    assert "a single .npy array; save it by name" in refusal(stream.getvalue())
    assert "gzip" in refusal(b"\x1f\x8b\x08")
    assert issubclass(zipfile.BadZipFile, zips.ZIP_ERRORS)


VALID = [
    npz_bytes(topk_ids=IDS, layers=[4, 9], token_source=[1, 0], experts=5),
    npz_bytes(counts=np.arange(12.0).reshape(3, 4)),
]


@given(st.data())
@FUZZ
def test_damaged_files(data):
    content = bytearray(data.draw(st.sampled_from(VALID)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    try:
        raw = read_raw(bytes(content), "file")
    except BadInput as error:
        check_one_line(error)
    else:
        assert (raw.counts is None) != (raw.trace is None)


@given(st.text(max_size=80), st.binary(max_size=40))
@FUZZ
def test_any_header(header, body):
    member = npy_bytes(header.encode("latin-1", "replace").decode("latin-1"), body)
    try:
        read_raw(zip_bytes(counts=member), "file")
    except BadInput as error:
        check_one_line(error)
