"""Text of the planner and of users, as a page shows it."""

from __future__ import annotations

import re

FIELDS = {
    "--slots-per-rank": "Expert slots per rank",
    "--memory-per-rank": "GB of expert weights per rank",
    "--system": "Completed by",
    "--nic-gbps": "NIC speed",
    "--hosts": "Hosts",
    "--exchange": "Exchange",
    "--overlap": "Overlap",
    "--lossy": "Leave out what it cannot hold",
}
"""What the pages call the options of the command line, which the planner's messages name."""


def plain(text: str) -> str:
    """Return one line of text that Markdown shows as it stands."""
    line = " ".join(text.split()).replace("--", "\u2011\u2011")
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]<>#$~|" else letter for letter in line)


def in_the_app(text: str) -> str:
    """Return a message of the planner with the names of fields in place of the command line's options.

    >>> in_the_app("give --slots-per-rank 8 or more, or a larger cluster")
    'give "Expert slots per rank" 8 or more, or a larger cluster'
    >>> in_the_app("plan with --engine-compatible")
    'plan with --engine-compatible'
    """
    return re.sub(r"--[a-z][a-z-]*", lambda found: f'"{FIELDS[found[0]]}"' if found[0] in FIELDS else found[0], text)
