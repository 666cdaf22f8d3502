"""Versions of plan.json, and the digest that tells whether a file is as it was written.

| version | what it added |
|---|---|
| 1 | the first |
| 2 | `sha256`, the digest of all other fields |

A file of an older version is upgraded when it is read; what this epplan does not know is refused: newer versions, and
fields that its version does not have. So nothing that a plan says is ever silently left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

from topologies.errors import BadInput

VERSION = 2


def digest(document: dict[str, Any]) -> str:
    """Return the SHA-256 of a document without its `sha256`, in hexadecimal.

    It is taken of the values: line breaks, the order of keys, and 1.0 written as 1 make no difference.
    """
    values = {key: value for key, value in document.items() if key != "sha256"}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(re.sub(r"\.0(?<=\d\.0)(?=[,\]}])", "", text).encode()).hexdigest()


def upgraded(document: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a document as one of today's version, without its digest.

    Raises BadInput for unknown versions, and where a document states a digest that is not its own.
    """
    version = document.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise BadInput(f"{where}: version: {str(version)[:40]!r} is unknown; this epplan reads versions 1 to {VERSION}")
    stated = document.get("sha256")
    if stated is not None and stated != digest(document):
        raise BadInput(
            f"{where}: sha256: the file was changed or damaged since epplan wrote it; fetch it again or, where it was "
            'edited on purpose, delete its line "sha256"'
        )
    document = {key: value for key, value in document.items() if key != "sha256"}
    for step in range(version, VERSION):
        document = UPGRADES[step](document)
    return document


def _from_1(document: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had no digest; all else is the same."""
    return document | {"version": 2}


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
"""What makes version n + 1 of version n."""
