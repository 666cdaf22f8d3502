"""A routing file as a stream of bytes, on disk or in memory, that tells how far it was read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from topologies.errors import BadInput

HASH_PIECE = 4 * 2**20
Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the size of the file."""


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; a name that cannot be looked up is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name too long, or with a NUL byte
        return False


def check_file(path: Path) -> None:
    """Raise BadInput where a path is no file that can be read."""
    try:
        if path.is_file():
            return
        what = "no such file"
        if path.exists():
            what = "is a pipe or a device, not a file; save its content to a file first"
        elif path.is_symlink():
            what = "is a link to nowhere"
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from error
    raise BadInput(f"{path}: {what}")


@dataclass(frozen=True)
class RoutingFile:
    """What a reader reads.

    Attributes:
        source: its name, for errors.
        content: where it lies, or its bytes.
        progress: told of every piece; None where nobody listens.

    """

    source: str
    content: Path | bytes
    progress: Progress | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def open(self) -> BinaryIO:
        """Return a stream at the start of the file; raise BadInput where it cannot be read."""
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        try:
            raw = self.content.open("rb", buffering=0)
        except (OSError, ValueError) as error:
            raise BadInput(f"{self.source}: cannot be read: {error}") from error
        if self.progress is None:
            return io.BufferedReader(raw, 2**20)
        return io.BufferedReader(cast("io.RawIOBase", _Watched(raw, self.size, self.progress)), 2**20)

    def head(self, size: int) -> bytes:
        """Return the first bytes."""
        with RoutingFile(self.source, self.content).open() as stream:
            return stream.read(size)

    def read(self, limit_bytes: int) -> bytes:
        """Return all bytes; raise BadInput over the limit."""
        if self.size > limit_bytes:
            raise BadInput(f"{self.source}: {self.size} bytes, over the limit of {limit_bytes}")
        with self.open() as stream:
            return stream.read()

    def lines(self, limit_bytes: int) -> Iterator[tuple[int, bytes]]:
        """Yield (number, line) of the lines that are not blank; raise BadInput for one over the limit."""
        with self.open() as stream:
            number = 0
            while line := stream.readline(limit_bytes + 1):
                number += 1
                if len(line) > limit_bytes:
                    raise BadInput(f"{self.source}: line {number} is over the limit of {limit_bytes} bytes")
                if line.strip():
                    yield number, line

    def sha256(self) -> str:
        """Return the digest of all bytes, in hexadecimal."""
        digest = hashlib.sha256()
        with RoutingFile(self.source, self.content).open() as stream:
            while piece := stream.read(HASH_PIECE):
                digest.update(piece)
        return digest.hexdigest()


class _Watched(io.RawIOBase):
    """A raw stream that reports where it is."""

    def __init__(self, raw: io.RawIOBase | BinaryIO, size: int, progress: Progress) -> None:
        self._raw, self._size, self._progress = raw, size, progress

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move."""
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._raw.tell()

    def readinto(self, buffer: Any, /) -> int | None:
        """Read into a buffer."""
        count = cast("io.RawIOBase", self._raw).readinto(buffer)
        self._progress(self._raw.tell(), self._size)
        return count

    def close(self) -> None:
        """Close the file."""
        self._raw.close()
        super().close()
