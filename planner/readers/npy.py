"""NumPy arrays from untrusted .npy and .npz, without pickle: whole, or in pieces of bounded size.

The header's shape must agree with the size of the file or member before anything is built.
"""

from __future__ import annotations

import ast
import io
import re
import zipfile
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from planner.readers.raw import MAX_ARRAY_BYTES, MAX_RATIO, one_line
from planner.readers.zips import ZIP_ERRORS, open_zip
from topologies.errors import BadInput

MAX_HEADER_BYTES = 10_000
PIECE_BYTES = 16 * 2**20


class NotNumbersError(BadInput):
    """An array of text, objects or flags."""


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """An array on disk.

    Attributes:
        what: the file and the array, to name in errors.
        dtype: of its elements; "bf16" is read as uint16 and widened.
        shape: of the array.
        fortran: whether the first index runs fastest.
        start: where the numbers start in the stream that `open` returns.
        open: returns a stream from the beginning.
        bf16: the elements are bfloat16.

    """

    what: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    start: int
    open: Callable[[], BinaryIO]
    bf16: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        size = self.dtype.itemsize
        for side in self.shape:
            size *= side
        return size

    def read(self) -> NDArray[Any]:
        """Return the whole array; raise BadInput over the limit."""
        if self.nbytes > MAX_ARRAY_BYTES:
            raise BadInput(f"{self.what}: {self.nbytes} bytes, over the limit of {MAX_ARRAY_BYTES}")
        with self.open() as stream:
            _skip(stream, self.start, self.what)
            data = _read_exactly(stream, self.nbytes, self.what)
        return self._widened(np.frombuffer(data, self.dtype)).reshape(self.shape, order="F" if self.fortran else "C")

    def pieces(self, per_row: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first row, rows [n, per_row]) of the array seen as rows of `per_row` elements, in order.

        An array in Fortran order is read whole.
        """
        if self.fortran and len(self.shape) > 1:
            yield 0, np.ascontiguousarray(self.read()).reshape(-1, per_row)
            return
        rows = self.nbytes // (self.dtype.itemsize * per_row)
        each = max(1, PIECE_BYTES // (self.dtype.itemsize * per_row))
        with self.open() as stream:
            _skip(stream, self.start, self.what)
            for first in range(0, rows, each):
                count = min(each, rows - first)
                data = _read_exactly(stream, count * per_row * self.dtype.itemsize, self.what)
                yield first, self._widened(np.frombuffer(data, self.dtype)).reshape(count, per_row)

    def _widened(self, values: NDArray[Any]) -> NDArray[Any]:
        if not self.bf16:
            return values
        return (values.astype(np.uint32) << 16).view(np.float32)


def npy_file(open_stream: Callable[[], BinaryIO], size: int, what: str) -> ArrayFile:
    """Return the array of a .npy of `size` bytes; raise BadInput where header and size do not agree."""
    with open_stream() as stream:
        header, start = _read_header(_read_up_to(stream, MAX_HEADER_BYTES, what), what)
    stored, fortran, shape = (header.get(key) for key in ("descr", "fortran_order", "shape"))
    if not isinstance(stored, str) or not re.fullmatch(r"[<>|=]?[iuf]\d{1,2}", stored):
        raise NotNumbersError(f"{what}: holds {one_line(stored)}, not numbers")
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise BadInput(f"{what}: declares shape {one_line(shape)}")
    try:
        dtype = np.dtype(stored)
    except TypeError as error:
        raise BadInput(f"{what}: holds {stored}, which NumPy does not know") from error
    array = ArrayFile(what, dtype, shape, bool(fortran), start, open_stream)
    if array.nbytes != size - start:
        raise BadInput(f"{what}: declares shape {list(shape)} of {dtype} = {array.nbytes} bytes, holds {size - start}")
    return array


def npz_files(archive: zipfile.ZipFile, source: str, required: Container[str] | None = None) -> dict[str, ArrayFile]:
    """Return the arrays of an opened .npz by name; `source` is the file to name in errors.

    With `required`, arrays by other names that are no numbers are left out; without it they are refused.
    """
    files = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name == info.filename:
            continue
        try:
            files[name] = _member(archive, info, source)
        except NotNumbersError:
            if required is None or name in required:
                raise
    return files


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: str) -> ArrayFile:
    what = f"{source}: {one_line(info.filename.removesuffix('.npy'))}"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadInput(f"{what}: is packed by zip method {info.compress_type}; known are stored and deflate")
    most = MAX_ARRAY_BYTES + MAX_RATIO * min(info.compress_size, archive.start_dir)
    if info.file_size > most:
        raise BadInput(f"{what}: unpacks to {info.file_size} bytes from {info.compress_size}; the limit is {most}")

    def open_member() -> BinaryIO:
        try:
            return cast("BinaryIO", archive.open(info))
        except ZIP_ERRORS as error:
            raise BadInput(f"{what}: damaged or truncated: {one_line(error)}") from error

    return npy_file(open_member, info.file_size, what)


def read_npy(data: bytes, source: str) -> NDArray[Any]:
    """Return the array of a .npy."""
    return npy_file(lambda: io.BytesIO(data), len(data), source).read()


def read_npz_arrays(data: bytes, source: str) -> dict[str, NDArray[Any]]:
    """Return all arrays of an .npz."""
    if not data.startswith(b"PK"):
        raise BadInput(f"{source}: not an .npz (a zip archive of arrays)")
    with open_zip(io.BytesIO(data), source) as archive:
        files = npz_files(archive, source)
        if sum(array.nbytes for array in files.values()) > MAX_ARRAY_BYTES:
            raise BadInput(f"{source}: arrays of over {MAX_ARRAY_BYTES} bytes")
        return {name: array.read() for name, array in files.items()}


def _skip(stream: BinaryIO, size: int, what: str) -> None:
    try:
        stream.seek(size)
    except ZIP_ERRORS as error:
        raise BadInput(f"{what}: damaged or truncated: {one_line(error)}") from error


def _read_exactly(stream: BinaryIO, size: int, what: str) -> bytes:
    data = _read_up_to(stream, size, what)
    if len(data) != size:
        raise BadInput(f"{what}: damaged or truncated: ends {size - len(data)} bytes too early")
    return data


def _read_up_to(stream: BinaryIO, size: int, what: str) -> bytes:
    parts, left = [], size
    try:
        while left and (part := stream.read(left)):
            parts.append(part)
            left -= len(part)
    except ZIP_ERRORS as error:
        raise BadInput(f"{what}: damaged or truncated: {one_line(error)}") from error
    return b"".join(parts)


def _read_header(data: bytes, what: str) -> tuple[dict[str, Any], int]:
    """Return the header of a .npy (numpy.lib.format, versions 1 to 3) and where its numbers start.

    NumPy's own reader falls back on the tokenizer for files of Python 2, which fails in more ways than one can list.
    """
    width = 2 if data[6:7] == b"\x01" else 4
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    if not data.startswith(b"\x93NUMPY") or data[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise BadInput(f"{what}: not a .npy array: {one_line(data[:12])}")
    if start > MAX_HEADER_BYTES:
        raise BadInput(f"{what}: a .npy header of {start} bytes, over the limit of {MAX_HEADER_BYTES}")
    if start > len(data):
        raise BadInput(f"{what}: not a .npy array: {one_line(data[:12])}")
    try:
        header = ast.literal_eval(data[8 + width : start].decode("utf-8").strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise BadInput(f"{what}: not a .npy array: {one_line(error)} in its header") from error
    if not isinstance(header, dict):
        raise BadInput(f"{what}: not a .npy array: its header is no dict")
    return header, start
