"""The one exception tree of the project.

    EpplanError
    ├── BadInput      the user's input is wrong: one line that names the culprit, both values and the fix; exit code 2
    ├── Infeasible    the request cannot be met: which constraint, by how much, the nearest feasible change; exit code 1
    └── exit code 1, from a job that runs:
        ├── RankFailed      a rank raised, died or hung            executor.failures
        ├── GuardError      ranks disagree about a collective      executor.guard
        └── NotConforming   what runs is not the plan              executor.conformance

Anything else that leaves a public function is a bug of ours and keeps its traceback.
It lives in the lowest package because every other one raises it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_SHOWN = 100
"""Characters of a wrong name that an error repeats."""


class EpplanError(Exception):
    """Base of everything that epplan raises on purpose; its text is one line for the user."""

    exit_code = 2


class BadInput(EpplanError):
    """A file, name or number that the user gave is wrong."""

    exit_code = 2


class Infeasible(EpplanError):
    """The request is well formed but has no solution."""

    exit_code = 1


def unknown_name(kind: str, name: str, known: Iterable[str]) -> BadInput:
    """Build the error for a name that is not in a list, with the nearest names that are.

    >>> str(unknown_name("model", "mixtrl", ["mixtral", "qwen3"]))
    "unknown model 'mixtrl'; nearest: mixtral; known: mixtral, qwen3"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    shown = name if len(name) <= MAX_SHOWN else name[: MAX_SHOWN - 3] + "..."
    return BadInput(f"unknown {kind} {shown!r}{hint}; known: {', '.join(names)}")
