"""CSV with a header: `layer`, `expert`, `count`, optional `source` (the source rank) and `step` (steps are summed).

The order of the columns is free; they are parted by commas, semicolons or tabs. Blank lines and lines that start with
`#` are skipped. Experts that are not listed have no counts; the same indices may not come twice. The file is read in
pieces: see `planner.readers.listed` for what is kept.
"""

from __future__ import annotations

import codecs
import csv
import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from planner.readers.listed import LIMITS, OPTIONAL, PIECE_ROWS, REQUIRED, Listed
from planner.readers.plain_tables import rows_of
from planner.readers.raw import MAX_COUNT, RawRouting
from planner.readers.source import RoutingFile
from topologies.errors import BadInput

MAX_LINE_BYTES = 2**20


def read_csv(file: RoutingFile, formats: str) -> RawRouting:
    """Return the counts of a CSV file.

    Args:
        file: the file.
        formats: what else it could have been, for the error where it has no header of ours.

    """
    source = file.source
    lines = _content_lines(file)
    first = next(lines, None)
    if first is None:
        raise BadInput(f"{source}: no lines but comments")
    header = _decoded(*first, source)
    delimiter = max(",;\t", key=header.count)
    columns = [name.strip().strip('"').lower() for name in header.split(delimiter)]
    _check_header(columns, source, formats)
    names: list[str] = [name for name in ("layer", "source", "expert", "step") if name in columns]
    listed = Listed(source, names)
    while piece := list(itertools.islice(lines, PIECE_ROWS)):
        column = _plain(piece, columns) if delimiter == "," else None
        column = column or _parsed(piece, delimiter, columns, source)
        indices = {name: column[name].astype(np.int64) for name in names}
        listed.add(indices, column["count"], np.array([number for number, _ in piece]))
    return listed.result()


def _content_lines(file: RoutingFile) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) of the lines that are neither blank nor comments."""
    for number, line in file.lines(MAX_LINE_BYTES):
        if not line.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"#"):
            yield number, line


def _decoded(number: int, line: bytes, source: str) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise BadInput(f"{source}: line {number}: not UTF-8 text (byte 0x{byte:02x})") from error


def _plain(piece: list[tuple[int, bytes]], columns: list[str]) -> dict[str, NDArray[np.float64]] | None:
    """Return the columns of rows of plain integers within the limits; None for any other rows."""
    table = rows_of([line for _, line in piece], len(columns))
    if table is None or any(table[:, i].max() > LIMITS[name] for i, name in enumerate(columns) if name in LIMITS):
        return None
    return dict(zip(columns, table.T, strict=True))


def _parsed(
    piece: list[tuple[int, bytes]], delimiter: str, columns: list[str], source: str
) -> dict[str, NDArray[np.float64]]:
    """Return the columns of rows, field by field; raise BadInput naming the first wrong line."""
    found: dict[str, list[float]] = {name: [] for name in columns}
    for number, line in piece:
        where = f"{source}: line {number}"
        row = _fields(_decoded(number, line, source), delimiter, where)
        if len(row) != len(columns):
            raise BadInput(f"{where}: {len(row)} fields, the header has {len(columns)}")
        for name, text in zip(columns, row, strict=True):
            found[name].append(_count(text, where) if name == "count" else _index(text, name, where))
    return {name: np.array(values, dtype=np.float64) for name, values in found.items()}


def _fields(line: str, delimiter: str, where: str) -> list[str]:
    if '"' not in line:
        return line.rstrip("\r\n").split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise BadInput(f"{where}: {error}") from error


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
