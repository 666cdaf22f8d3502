"""CSV with a header: `layer`, `expert`, `count`, optional `source` (the source rank) and `step` (steps are summed).

The order of the columns is free; they are parted by commas, semicolons or tabs. Blank lines and lines that start with
`#` are skipped. Experts that are not listed have no counts; the same indices may not come twice.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator

import numpy as np

from planner.readers.raw import MAX_COUNT, MAX_EXPERTS, RawRouting, decode, refuse_huge
from topologies.errors import BadInput

REQUIRED = ("layer", "expert", "count")
OPTIONAL = ("source", "step")
LIMITS = {"layer": 99_999, "expert": MAX_EXPERTS, "source": 99_999, "step": 2**31 - 1}
"""The largest value of each column of indices."""


def read_csv(data: bytes, source: str, formats: str) -> RawRouting:
    """Return the counts of a CSV file.

    Args:
        data: its bytes.
        source: the file to name in errors.
        formats: what else the file could have been, for the error where it has no header of ours.

    """
    lines = _content_lines(decode(data, source))
    first = next(lines, None)
    if first is None:
        raise BadInput(f"{source}: no lines but comments")
    delimiter = max(",;\t", key=first[1].count)
    columns = [name.strip().strip('"').lower() for name in first[1].split(delimiter)]
    _check_header(columns, source, formats)
    table: dict[tuple[int, ...], float] = {}
    keys: list[str] = [name for name in ("layer", "source", "expert", "step") if name in columns]
    for number, row in _rows(lines, delimiter, source):
        where = f"{source}: line {number}"
        if len(row) != len(columns):
            raise BadInput(f"{where}: {len(row)} fields, the header has {len(columns)}")
        fields = dict(zip(columns, row, strict=True))
        key = tuple(_index(fields[name], name, where) for name in keys)
        if key in table:
            named = ", ".join(f"{name} {value}" for name, value in zip(keys, key, strict=True))
            raise BadInput(f"{where}: {named} comes twice")
        table[key] = _count(fields["count"], where)
    if not table:
        raise BadInput(f"{source}: a header and no counts")
    return _assemble(table, keys, source)


def _content_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of the lines that are neither blank nor comments."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def _rows(lines: Iterable[tuple[int, str]], delimiter: str, source: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines:
        try:
            yield number, next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True))
        except csv.Error as error:
            raise BadInput(f"{source}: line {number}: {error}") from error


def _check_header(columns: list[str], source: str, formats: str) -> None:
    if not set(columns) & set(REQUIRED):
        raise BadInput(f"{source}: not a known routing format; known: {formats}")
    missing = [name for name in REQUIRED if name not in columns]
    unknown = [name for name in columns if name not in REQUIRED + OPTIONAL]
    if missing or unknown or len(set(columns)) != len(columns):
        problem = (
            f"no column {missing[0]}" if missing else f"column {unknown[0][:40]!r}" if unknown else "a column twice"
        )
        raise BadInput(f"{source}: {problem}; the header names layer, expert, count and, if known, source and step")


def _index(text: str, name: str, where: str) -> int:
    stripped = text.strip()
    if not (stripped.isascii() and stripped.isdecimal() and len(stripped) <= 10 and int(stripped) <= LIMITS[name]):
        raise BadInput(f"{where}: {name} = {text[:40]!r} is not an integer from 0 to {LIMITS[name]}")
    return int(stripped)


def _count(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MAX_COUNT:  # refuses NaN, too
        raise BadInput(f"{where}: count = {text[:40]!r} is not a finite number of at least 0")
    return value


def _assemble(table: dict[tuple[int, ...], float], keys: list[str], source: str) -> RawRouting:
    index = np.array(list(table), dtype=np.int64)
    column = {name: index[:, i] for i, name in enumerate(keys)}
    layers, row = np.unique(column["layer"], return_inverse=True)
    origin = column.get("source", np.zeros(len(index), dtype=np.int64))
    shape = (len(layers), int(origin.max()) + 1, int(column["expert"].max()) + 1)
    refuse_huge(shape, f"{source}: counts")
    counts = np.zeros(shape)
    np.add.at(counts, (row, origin, column["expert"]), np.array(list(table.values())))
    return RawRouting(counts=counts, layers=tuple(int(layer) for layer in layers), listed=True)
