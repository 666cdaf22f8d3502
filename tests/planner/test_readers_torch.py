"""SGLang's recorder dumps, read without torch, and what a hostile pickle may not do."""

import io
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.readers import torch_zip
from planner.readers.detect import read_raw
from tests.planner.routing_data import FUZZ, RECORDER, check_one_line, data_file
from topologies.errors import BadInput


class Name:
    """Pickles as a global of any module and name."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """Pickles as the call of a global."""

    def __init__(self, function: Name, *arguments: object) -> None:
        self.function, self.arguments = function, arguments


class Storage:
    """Pickles as a reference to a storage."""

    def __init__(self, kind: str, key: str, elements: int) -> None:
        self.pid = ("storage", Name("torch", kind), key, "cpu", elements)


class _Writer(pickle._Pickler):  # the Python one: its save() can be told what to write
    def persistent_id(self, value):
        return value.pid if isinstance(value, Storage) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Name):
            self.write(f"c{value.module}\n{value.name}\n".encode())
        elif isinstance(value, Call):
            self.save(value.function)
            self.save(value.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(value, save_persistent_id)


def tensor(storage: Storage, offset, size, stride) -> Call:
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), storage, offset, size, stride, False, OrderedDict())


def torch_bytes(value, *, byteorder: bytes | None = b"little", **storages: bytes) -> bytes:
    """A torch file of our own making, without torch."""
    program = io.BytesIO()
    _Writer(program, protocol=2).dump(value)
    return archive(program.getvalue(), byteorder=byteorder, **storages)


def archive(program: bytes, *, byteorder: bytes | None = None, **storages: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("archive/data.pkl", program)
        if byteorder is not None:
            file.writestr("archive/byteorder", byteorder)
        for key, data in storages.items():
            file.writestr(f"archive/data/{key.removeprefix('_')}", data)
    return stream.getvalue()


def refusal(data: bytes) -> str:
    with pytest.raises(BadInput) as caught:
        read_raw(data, "file")
    check_one_line(caught.value)
    return str(caught.value)


LONGS = np.arange(12, dtype="<i8").tobytes()


def dump(**changes) -> bytes:
    fields = {"kind": "LongStorage", "elements": 12, "offset": 0, "size": (3, 4), "stride": (4, 1), "data": LONGS}
    fields |= changes
    built = tensor(Storage(fields["kind"], "0", fields["elements"]), fields["offset"], fields["size"], fields["stride"])
    value = {"rank": 0, "logical_count": built, "average_utilization_rate_over_window": None}
    return torch_bytes(value, byteorder=fields.get("byteorder", b"little"), _0=fields["data"])


def test_a_dump_of_our_own():
    assert (read_raw(dump(), "file").counts[:, 0] == np.arange(12).reshape(3, 4)).all()


def test_strides_and_offsets():
    counts = read_raw(dump(offset=1, size=(2, 3), stride=(1, 4)), "file").counts[:, 0]
    assert counts.tolist() == [[1, 5, 9], [2, 6, 10]]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("DoubleStorage", "f8"),
        ("FloatStorage", "f4"),
        ("HalfStorage", "f2"),
        ("IntStorage", "i4"),
        ("ByteStorage", "u1"),
    ],
)
@pytest.mark.parametrize("order", ["little", "big"])
def test_types_and_byte_orders(kind, dtype, order):
    data = np.arange(12).astype(("<" if order == "little" else ">") + dtype).tobytes()
    counts = read_raw(dump(kind=kind, data=data, byteorder=order.encode()), "file").counts[:, 0]
    assert (counts == np.arange(12).reshape(3, 4)).all()


def test_bfloat16():
    data = (np.arange(12, dtype="<f4").view("<u4") >> 16).astype("<u2").tobytes()
    assert (read_raw(dump(kind="BFloat16Storage", data=data), "file").counts[:, 0].ravel() == np.arange(12)).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"elements": 13}, "declares 13 elements of 8 bytes, holds 96 bytes"),
        ({"offset": 1}, "reaches element 12 of a storage of 12"),
        ({"size": (3, 5)}, "reaches element 12"),
        ({"size": (2**40, 2**40), "stride": (0, 0)}, "tensors of over"),
        ({"size": (2**61, 2), "stride": (2**61, 1)}, "reaches element"),
        ({"size": (-1, 4)}, "shape [-1, 4]"),
        ({"stride": (-4, 1)}, "stride [-4, 1]"),
        ({"stride": (1,)}, "a tensor of an unknown kind"),
        ({"offset": 1.5}, "whose shape is not of integers"),
        ({"size": (0, 4)}, "is empty"),
        ({"size": (12,), "stride": (1,)}, "has 1 dimensions"),
        ({"size": ("a", 1)}, "shape"),
        ({"size": 7}, "damaged data.pkl"),
        ({"kind": "ComplexFloatStorage"}, "asks for torch.ComplexFloatStorage"),
        ({"byteorder": b"middle"}, "byteorder is b'middle'"),
        ({"kind": "BoolStorage", "data": b"\x02" * 12}, None),
        ({"kind": "FloatStorage", "data": np.full(12, np.nan, "<f4").tobytes()}, "logical_count[0, 0] = nan"),
    ],
)
def test_tensors_that_are_wrong(changes, words):
    if words is None:
        read_raw(dump(**changes), "file")
    else:
        assert words in refusal(dump(**changes))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1, 2], "holds a list, not a dict"),
        ({"rank": 0}, "no logical_count; keys: rank"),
        ({"records": [], "last_physical_to_logical_map": None}, "are not a list and a tensor"),
        ({"logical_count": 5}, "logical_count is a int, not a tensor"),
        ({"logical_count": Call(Name("os", "system"), "false")}, "asks for os.system; no tensor of counts needs it"),
        ({"logical_count": Call(Name("builtins", "eval"), "1")}, "asks for builtins.eval"),
        ({"logical_count": Name("torch._utils", "_rebuild_parameter")}, "asks for torch._utils._rebuild_parameter"),
        ({"logical_count": Call(Name("collections", "OrderedDict"), 5)}, "damaged data.pkl"),
        ({"logical_count": tensor(5, 0, (1,), (1,))}, "a tensor of an unknown kind"),
    ],
)
def test_contents_that_are_none_of_ours(value, words):
    assert words in refusal(torch_bytes(value))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"", "damaged or truncated data.pkl"),
        (b"\x80\x02}q", "damaged or truncated data.pkl"),
        (b"\x80\x02.", "damaged data.pkl"),
        (b"\x80\x02(i__main__\nX\n.", "holds INST"),
        (b"\x80\x02cos\nsystem\n)\x81.", "holds NEWOBJ"),
        (b"\x80\x02}\x8c\x01ab.", "holds BUILD"),
        (b"\x80\x02\x82\x01.", "holds EXT1"),
        (b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b".", "numbers an object 2147483647"),
        (b"\x80\x02)" + b"\x85" * 3000 + b".", "nests tuples over 50 deep"),
        (b"\x80\x02X" + struct.pack("<I", 2**31) + b"a.", "damaged or truncated data.pkl"),
    ],
)
def test_programs_that_are_refused_before_they_run(program, words):
    assert words in refusal(archive(program))


def test_limits_on_sizes(monkeypatch):
    monkeypatch.setattr(torch_zip, "MAX_PICKLE_BYTES", 50)
    assert "archive/data.pkl unpacks to" in refusal(dump())
    monkeypatch.undo()
    monkeypatch.setattr(torch_zip, "MAX_ARRAY_BYTES", 95)
    assert "archive/data/0 unpacks to 96 bytes, over the limit of 95" in refusal(dump())


def test_a_missing_storage_and_old_formats():
    value = {"logical_count": tensor(Storage("LongStorage", "1", 1), 0, (1, 1), (1, 1))}
    assert "no member archive/data/1" in refusal(torch_bytes(value, _0=LONGS))
    assert "a bare pickle" in refusal(pickle.dumps({"logical_count": [[1]]}))


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


def test_recorder_dump_equals_torch_load(torch):
    path = data_file(RECORDER)
    expected = torch.load(path, weights_only=True)["logical_count"].numpy()
    raw = read_raw(path.read_bytes(), str(path))
    assert expected.shape == (61, 256)
    assert (raw.counts[:, 0] == expected).all()


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"]
)
def test_files_that_torch_writes(torch, dtype):
    counts = torch.arange(24).reshape(2, 3, 4).to(getattr(torch, dtype))
    for value in (counts, counts.permute(0, 2, 1)[:, 1:], counts[1].T, counts[0].expand(2, 3, 4)):
        stream = io.BytesIO()
        torch.save({"rank": 1, "logical_count": value, "average_utilization_rate_over_window": 0.5}, stream)
        expected = value.double().numpy()
        raw = read_raw(stream.getvalue(), "file")
        assert (raw.counts[:, 0] == (expected.sum(axis=0) if expected.ndim == 3 else expected)).all()


def test_no_torch_is_imported(tmp_path):
    (tmp_path / "dump.pt").write_bytes(dump())
    program = "import sys, planner.routing as r; r.load_routing(sys.argv[1]); print('torch' in sys.modules)"
    call = [sys.executable, "-c", program, tmp_path / "dump.pt"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_tensors_that_share_a_storage(torch):
    base = torch.arange(8)
    stream = io.BytesIO()
    torch.save(OrderedDict(other=base[:2], logical_count=base.reshape(2, 4)), stream)
    assert read_raw(stream.getvalue(), "file").counts[:, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@given(st.data())
@FUZZ
def test_damaged_files(data):
    content = bytearray(dump())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_raw(bytes(content), "file")
    except BadInput as error:
        check_one_line(error)


PROGRAM = io.BytesIO()
_Writer(PROGRAM, protocol=2).dump({"logical_count": tensor(Storage("LongStorage", "0", 12), 0, (3, 4), (4, 1))})


@given(st.data())
@FUZZ
def test_damaged_programs(data):
    """The zip's checksum hides most damage from the unpickler; here it meets all of it."""
    program = bytearray(PROGRAM.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(program) - 1))
        program[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        read_raw(archive(bytes(program), _0=LONGS), "file")
    except BadInput as error:
        check_one_line(error)


INSTRUCTIONS = [
    b"}", b"]", b"(", b")", b"t", b"\x85", b"N", b"K\x01", b"R", b"Q", b"s", b"u", b"a", b"e", b"0", b"q\x00", b"h\x00",
    b"X\x01\x00\x00\x000", b"ctorch\nLongStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n",
]  # fmt: skip


@given(st.lists(st.sampled_from(INSTRUCTIONS), max_size=30))
@FUZZ
def test_any_program(instructions):
    try:
        read_raw(archive(b"\x80\x02" + b"".join(instructions) + b".", _0=LONGS), "file")
    except BadInput as error:
        check_one_line(error)
