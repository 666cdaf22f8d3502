"""Where output goes: results on stdout, all else on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

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


def progress() -> Progress:
    """Return a progress display on stderr that leaves nothing behind."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=messages(),
        transient=True,
    )
