"""Reading tables of measurements: what kind each is, by its columns, and which of its rows can be used.

Kinds (times in microseconds; further columns are kept and can be named in expressions):
    nccl      ranks, bytes_per_rank, time_us                      [system, nodes, dtype]; or what alltoall_perf prints
    deepep    ranks, nodes, tokens_per_rank, hidden, top_k, experts, dispatch_us, combine_us                  [system]
    deepep-normal  the same with dispatch_transmit_us, dispatch_notify_us, dispatch_sms, and so for combine   [system]
    trtllm    op, dtype, ranks, tokens_per_rank, hidden, top_k, experts, time_us                              [system]
    experts   ranks, tokens, hidden, intermediate, top_k, experts, distribution, time_us        [system, dtype, slots]
    executor  exchange, phase, ranks, domains, bytes_out_max, time_us   [system, tokens_per_rank, top_k, row_bytes]
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from planner.calibrate.select import select_rows
from topologies.errors import BadInput
from topologies.files import read_text
from topologies.reading import gpu_by_name

MAX_TABLE_BYTES = 64 * 2**20
MAX_COLUMNS = 1000
_EP = ("ranks", "nodes", "tokens_per_rank", "hidden", "top_k", "experts")

# kind -> (numeric columns that it needs, other columns that it needs); the first kind whose columns are all there
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "deepep-normal": ((*_EP, "dispatch_transmit_us", "combine_transmit_us"), ()),
    "deepep": ((*_EP, "dispatch_us", "combine_us"), ()),
    "executor": (("ranks", "domains", "bytes_out_max", "time_us"), ("exchange", "phase")),
    "experts": (("ranks", "tokens", "hidden", "intermediate", "top_k", "experts", "time_us"), ("distribution",)),
    "trtllm": (("ranks", "tokens_per_rank", "hidden", "top_k", "experts", "time_us"), ("op",)),
    "nccl": (("ranks", "bytes_per_rank", "time_us"), ()),
}
TIME_COLUMNS = {
    "deepep-normal": ("dispatch_transmit_us", "combine_transmit_us"),
    "deepep": ("dispatch_us", "combine_us"),
}
_OPTIONAL_NUMBERS = {
    "nodes": 1.0,
    "slots": np.nan,
    "dispatch_sms": np.nan,
    "combine_sms": np.nan,
    "dispatch_notify_us": 0.0,
    "combine_notify_us": 0.0,
    "top_groups": np.nan,
    "row_bytes": np.nan,
    "tokens_per_rank": np.nan,
    "top_k": np.nan,
}
_MAY_BE_ZERO = ("dispatch_notify_us", "combine_notify_us", "bytes_out_max")
_LARGEST = 1e15  # no count, size or time of a sane table is larger
_WHOLE = ("ranks", "nodes", "domains")
_AT_MOST = (("nodes", "ranks"), ("domains", "ranks"), ("top_k", "experts"))  # a count and what bounds it
_BYTES_SENT = ("bytes_per_rank", "bytes_out_max")
_LEAST_US, _MOST_GBPS = 0.5, 50_000.0  # no kernel launches in less, no memory of a GPU is nearly as fast
_MOST = {
    "top_k": 512.0,
    "experts": 4096.0,
    "slots": 4096.0,
    "tokens": 1e8,
    "ranks": 1e6,
}  # loads are drawn, so they must fit


@dataclass(frozen=True, eq=False)
class Table:
    """A table of measurements: its kind, its usable rows, and remarks on what was left out.

    Attributes:
        name: file name, without folders.
        kind: a key of `KINDS`.
        frame: the rows; numeric columns are floats.
        remarks: what the reader had to skip, for the user.

    """

    name: str
    kind: str
    frame: pd.DataFrame
    remarks: tuple[str, ...] = field(default=())

    def where(self, expression: str | None, *, option: str = "expression") -> Table:
        """Return the table with the rows for which an expression holds (see `select_rows`)."""
        chosen = select_rows(self.frame, expression, option=option)
        return replace(self, frame=chosen.reset_index(drop=True))


def read_table(path: str | Path) -> Table:
    """Read a CSV table or the text that nccl-tests prints.

    Rows with a missing, zero, negative or infinite number where one is needed, and rows that cannot be (more nodes than
    ranks, part of a rank), are left out, with a remark. Raises BadInput where the file is no table, has none of the
    known sets of columns, no usable row is left, or times are too short to be microseconds.
    """
    text = read_text(path, limit_bytes=MAX_TABLE_BYTES)
    name = Path(path).name
    if _is_nccl_tests(text):
        return _usable(name, "nccl", _nccl_tests(text, name))
    header = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    if header.count(",") >= MAX_COLUMNS:
        raise BadInput(f"{name}: {header.count(',') + 1} columns, over the limit of {MAX_COLUMNS}")
    try:
        frame = pd.read_csv(io.StringIO(text), skipinitialspace=True, comment="#")
    except (ValueError, pd.errors.ParserError) as error:  # EmptyDataError is a ValueError
        raise BadInput(f"{name}: not a CSV table: {' '.join(str(error).split())[:160]}") from error
    names = [str(column).strip() for column in frame.columns]
    frame.columns = pd.Index(names)
    for number, column in enumerate(names):
        first = column.removesuffix(".1") if column.removesuffix(".1") in names else column  # pandas' name for a second
        if first in names[:number]:
            raise BadInput(f"{name}: the column {first[:40]!r} stands twice")
    return _usable(name, _kind(frame, name), frame)


def _kind(frame: pd.DataFrame, name: str) -> str:
    for kind, (numbers, others) in KINDS.items():
        if set(numbers) | set(others) <= set(frame.columns):
            return kind
    best, missing = min(
        (
            (kind, [c for c in (*numbers, *others) if c not in frame.columns])
            for kind, (numbers, others) in KINDS.items()
        ),
        key=lambda entry: len(entry[1]),
    )
    commas = "; columns are told apart by commas" if len(frame.columns) == 1 else ""
    raise BadInput(
        f"{name}: the columns {', '.join(map(str, frame.columns))[:160]} are of no known table; "
        f"the nearest kind is {best}, which also needs {', '.join(missing)}{commas}"
    )


def _usable(name: str, kind: str, frame: pd.DataFrame) -> Table:
    frame = frame.copy()
    numbers = KINDS[kind][0]
    good = np.ones(len(frame), dtype=bool)
    for column in (*numbers, *_OPTIONAL_NUMBERS):
        if column not in frame.columns:
            continue
        values = _numbers(frame[column])
        if column in numbers:
            low = 0.0 if column in _MAY_BE_ZERO else np.finfo(float).tiny
            good &= np.isfinite(values) & (values >= low) & (values <= _MOST.get(column, _LARGEST))
        else:
            sane = np.isfinite(values) & (values >= 0) & (values <= _MOST.get(column, _LARGEST))
            values = values.where(sane, _OPTIONAL_NUMBERS[column])
        frame[column] = values
    if "ranks" in numbers:
        good &= (frame["ranks"] >= 2) | (kind == "experts")
    good &= _possible(frame)
    frame = frame.assign(**{c: "unknown" for c in ("system", "dtype") if c not in frame.columns})
    frame = frame.assign(**{c: frame[c].astype(object).fillna("unknown").astype(str) for c in ("system", "dtype")})
    kept = frame[good].reset_index(drop=True)
    if kept.empty:
        raise BadInput(
            f"{name}: none of its {len(frame)} rows can be used; {', '.join(numbers)} must be numbers above 0, "
            "ranks and nodes whole, ranks at least 2 and as many as nodes, experts at least top_k"
        )
    _check_units(name, kind, kept)
    skipped = len(frame) - len(kept)
    remarks = (
        (f"{name}: {skipped} of {len(frame)} rows skipped: a number is missing, not above 0 or impossible",)
        if skipped
        else ()
    )
    return Table(name, kind, kept, remarks)


def _possible(frame: pd.DataFrame) -> pd.Series[bool]:
    """Return which rows can be: whole ranks and nodes, and no count above the one that bounds it."""
    good = pd.Series(data=True, index=frame.index)
    for column in _WHOLE:
        if column in frame:
            good &= _numbers(frame[column]) % 1 == 0
    for column, bound in _AT_MOST:
        if column in frame and bound in frame:
            good &= ~(_numbers(frame[column]) > _numbers(frame[bound]))  # an optional number may be missing
    return good


def _check_units(name: str, kind: str, frame: pd.DataFrame) -> None:
    """Refuse a table whose times are too short to be microseconds: seconds or milliseconds would fit without a sign."""
    for column in TIME_COLUMNS.get(kind, ("time_us",)):
        typical_us = float(frame[column].median())
        if typical_us < _LEAST_US:
            raise BadInput(
                f"{name}: half of its {column} are at most {typical_us:.3g} microseconds, and no kernel takes less "
                f"than {_LEAST_US:g}; are they seconds or milliseconds?"
            )
        for sent in _BYTES_SENT:
            gbps = float((frame[sent] / frame[column]).median()) / 1e3 if sent in frame else 0.0
            if gbps > _MOST_GBPS:
                raise BadInput(
                    f"{name}: {sent} over {column} is {gbps:,.0f} GB/s for half of its rows, and no link carries "
                    f"{_MOST_GBPS:,.0f}; is the time in milliseconds?"
                )


def _numbers(column: pd.Series[Any]) -> pd.Series[float]:
    """Return a column as floats, NaN where it holds something else."""
    try:
        return pd.to_numeric(column, errors="coerce").astype(float)
    except OverflowError:  # an integer of hundreds of digits
        return pd.to_numeric(column.astype(str).where(column.astype(str).str.len() < 300), errors="coerce").astype(
            float
        )


_NUMBER = r"\s+([0-9]+\.?[0-9]*)"
_DATA_LINE = re.compile(rf"^\s*([0-9]+)\s+([0-9]+)\s+([a-z]\w*)\s+(\S+)\s+(-?[0-9]+){_NUMBER * 3}\s+(\S+)", re.ASCII)
_RANK_LINE = re.compile(r"^#\s+Rank\s+(\d+)\s.*?\son\s+(\S+)\s+device\s+\d+\s+\[[^\]]*\]\s+(.+?)\s*$")
_THREADS = re.compile(r"nThread\s+(\d+)\s+nGpus\s+(\d+)")


def _is_nccl_tests(text: str) -> bool:
    head = text[:20000]
    return (
        "algbw" in head
        and "busbw" in head
        and "size" in head
        and "," not in text.split("algbw", maxsplit=1)[0].splitlines()[-1]
    )


def _nccl_tests(text: str, name: str) -> pd.DataFrame:
    """Read what `alltoall_perf` prints: rank lines and a table for each run; runs may follow each other."""
    rows: list[dict[str, object]] = []
    ranks: dict[int, tuple[str, str]] = {}
    threads = 1
    in_data = False
    for line in text.splitlines():
        if found := _THREADS.search(line):
            threads, ranks, in_data = int(found[1]) * int(found[2]), {}, False
        elif found := _RANK_LINE.match(line):
            if in_data:
                ranks, in_data = {}, False
            ranks[int(found[1])] = (found[2], found[3])
        elif found := _DATA_LINE.match(line):
            in_data = True
            rows.append(_nccl_row(found, ranks, threads))
    if not rows:
        raise BadInput(f"{name}: looks like nccl-tests output but has no line of results")
    return pd.DataFrame(rows)


def _nccl_row(found: re.Match[str], ranks: dict[int, tuple[str, str]], threads: int) -> dict[str, object]:
    algbw, busbw = float(found[7]), float(found[8])
    count = len(ranks) or threads
    if count == 1 and algbw > busbw > 0:  # several processes that printed no rank lines: busbw = algbw (n - 1) / n
        count = round(1 / (1 - busbw / algbw))
    device = next(iter(ranks.values()), ("", ""))[1]
    return {
        "system": gpu_token(device),
        "ranks": count,
        "nodes": len({host for host, _ in ranks.values()}) or 1,
        "dtype": found[3],
        "bytes_per_rank": float(found[1]),
        "time_us": float(found[6]),
    }


def gpu_token(device: str) -> str:
    """Return the short name of a GPU (h100, a100, gb200) from what nvidia-smi prints; "unknown" without one."""
    key = gpu_by_name(device)
    return "unknown" if key is None else key.split("-", maxsplit=1)[0]
