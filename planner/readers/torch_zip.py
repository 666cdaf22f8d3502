"""PyTorch's zip format without PyTorch: dicts of tensors and plain values, and nothing else.

The format (torch/serialization.py of PyTorch 1.6 and later): a zip archive of `NAME/data.pkl`, a pickle in which each
tensor is a call of `torch._utils._rebuild_tensor_v2` on a storage, and of the storages' raw bytes in `NAME/data/KEY`;
`NAME/byteorder` says "little" or "big". A pickle can call anything, so this reader has a list of instructions and a
list of names, those that tensors in dicts and lists need, and refuses the file at the first other one.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.readers.raw import MAX_ARRAY_BYTES, one_line
from planner.readers.zips import read_member
from topologies.errors import BadInput

MAX_PICKLE_BYTES = 16 * 2**20
MAX_MEMO = 1_000_000
MAX_TUPLES = 2_000
"""Tuples nested deeper than the stack would crash the interpreter when they are hashed; a tensor needs four."""

STORAGES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "bf16", "LongStorage": "i8",
    "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "u1",
}  # fmt: skip
"""NumPy types of torch's storages."""

OPCODES = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK",
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING",
    "EMPTY_LIST", "APPEND", "APPENDS", "LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS",
    "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BINPERSID",
})  # fmt: skip
"""Instructions of a pickle that build plain values, look a name up, call it, or refer to a storage."""


@dataclass(frozen=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    elements: int


def read_torch(archive: zipfile.ZipFile, source: str) -> Any:
    """Return the object that `torch.save` wrote, tensors as NumPy arrays (bfloat16 as float32).

    Raises:
        BadInput: damaged, over the limits, or holding anything but tensors, numbers, strings, lists, tuples and dicts.

    """
    root = next(name for name in archive.namelist() if name.endswith("data.pkl")).removesuffix("data.pkl")
    program = read_member(archive, f"{root}data.pkl", source, limit_bytes=MAX_PICKLE_BYTES)
    _refuse_instructions(program, source)
    try:
        return _Unpickler(program, archive, root, source).load()
    except BadInput:
        raise
    except Exception as error:  # a broken program can fail in any way; to the user all of them are the same
        raise BadInput(f"{source}: damaged data.pkl: {type(error).__name__}: {one_line(error)}") from error


def _refuse_instructions(program: bytes, source: str) -> None:
    """Raise BadInput at the first instruction that is not on the list, before any of them runs."""
    tuples = 0
    try:
        for opcode, argument, position in pickletools.genops(program):
            tuples += opcode.name.startswith("TUPLE")
            if tuples > MAX_TUPLES:
                raise BadInput(f"{source}: data.pkl builds over {MAX_TUPLES} tuples; a dump of counts has a few")
            if opcode.name not in OPCODES:
                raise BadInput(
                    f"{source}: data.pkl holds {opcode.name} at byte {position}; no tensor needs it: refused"
                )
            if opcode.name == "LONG_BINPUT" and isinstance(argument, int) and argument > MAX_MEMO:
                raise BadInput(f"{source}: data.pkl numbers an object {argument}, over the limit of {MAX_MEMO}")
    except BadInput:
        raise
    except Exception as error:  # pickletools raises many kinds on broken input
        raise BadInput(f"{source}: damaged or truncated data.pkl: {one_line(error)}") from error


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows four names."""

    def __init__(self, program: bytes, archive: zipfile.ZipFile, root: str, source: str) -> None:
        super().__init__(io.BytesIO(program), encoding="utf-8")
        self._archive, self._root, self._source = archive, root, source
        self._swap = _is_big_endian(archive, root, source)
        self._loaded: dict[str, bytes] = {}
        self._built_bytes = 0

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name in the file; refuse all but tensors' own."""
        if module in ("torch", "torch.storage") and name in STORAGES:
            return _StorageType(STORAGES[name])
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise BadInput(
            f"{self._source}: data.pkl asks for {one_line(f'{module}.{name}')}; no tensor of counts needs it: refused"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the storage that ("storage", type, key, location, elements) names."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], _StorageType)):
            raise BadInput(f"{self._source}: data.pkl names a storage of an unknown kind")
        if not (isinstance(pid[2], str) and isinstance(pid[4], int) and pid[4] >= 0):
            raise BadInput(f"{self._source}: data.pkl names a storage without a key or a size")
        return _Storage(pid[1].dtype, pid[2], pid[4])

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> NDArray[Any]:
        """Build one tensor: a strided view of a storage, as torch._utils._rebuild_tensor_v2 does."""
        sides = (*size, *stride, offset)
        if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > 32:
            raise BadInput(f"{self._source}: data.pkl builds a tensor of an unknown kind")
        if not all(isinstance(side, int) and 0 <= side < 2**62 for side in sides):
            raise BadInput(f"{self._source}: a tensor of shape {list(size)}, stride {list(stride)}, offset {offset}")
        flat = self._elements(storage)
        if 0 in size:
            return np.zeros(size, dtype=np.float64)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= len(flat):
            raise BadInput(
                f"{self._source}: a tensor of shape {list(size)} reaches element {last} of a storage of {len(flat)}"
            )
        self._built_bytes += int(np.prod([float(n) for n in size])) * 8
        if self._built_bytes > MAX_ARRAY_BYTES:
            raise BadInput(f"{self._source}: tensors of over {MAX_ARRAY_BYTES} bytes, the last of shape {list(size)}")
        item = flat.itemsize
        view = np.lib.stride_tricks.as_strided(flat[offset:], size, [step * item for step in stride], writeable=False)
        return view.copy()

    def _elements(self, storage: _Storage) -> NDArray[Any]:
        if storage.key not in self._loaded:
            name = f"{self._root}data/{storage.key}"
            self._loaded[storage.key] = read_member(self._archive, name, self._source, limit_bytes=MAX_ARRAY_BYTES)
        data = self._loaded[storage.key]
        bfloat = storage.dtype == "bf16"
        dtype = np.dtype("u2" if bfloat else storage.dtype).newbyteorder(">" if self._swap else "<")
        if storage.elements * dtype.itemsize > len(data):
            raise BadInput(
                f"{self._source}: storage {one_line(storage.key)} declares {storage.elements} elements of "
                f"{dtype.itemsize} bytes, holds {len(data)} bytes"
            )
        flat = np.frombuffer(data, dtype=dtype, count=storage.elements)
        if bfloat:
            return (flat.astype(np.uint32) << 16).view(np.float32)
        return flat.astype(dtype.newbyteorder("="))


def _is_big_endian(archive: zipfile.ZipFile, root: str, source: str) -> bool:
    if f"{root}byteorder" not in archive.namelist():
        return False
    order = read_member(archive, f"{root}byteorder", source, limit_bytes=64).strip()
    if order not in (b"little", b"big"):
        raise BadInput(f"{source}: byteorder is {order[:20]!r}, not little or big")
    return order == b"big"
