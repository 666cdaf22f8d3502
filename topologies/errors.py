"""The one exception tree of the project.

    EpplanError
    ├── BadInput      the user's input is wrong: one line that names the culprit, both values and the fix; exit code 2
    ├── Infeasible    the request cannot be met: which constraint, by how much, the nearest feasible change; exit code 1
    ├── SolverFault   the search returned what is no plan (planner.solve.verify); nothing is written; exit code 1
    └── exit code 1, from a job that runs:
        ├── RankFailed      a rank raised, died or hung            executor.failures
        ├── RankLost        the same, as the other ranks see it    executor.failures
        ├── GuardError      ranks disagree about a collective      executor.guard
        ├── NotConforming   what runs is not the plan              executor.conformance
        ├── BadRouting      a router gave no expert, or no number  executor.deployment
        └── NotSaved        a rank could not write a checkpoint    executor.checkpoint

Anything else that leaves a public function is a bug of ours and keeps its traceback.
It lives in the lowest package because every other one raises it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_SHOWN = 100
"""Characters of a wrong name that an error repeats."""

MAX_TEXT = 1000
"""Characters of an error's text; of a longer one the middle goes."""


class EpplanError(Exception):
    """Base of everything that epplan raises on purpose; its text is one line for the user.

    What an error repeats of a file may hold anything: line breaks, letters that move a terminal's cursor, half a pair
    of surrogates. So the text is made one printable line of bounded length here, whoever raises it.
    """

    exit_code = 2

    def __init__(self, text: str = "") -> None:
        super().__init__(printable(text))


def printable(text: str) -> str:
    r"""Return a text as one line: white space as single blanks, all else that does not print as an escape.

    >>> printable("a\n b\x1b[2J\ud800")
    'a b\\x1b[2J\\ud800'
    """
    line = " ".join(text.split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line[: MAX_TEXT * 50])
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT // 2 - 3]} ... {line[2 - MAX_TEXT // 2 :]}"


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
