"""What went wrong on which rank, in words: exceptions, deaths by signal, and where a hung rank stands."""

from __future__ import annotations

import linecache
import re
import signal
import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from topologies.errors import EpplanError

_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))
MAX_SHOWN = 300
"""Characters of an exception's text that the headline repeats; its notes have all of it."""


class RankFailed(EpplanError):
    """A rank raised, died or hung; the text names it in one line, the notes carry tracebacks and stacks."""

    exit_code = 1


class RankLost(EpplanError):
    """A collective failed; the text, on every rank that is left, names the rank that is to blame for it."""

    exit_code = 1


@dataclass(frozen=True)
class Failure:
    """How one rank failed.

    Attributes:
        what: "raised ValueError: boom", "was killed by SIGKILL", "exited with code 3".
        when: `time.monotonic()` of an exception, 0 of a death: ranks that die take others with them.
        traceback: of an exception, else empty.
        error: the exception itself where it is one of ours, to be passed on as it is.

    """

    rank: int
    what: str
    when: float = 0.0
    traceback: str = ""
    error: EpplanError | None = None

    @classmethod
    def of_exception(cls, rank: int, error: BaseException, when: float) -> Failure:
        """Describe an exception where it was caught."""
        text = " ".join(str(error).split())
        frames = [
            f'  File "{f.filename}", line {f.lineno} in {f.name}' for f in traceback.extract_tb(error.__traceback__)
        ]
        place = where(reversed(frames))
        shown = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
        what = f"raised {type(error).__name__}{': ' + shown if shown else ''}{' at ' + place if place else ''}"
        ours = error if isinstance(error, EpplanError) else None
        return cls(rank, what, when, "".join(traceback.format_exception(error)), ours)

    @classmethod
    def of_exit(cls, rank: int, exitcode: int | None) -> Failure:
        """Describe a process that ended without an answer."""
        if exitcode is not None and exitcode < 0:
            return cls(rank, f"was killed by {signal.Signals(-exitcode).name}")
        return cls(rank, f"exited with code {exitcode}")


def where(frames: Iterable[str]) -> str:
    """Return the first place outside the libraries, as file:line, function and the call that stands there.

    Args:
        frames: lines as faulthandler writes them, innermost first.

    """
    found = [match for frame in frames if (match := _FRAME.match(frame))]
    ours = next((match for match in found if not match[1].startswith(_LIBRARIES)), found[0] if found else None)
    if ours is None:
        return ""
    line = linecache.getline(ours[1], int(ours[2])).strip()
    return f"{Path(ours[1]).name}:{ours[2]} in {ours[3]}{': ' + line if line else ''}"


def rank_failed(
    failures: Iterable[Failure], stacks: Mapping[int, str], world_size: int, timeout_s: float
) -> EpplanError:
    """Return the exception to raise for a run that did not end well.

    Args:
        failures: of the ranks that raised or died.
        stacks: of the ranks that were still at work: their stacks as faulthandler wrote them, empty where it could not.
        world_size: ranks of the run.
        timeout_s: time that the run had.

    """
    ordered = sorted(failures, key=lambda failure: (failure.when, failure.rank))
    if ordered and ordered[0].error is not None:
        return ordered[0].error
    parts = [f"rank {ordered[0].rank} of {world_size} {ordered[0].what}"] if ordered else []
    if len(ordered) > 1:
        parts.append(f"then {name_ranks([failure.rank for failure in ordered[1:]])} failed too")
    places: dict[str, list[int]] = {}
    for rank, stack in sorted(stacks.items()):
        places.setdefault(where(stack.splitlines()) or "an unknown place", []).append(rank)
    for place, ranks in sorted(places.items(), key=lambda item: len(item[1])):  # the odd one out first
        parts.append(f"{name_ranks(ranks)} {'stood' if ordered else 'hung'} at {place}")
    if not ordered:
        parts.insert(0, f"{len(stacks)} of {world_size} ranks did not finish within {timeout_s:g} s")
    error = RankFailed("; ".join(parts))
    for failure in ordered:
        error.add_note(f"rank {failure.rank} {failure.what}\n{failure.traceback}".rstrip())
    for rank, stack in sorted(stacks.items()):
        error.add_note(f"rank {rank} stood (innermost call first):\n{stack or '  no answer to SIGUSR1'}".rstrip())
    return error


def name_ranks(ranks: Iterable[int]) -> str:
    """Return "rank 2" or "ranks 0, 1, 3"."""
    numbers = [str(rank) for rank in ranks]
    return f"{'rank' if len(numbers) == 1 else 'ranks'} {', '.join(numbers)}"
