"""Parquet with the columns of our CSV (`layer`, `expert`, `count`, optional `source` and `step`), read in batches.

Needs pyarrow, which epplan does not install by itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.readers.listed import LIMITS, OPTIONAL, PIECE_ROWS, REQUIRED, Listed
from planner.readers.raw import MAX_COUNT, RawRouting, one_line
from planner.readers.source import RoutingFile
from topologies.errors import BadInput


def read_parquet(file: RoutingFile) -> RawRouting:
    """Return the counts of a Parquet file; raise BadInput where it is wrong, or pyarrow is not installed."""
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")  # optional, and slow to load
    except ImportError as error:
        raise BadInput(f"{file.source}: a Parquet file; reading it needs pyarrow (pip install pyarrow)") from error
    with file.open() as stream:
        try:
            table = parquet.ParquetFile(stream)
            names = table.schema_arrow.names
            _check_columns(names, file.source)
            return _read(table.iter_batches(PIECE_ROWS, columns=names), [n for n in names if n != "count"], file.source)
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise BadInput(f"{file.source}: damaged Parquet file: {one_line(error)}") from error


def _check_columns(names: list[str], source: str) -> None:
    missing = [name for name in REQUIRED if name not in names]
    unknown = [name for name in names if name not in REQUIRED + OPTIONAL]
    if missing or unknown or len(set(names)) != len(names):
        problem = f"no column {missing[0]}" if missing else f"column {one_line(unknown[0] if unknown else names, 40)!r}"
        raise BadInput(f"{source}: {problem}; the columns are layer, expert, count and, if known, source and step")


def _read(batches: Any, names: list[str], source: str) -> RawRouting:
    listed, rows = Listed(source, names), 0
    for batch in batches:
        number_N = rows + np.arange(batch.num_rows)
        rows += batch.num_rows
        if not batch.num_rows:
            continue
        column = {name: _indices(batch.column(name), name, f"{source}: {name}", number_N) for name in names}
        counts = _numbers(batch.column("count"), f"{source}: count").astype(np.float64)
        wrong = ~((counts >= 0) & (counts <= MAX_COUNT))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise BadInput(f"{source}: row {number_N[at]}: count = {counts[at]:g} is not a finite number of at least 0")
        listed.add(column, counts, number_N)
    return listed.result()


def _indices(values: Any, name: str, what: str, number_N: NDArray[np.int64]) -> NDArray[np.int64]:
    array = _numbers(values, what)
    if array.dtype.kind not in "iu":
        raise BadInput(f"{what}: holds {array.dtype}, not integers")
    wrong = (array < 0) | (array > LIMITS[name])
    if wrong.any():
        at = int(np.argmax(wrong))
        raise BadInput(f"{what}: row {number_N[at]}: {array[at]} is not an integer from 0 to {LIMITS[name]}")
    return array.astype(np.int64)


def _numbers(values: Any, what: str) -> NDArray[Any]:
    if values.null_count:
        raise BadInput(f"{what}: holds {values.null_count} empty values")
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    if array.dtype.kind not in "iuf":
        raise BadInput(f"{what}: holds {array.dtype}, not numbers")
    return array
