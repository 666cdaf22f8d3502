"""Where output goes: results on stdout, all else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console

WIDTH_OFF_TERMINAL = 160  # tables keep their columns when piped into a file or a pager


def results() -> Console:
    """Return a console on stdout; plain text of a fixed width when stdout is no terminal."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH_OFF_TERMINAL, highlight=False)


def messages() -> Console:
    """Return a console on stderr, for progress, warnings and errors."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """Print one JSON document on stdout; NaN and infinity are refused, as they are no JSON."""
    click.echo(json.dumps(document, indent=2, allow_nan=False))


@contextmanager
def progress(task: str, total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Yield what to call with the number done; where shown, as a display on stderr that leaves nothing behind."""
    if not shown:
        yield lambda _: None
        return
    from rich.progress import (  # noqa: PLC0415 - loaded where something takes its time
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=messages(), transient=True) as display:
        number = display.add_task(task, total=total)
        yield lambda done: display.update(number, completed=done)


@contextmanager
def byte_progress(task: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what to call with the bytes done and their total; a display on stderr where that is a terminal."""
    console = messages()
    if not console.is_terminal:
        yield lambda _, __: None
        return
    from rich.progress import (  # noqa: PLC0415 - loaded where something takes its time
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as display:
        number = display.add_task(task, total=None)
        yield lambda done, total: display.update(number, completed=done, total=total)
