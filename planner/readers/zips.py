"""Members of untrusted zip files, within limits."""

from __future__ import annotations

import struct
import zipfile
import zlib
from typing import BinaryIO

from planner.readers.raw import one_line
from topologies.errors import BadInput

ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError,
    OverflowError, KeyError, IndexError, MemoryError,
)  # fmt: skip


def open_zip(stream: BinaryIO, source: str) -> zipfile.ZipFile:
    """Return the opened archive; raise BadInput if it is damaged."""
    try:
        return zipfile.ZipFile(stream)
    except ZIP_ERRORS as error:
        raise BadInput(f"{source}: damaged or truncated zip archive: {one_line(error)}") from error


def read_member(archive: zipfile.ZipFile, name: str, source: str, *, limit_bytes: int) -> bytes:
    """Return one member; raise BadInput if it is missing, damaged, oddly packed or declares more than `limit_bytes`."""
    shown = one_line(name)
    try:
        info = archive.getinfo(name)
    except KeyError as error:
        raise BadInput(f"{source}: no member {shown} in the archive") from error
    if info.file_size > limit_bytes:
        raise BadInput(f"{source}: {shown} unpacks to {info.file_size} bytes, over the limit of {limit_bytes}")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadInput(f"{source}: {shown} is packed by zip method {info.compress_type}; known are stored and deflate")
    try:
        data = archive.read(info)
    except ZIP_ERRORS as error:
        raise BadInput(f"{source}: {shown}: damaged or truncated: {one_line(error)}") from error
    if len(data) != info.file_size:
        raise BadInput(f"{source}: {shown}: holds {len(data)} bytes, declares {info.file_size}")
    return data
