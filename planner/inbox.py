"""A folder in which statistics arrive: what is new, what is whole, and what has been dealt with.

An entry is a file, or a folder with the files of all ranks of one recording. It is whole once nothing of it has changed
for a while. The newest counts: what is older than the last one that was taken says nothing that is still needed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from topologies.errors import BadInput

PASSING = (
    ".tmp",
    ".temp",
    ".part",
    ".partial",
    "~",
)  # ends of names that programs give to files which they still write

Signature = tuple[tuple[str, int, int], ...]  # (name, bytes, nanoseconds of the last change) of each file


@dataclass(frozen=True)
class Arrival:
    """An entry as it was found."""

    path: Path
    signature: Signature

    @property
    def age_key(self) -> tuple[int, str]:
        """Order of arrival: by the last change, then by name."""
        return max(changed for _, _, changed in self.signature), self.path.name

    @property
    def is_unchanged(self) -> bool:
        """Return whether it is still as it was found."""
        return signature_of(self.path) == self.signature


@dataclass(frozen=True)
class Look:
    """What a look into the folder found: whole entries, the newest first, and those that are still being written."""

    whole: tuple[Arrival, ...]
    waiting: tuple[Arrival, ...]


class Inbox:
    """The entries of a folder, over time."""

    def __init__(self, folder: Path, settle_s: float, ignored: Collection[Path] = ()) -> None:
        """Watch `folder`; an entry is whole after `settle_s` seconds without a change, and no entry if `ignored`."""
        self._folder, self._settle_s = folder, settle_s
        self._ignored = {path.resolve() for path in ignored}
        self._since: dict[Arrival, float] = {}
        self._refused: set[Arrival] = set()
        self._taken_key = (-1, "")

    def look(self, now_s: float, wall_s: float) -> Look:
        """Return what is there that is newer than what was taken, and has not been refused as it is.

        `now_s` is a clock that never jumps (`time.monotonic()`), `wall_s` that of files (`time.time()`): a file that
        lies there since before the first look need not be waited for. Raises BadInput where the folder is gone.
        """
        there = [one for one in self._entries() if one.age_key > self._taken_key and one not in self._refused]
        self._since = {one: self._since.get(one, now_s) for one in there}
        whole: list[Arrival] = []
        waiting: list[Arrival] = []
        for one in there:
            rests_s = max(now_s - self._since[one], wall_s - one.age_key[0] / 1e9)
            empty = not any(size for _, size, _ in one.signature)
            (waiting if empty or rests_s < self._settle_s else whole).append(one)
        return Look(tuple(sorted(whole, key=lambda one: one.age_key, reverse=True)), tuple(waiting))

    def take(self, arrival: Arrival) -> None:
        """Be done with an entry and all that is older."""
        self._taken_key = max(self._taken_key, arrival.age_key)

    def refuse(self, arrival: Arrival) -> None:
        """Show an entry no more until it changes."""
        self._refused.add(arrival)

    def _entries(self) -> Iterator[Arrival]:
        try:
            paths = sorted(self._folder.iterdir())
        except OSError as error:
            raise BadInput(f"{self._folder}: cannot be watched: {error.strerror}") from error
        for path in paths:
            if path.name.startswith(".") or path.name.endswith(PASSING) or path.resolve() in self._ignored:
                continue
            if signature := signature_of(path):
                yield Arrival(path, signature)


def signature_of(path: Path) -> Signature:
    """Return what tells that a file, or a file in a folder, has changed; empty where there is none."""
    try:
        files = [path] if path.is_file() else [Path(one.path) for one in os.scandir(path) if one.is_file()]
        stats = [(file.name, file.stat()) for file in sorted(files)]
    except OSError:  # it went away while we looked
        return ()
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
