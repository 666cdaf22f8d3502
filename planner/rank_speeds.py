"""Ranks of different speed or memory, as a file says it.

CSV with a header, or a YAML list of the same fields; ranks that it does not name have full speed and the common slots:

    rank,speed,slots
    3,0.8,
    7,1,6
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from topologies import BadInput, Cluster
from topologies.cluster_file import parse_yaml
from topologies.files import read_text

MAX_BYTES = 2**20
FIELDS = ("rank", "speed", "slots")
MAX_SPEED = 100.0


@dataclass(frozen=True)
class RankSpeeds:
    """What a file says of some ranks.

    Attributes:
        speed: computing speed of a rank, as a part of what its GPU's figures say.
        slots: slots of a rank that has another number of them than the others.

    """

    speed: Mapping[int, float]
    slots: Mapping[int, int]

    def applied(self, cluster: Cluster) -> Cluster:
        """Return the cluster with these speeds; raises BadInput for a rank that it does not have."""
        unknown = sorted(rank for rank in {*self.speed, *self.slots} if rank >= cluster.num_ranks)
        if unknown:
            raise BadInput(f"rank speeds: rank {unknown[0]} is not in 0..{cluster.num_ranks - 1} of {cluster.name}")
        return cluster.with_speeds(self.speed.get(rank, 1.0) for rank in range(cluster.num_ranks))


def load_rank_speeds(path: str | Path) -> RankSpeeds:
    """Read a file of ranks, speeds and slots; raises BadInput that names the entry."""
    text = read_text(path, limit_bytes=MAX_BYTES)
    entries = _yaml_entries(text, str(path)) if Path(path).suffix in (".yaml", ".yml") else _csv_entries(text, path)
    speed: dict[int, float] = {}
    slots: dict[int, int] = {}
    for where, entry in entries:
        rank = _whole(entry.get("rank"), f"{where}: rank")
        if rank in speed:
            raise BadInput(f"{where}: rank {rank} is named twice")
        speed[rank] = _speed(entry.get("speed"), f"{where}: speed of rank {rank}")
        if entry.get("slots") not in (None, ""):
            slots[rank] = _whole(entry["slots"], f"{where}: slots of rank {rank}")
    return RankSpeeds(speed, slots)


def _csv_entries(text: str, path: str | Path) -> Iterable[tuple[str, Mapping[str, object]]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    reader = csv.reader(io.StringIO("\n".join(lines)))
    header = [name.strip() for name in next(reader, [])]
    _check_fields(header, f"{path}: header", exact=True)
    for number, cells in enumerate(reader, start=1):
        if len(cells) > len(header):
            raise BadInput(f"{path}: entry {number}: {len(cells)} values for the {len(header)} of the header")
        yield f"{path}: entry {number}", dict(zip(header, (cell.strip() for cell in cells), strict=False))


def _yaml_entries(text: str, path: str) -> Iterable[tuple[str, Mapping[str, object]]]:
    document = parse_yaml(text, path)
    if not isinstance(document, list):
        raise BadInput(f"{path}: not a list of entries such as {{rank: 3, speed: 0.8, slots: 7}}")
    for number, entry in enumerate(document, start=1):
        if not isinstance(entry, dict):
            raise BadInput(f"{path}: entry {number}: not of the form {{rank: 3, speed: 0.8, slots: 7}}")
        _check_fields(map(str, entry), f"{path}: entry {number}")
        yield f"{path}: entry {number}", {str(name): value for name, value in entry.items()}


def _check_fields(names: Iterable[str], where: str, *, exact: bool = False) -> None:
    names = list(names)
    strange = [name for name in names if name not in FIELDS]
    if strange or "rank" not in names or len(set(names)) < len(names) or (exact and "speed" not in names):
        raise BadInput(f"{where}: has {', '.join(names)[:80]!r}; expected rank, speed and, if they differ, slots")


def _whole(value: object, where: str) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if number < 0 or isinstance(value, bool):
        raise BadInput(f"{where} is {str(value)[:40]!r}, not a whole number from 0")
    return number


def _speed(value: object, where: str) -> float:
    try:
        speed = 1.0 if value in (None, "") else float(str(value))
    except ValueError:
        speed = math.nan
    if not 0 < speed <= MAX_SPEED or isinstance(value, bool):
        raise BadInput(f"{where} is {str(value)[:40]!r}, not a number above 0, up to {MAX_SPEED:g}")
    return speed
