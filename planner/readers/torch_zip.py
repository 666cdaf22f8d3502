"""PyTorch's zip format without PyTorch: dicts of tensors and plain values, and nothing else.

Tensors are read when they are asked for, so that a dump of thousands of them is never in memory at once.
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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.readers.raw import MAX_ARRAY_BYTES, MAX_RATIO, names_held, one_line
from planner.readers.tuple_nesting import TupleNesting
from planner.readers.zips import read_member
from topologies.errors import BadInput

MAX_PICKLE_BYTES = 64 * 2**20
MAX_INSTRUCTIONS = 1_500_000  # some 50,000 tensors; each may leave an object of a hundred bytes
MAX_MEMO = 1_000_000

MAX_READ_BYTES = 2**29
"""What the tensors of a file may read together, besides `MAX_RATIO` times its size: many may share one storage."""

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


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor that was not read yet: a strided view of a storage."""

    what: str
    shape: tuple[int, ...]
    _strides: tuple[int, ...]
    _offset: int
    _elements: Callable[[], NDArray[Any]]

    def read(self) -> NDArray[Any]:
        """Return its elements; bfloat16 as float32. Raises BadInput where the storage is missing or too short."""
        flat = self._elements()
        if 0 in self.shape:
            return np.zeros(self.shape, dtype=np.float64)
        last = self._offset + sum((n - 1) * step for n, step in zip(self.shape, self._strides, strict=True))
        if last >= len(flat):
            raise BadInput(
                f"{self.what}: a tensor of shape {list(self.shape)} reaches element {last} of a storage of {len(flat)}"
            )
        if int(np.prod([float(n) for n in self.shape])) * 8 > MAX_ARRAY_BYTES:
            raise BadInput(
                f"{self.what}: tensors of over {MAX_ARRAY_BYTES} bytes, the last of shape {list(self.shape)}"
            )
        strides = [step * flat.itemsize for step in self._strides]
        return np.lib.stride_tricks.as_strided(flat[self._offset :], self.shape, strides, writeable=False).copy()


def read_torch(archive: zipfile.ZipFile, source: str) -> Any:
    """Return the object that `torch.save` wrote, tensors as NumPy arrays, if it is a tensor or a dict of some.

    Raises BadInput as `open_torch` does, and where the tensors take too much memory together.
    """
    content = open_torch(archive, source)
    if isinstance(content, Tensor):
        return content.read()
    if not isinstance(content, dict):
        return content
    size = 8.0 * sum(float(np.prod([float(n) for n in v.shape])) for v in content.values() if isinstance(v, Tensor))
    if size > MAX_ARRAY_BYTES:
        raise BadInput(f"{source}: tensors of over {MAX_ARRAY_BYTES} bytes together")
    return {key: value.read() if isinstance(value, Tensor) else value for key, value in content.items()}


def open_torch(archive: zipfile.ZipFile, source: str) -> Any:
    """Return the object that `torch.save` wrote, with a `Tensor` for every tensor.

    Raises:
        BadInput: damaged, over the limits, or holding anything but tensors, numbers, strings, lists, tuples and dicts.

    """
    programs = [name for name in archive.namelist() if name.endswith("data.pkl")]
    if not programs:
        raise BadInput(f"{source}: a zip archive of {names_held(archive.namelist())}; not a torch file (no data.pkl)")
    root = programs[0].removesuffix("data.pkl")
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
    nesting = TupleNesting(source)
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(program)):
            if count >= MAX_INSTRUCTIONS:
                raise BadInput(f"{source}: data.pkl holds over {MAX_INSTRUCTIONS} instructions")
            nesting.follow(opcode.name, argument)
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
        self._left = MAX_READ_BYTES + MAX_RATIO * archive.start_dir

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

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> Tensor:
        """Note one tensor: a strided view of a storage, as torch._utils._rebuild_tensor_v2 builds it."""
        sides = (*size, *stride, offset)
        if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > 32:
            raise BadInput(f"{self._source}: data.pkl builds a tensor of an unknown kind")
        if not all(isinstance(side, int) for side in sides):
            raise BadInput(f"{self._source}: data.pkl builds a tensor whose shape is not of integers")
        if not all(0 <= side < 2**62 for side in sides):
            raise BadInput(f"{self._source}: a tensor of shape {list(size)}, stride {list(stride)}, offset {offset}")
        return Tensor(self._source, tuple(size), tuple(stride), offset, lambda: self._elements(storage))

    def _elements(self, storage: _Storage) -> NDArray[Any]:
        name = f"{self._root}data/{storage.key}"
        data = read_member(self._archive, name, self._source, limit_bytes=MAX_ARRAY_BYTES)
        self._left -= len(data)
        if self._left < 0:
            raise BadInput(f"{self._source}: its tensors read far more bytes than it holds; torch.save packs nothing")
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
        return flat.astype(dtype.newbyteorder("="), copy=False)


def _is_big_endian(archive: zipfile.ZipFile, root: str, source: str) -> bool:
    if f"{root}byteorder" not in archive.namelist():
        return False
    order = read_member(archive, f"{root}byteorder", source, limit_bytes=64).strip()
    if order not in (b"little", b"big"):
        raise BadInput(f"{source}: byteorder is {order[:20]!r}, not little or big")
    return order == b"big"
