"""The command that puts a plan into force: without a shell, its exit code checked, never cut in two by Ctrl-C."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topologies import BadInput

PLACEHOLDER = "{plan}"
STDERR = 2  # what the command prints is no result of ours
STOPS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class ApplyCommand:
    """A command line in words, of which `{plan}` stands for the plan's file."""

    words: tuple[str, ...]
    timeout_s: float

    @classmethod
    def parse(cls, text: str, timeout_s: float) -> ApplyCommand:
        """Split as a shell would; BadInput where it names no plan, or a program that is not there."""
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:
            raise BadInput(f"--apply {text[:80]!r}: {error}") from error
        if not words or not any(PLACEHOLDER in word for word in words):
            raise BadInput(f"--apply {text[:80]!r}: must name the plan's file as {PLACEHOLDER}: 'reload {PLACEHOLDER}'")
        if shutil.which(words[0]) is None:
            raise BadInput(f"--apply {text[:80]!r}: no program {words[0][:60]!r} (for shell syntax: sh -c '...')")
        return cls(words, timeout_s)

    def run(self, plan: Path) -> str | None:
        """Run it on a plan's file; return what went wrong, or None. What it prints goes to stderr."""
        words = [word.replace(PLACEHOLDER, str(plan)) for word in self.words]
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=STDERR, timeout=self.timeout_s,
                check=False, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"the command did not end within {self.timeout_s:g} s, and was killed"
        except OSError as error:
            return f"the command cannot be run: {error.strerror}"
        return f"the command ended with exit code {done.returncode}" if done.returncode else None


@contextmanager
def stops_held_back() -> Iterator[None]:
    """Let what is being done end before Ctrl-C or SIGTERM takes effect, as KeyboardInterrupt."""
    came: list[int] = []

    def note(number: int, _: Any) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt
