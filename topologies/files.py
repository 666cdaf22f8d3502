"""Reading untrusted files within limits, and writing files whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import Literal

from topologies.errors import BadInput

MAX_TEXT_BYTES = 64 * 2**20


def read_bytes(path: str | Path, *, limit_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Return the content of a file; raise BadInput if it is missing, not a file, unreadable or over the limit."""
    path = Path(path)
    try:
        if not path.is_file():
            raise BadInput(f"{path}: {_what_it_is(path)}")
        size = path.stat().st_size
        if size > limit_bytes:
            raise BadInput(f"{path}: {size} bytes, over the limit of {limit_bytes} bytes for this kind of file")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise BadInput(f"{path}: cannot be read: {error}") from error


def _what_it_is(path: Path) -> str:
    """Say why a path is no file to read."""
    if path.is_dir():
        return "is a directory, not a file"
    if path.exists():
        return "is a pipe or a device, not a file; save its content to a file first"
    return "is a link to nowhere" if path.is_symlink() else "no such file"


def what_is_there(path: str | Path) -> Literal["file", "folder", "other", ""]:
    """Return what a path leads to; empty where it leads nowhere, as one that is too long or holds a NUL byte does."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return ""
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def read_text(path: str | Path, *, limit_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return the content of a UTF-8 text file, with or without a byte order mark.

    Raises BadInput as `read_bytes` does, and on other encodings.
    """
    try:
        return read_bytes(path, limit_bytes=limit_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x})") from error


def refuse_overwriting(output: str | Path | None, *inputs: str | Path) -> None:
    """Raise BadInput where a file to be written, if any, is one that is read: nobody wants to lose that."""
    if output is None or what_is_there(output) != "file":
        return
    for read in inputs:
        if what_is_there(read) == "file" and Path(output).samefile(read):
            raise BadInput(f"{output}: is {read}, which is read here, and would be overwritten; choose another name")


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all, as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all: into a temporary file beside it, then renamed over it.

    A link is followed, and what is no regular file (a pipe, /dev/stdout) is written to, never replaced.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise BadInput(f"{path}: is a directory; name a file to write")
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        if path.is_symlink():
            path = path.resolve(strict=path.exists())
            if path.is_symlink():  # a circle, which Python names from 3.13 on only where the path has to exist
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL byte; RuntimeError: links in a circle
        raise BadInput(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp makes files private; a plan is shared like any other output
        Path(temporary).replace(path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from error
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
