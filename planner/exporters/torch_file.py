"""PyTorch's zip format, written without PyTorch: an array, or a dict of arrays by name.

The format (torch/serialization.py of PyTorch 1.6 and later): a zip archive of `archive/data.pkl`, a pickle in which
each tensor is a call of `torch._utils._rebuild_tensor_v2` on a storage named by ("storage", type, key, "cpu",
elements), and of the storages' raw bytes in `archive/data/KEY`, unpacked. `planner.readers.torch_zip` reads it.
"""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
from numpy.typing import NDArray

from topologies.errors import BadInput

STORAGES = {"<i4": "IntStorage", "<i8": "LongStorage", "<f4": "FloatStorage", "<f8": "DoubleStorage"}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same tensors make the same file


def torch_file(content: NDArray[np.generic] | dict[str, NDArray[np.generic]]) -> bytes:
    """Return a file that `torch.load(file, weights_only=True)` reads as a tensor, or a dict of tensors.

    Raises BadInput for arrays of other types than int32, int64, float32 and float64.
    """
    arrays = list(content.values()) if isinstance(content, dict) else [content]
    if isinstance(content, dict):
        items = b"".join(_text(name) + _tensor(array, key) for key, (name, array) in enumerate(content.items()))
        body = b"}(" + items + b"u"
    else:
        body = _tensor(content, 0)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        members = {"data.pkl": b"\x80\x02" + body + b".", "byteorder": b"little", "version": b"3\n"}
        members |= {f"data/{key}": np.ascontiguousarray(array).tobytes() for key, array in enumerate(arrays)}
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}", _EPOCH), data)
    return stream.getvalue()


def _tensor(array: NDArray[np.generic], key: int) -> bytes:
    """Return the pickle of _rebuild_tensor_v2(storage, 0, size, stride, False, OrderedDict())."""
    kind = STORAGES.get(array.dtype.str)
    if kind is None:
        raise BadInput(f"an array of {array.dtype} has no place in a torch file; known: {', '.join(STORAGES)}")
    strides = [step // array.itemsize for step in np.ascontiguousarray(array).strides]
    place = _text(str(key)) + _text("cpu") + _number(array.size)
    storage = b"(" + _text("storage") + _name("torch", kind) + place + b"t"
    arguments = storage + b"Q" + _number(0) + _tuple(array.shape) + _tuple(strides) + b"\x89" + _ordered_dict()
    return _name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def _ordered_dict() -> bytes:
    return _name("collections", "OrderedDict") + b")R"


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if value < 2**31 else b"\x8a\x08" + struct.pack("<q", value)


def _tuple(values: tuple[int, ...] | list[int]) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"
