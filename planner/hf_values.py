"""Typed look-ups in a Hugging Face config.json, whose errors name the file, the field and its value."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from topologies.errors import BadInput

MAX_VALUE = 10_000_000


@dataclass(frozen=True)
class Config:
    """The part of a config.json that describes the language model.

    Attributes:
        values: its fields.
        root: all fields of the file: quantization and dtype may stand at either level.
        source: the file, to name in errors.

    """

    values: dict[str, Any]
    root: dict[str, Any]
    source: str

    def find(self, names: Sequence[str]) -> tuple[str, Any] | None:
        """Return the first of `names` that is present and not null, with its value."""
        for name in names:
            if self.values.get(name) is not None:
                return name, self.values[name]
        return None

    def integer(self, names: Sequence[str], *, default: int | None = None, low: int = 1) -> int:
        """Return the first present of `names` as an integer of at least `low`; a list of equal integers counts as one.

        Raises:
            BadInput: none is present and there is no default, or the value is something else.

        """
        found = self.find(names)
        if found is None:
            if default is None:
                raise BadInput(f"{self.source}: no field {' or '.join(names)}")
            return default
        name, value = found
        if isinstance(value, list) and value:  # Hunyuan states some fields once a layer
            if any(each != value[0] for each in value):
                raise BadInput(f"{self.source}: {name} = {short(value)} differs between layers; one value is supported")
            value = value[0]
        if not is_integer(value) or not low <= value <= MAX_VALUE:
            raise self.refusal(name, f"an integer from {low} to {MAX_VALUE}")
        return int(value)

    def refusal(self, name: str, expected: str) -> BadInput:
        """Return the error for a field whose value is not what it should be."""
        return BadInput(f"{self.source}: {name} = {short(self.values.get(name))} is not {expected}")


def is_integer(value: Any) -> bool:
    """Whether a JSON value is an integer: true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def short(value: Any) -> str:
    """Return a JSON value as text of at most 60 characters."""
    if isinstance(value, int) and abs(value) > 10**30:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (list, dict)):
        value = value[:20] if isinstance(value, list) else dict(list(value.items())[:5])
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
