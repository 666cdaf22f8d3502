"""`make bench`: what scripts print becomes rows, and a page that says when and on what it was measured."""

from __future__ import annotations

import importlib.util

from benchmarks.all import BENCHMARKS, page, tables

PRINTED = """\
some words
| plan | ms |
|---|---|
| a | 1.5 |
| b | 2 |

### more
| x |
|---|
| 7 |
"""


def test_tables_become_rows():
    assert list(tables(PRINTED)) == [[{"plan": "a", "ms": "1.5"}, {"plan": "b", "ms": "2"}], [{"x": "7"}]]


def test_every_benchmark_is_a_script():
    assert all(importlib.util.find_spec(f"benchmarks.{one.name}") for one in BENCHMARKS)


def test_the_page_tells_what_was_measured_when_and_what_was_not():
    result = {
        "benchmark": "peers",
        "command": "python -m benchmarks.peers",
        "date": "2026-11-21 17:16 UTC",
        "machine": {"processor": "a CPU", "cores": 2, "memory_gib": 23.5, "python": "3.11.7"},
        "load_before": 0.4,
        "seconds": 3,
        "exit_code": 1,
        "printed": PRINTED,
    }
    text = page([result])
    assert "2026-11-21 17:16 UTC, 3 s; 2 cores of a CPU, 23.5 GiB, load average before it 0.4" in text
    assert "It failed (exit code 1)" in text
    assert "| a | 1.5 |" in text
    assert text.count("Not measured yet") == len(BENCHMARKS) - 1
