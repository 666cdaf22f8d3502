"""The commands and the Python in README.md and docs/: indented or fenced blocks, as a reader would copy them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
_COMMENT = re.compile(r"\s+#\s.*$")


def python_blocks(page: Path) -> list[str]:
    """Return the fenced Python of a page."""
    return [body for language, body in _FENCE.findall(page.read_text()) if language == "python"]


def commands(page: Path) -> list[str]:
    """Return the commands of a page's shell blocks: one string each, continuation lines joined, comments left out."""
    text = page.read_text()
    fenced = [body for language, body in _FENCE.findall(text) if language in ("bash", "sh", "shell", "console")]
    indented = _INDENTED.findall(_FENCE.sub("", text))
    return [command for block in (*fenced, *indented) for command in _commands(block)]


def _commands(block: str) -> Iterator[str]:
    joined = re.sub(r"\\\n\s*", " ", block)
    for line in joined.splitlines():
        command = _COMMENT.sub("", line.strip().removeprefix("$ "))
        if command:
            yield command


def epplan_arguments(command: str) -> list[list[str]]:
    """Return the arguments of every call of `epplan` in a command line, `...` left out."""
    found = []
    for part in re.split(r"&&|\|\||[;|]", command):
        words = shlex.split(part, comments=True)
        if words[:1] == ["sudo"]:
            words = words[1:]
        if words[:1] == ["epplan"]:
            found.append([word for word in words[1:] if word != "..."])
    return found
