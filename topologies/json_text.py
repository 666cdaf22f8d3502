"""JSON from outside, within limits: no key twice in an object, and no more lists and objects than a real file has.

The limits are on what a text of some megabytes can become: an empty list is two letters and 56 bytes of memory.
"""

from __future__ import annotations

import json
from typing import Any

from topologies.errors import BadInput

MAX_CONTAINERS = 1_000_000  # lists and objects
MAX_VALUES = 10_000_000  # between commas
MAX_KEYS = 100_000  # of one object


def parse_json(
    text: str | bytes, source: str, *, max_values: int = MAX_VALUES, max_keys: int = MAX_KEYS, constants: bool = True
) -> Any:
    """Return the document of a JSON text.

    Args:
        text: UTF-8 where it is bytes.
        source: the file, to name in errors.
        max_values: of the document.
        max_keys: of one object.
        constants: read NaN and Infinity, which are no JSON, but which Python and PyTorch write.

    Raises:
        BadInput: no JSON, or beyond the limits.

    """
    letters: tuple[Any, Any, Any] = (b"[", b"{", b",") if isinstance(text, bytes) else ("[", "{", ",")
    lists, objects, commas = (text.count(letter) for letter in letters)
    for number, limit, what in ((lists + objects, MAX_CONTAINERS, "lists and objects"), (commas, max_values, "values")):
        if number > limit:
            raise BadInput(f"{source}: {number} {what}, over the limit of {limit} for one JSON text")

    def pairs_to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs) or len(found) > max_keys:
            raise ValueError(_what_is_wrong(pairs, max_keys))
        return found

    try:
        return json.loads(text, object_pairs_hook=pairs_to_dict, parse_constant=None if constants else _refuse_constant)
    except RecursionError as error:
        raise BadInput(f"{source}: JSON nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, or a number of thousands of digits
        raise BadInput(f"{source}: not valid JSON: {error}") from error


def _what_is_wrong(pairs: list[tuple[str, Any]], max_keys: int) -> str:
    """Name the first key that comes twice, else the number of keys."""
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return f"the key {key[:80]!r} stands twice in one object"
        seen.add(key)
    return f"an object of {len(pairs)} keys, over the limit of {max_keys}"


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
