"""How large the tuples of a pickle are, written out, found without running it.

The interpreter hashes a tuple by recursion in C. A program of a few hundred bytes can nest tuples deeper than the stack
goes, or hold each level twice, so that the hash of thirty levels takes a billion steps. A tensor's arguments nest four
deep and hold some twenty values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from topologies.errors import BadInput

MAX_NESTING = 50
MAX_VALUES = 10_000
_TAKEN = {
    "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "POP": 1, "REDUCE": 2, "STACK_GLOBAL": 2,
    "BINPERSID": 1,
}  # fmt: skip
"""Values that an instruction takes from the stack."""
_TO_MARK = {"TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS", "POP_MARK"}
_LEAVE_NOTHING = {"PROTO", "FRAME", "STOP", "APPEND", "SETITEM", "POP", "APPENDS", "SETITEMS", "POP_MARK"}


class _Value(NamedTuple):
    """A value on the stack: how deep tuples nest in it, and how many values they hold, each as often as it stands."""

    nesting: int = 0
    values: int = 1


_MARK = _Value(-1)


class TupleNesting:
    """Follows the instructions of a pickle with the size of every value in place of the value."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._stack: list[_Value] = []
        self._memo: dict[int, _Value] = {}

    def follow(self, name: str, argument: Any) -> None:
        """Follow one instruction; raise BadInput where a tuple grows too large. Programs that make no sense pass."""
        if name == "MARK":
            self._stack.append(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            top = self._stack[-1] if self._stack else _Value()
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = top
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo.get(argument, _Value()))
        else:
            taken = self._to_mark() if name in _TO_MARK else self._take(_TAKEN.get(name, 0))
            if name not in _LEAVE_NOTHING:
                self._stack.append(self._tuple(taken) if name.startswith("TUPLE") else _Value())

    def _tuple(self, taken: list[_Value]) -> _Value:
        nesting = 1 + max((value.nesting for value in taken), default=0)
        values = 1 + sum(value.values for value in taken)
        if nesting > MAX_NESTING or (nesting > 1 and values > MAX_VALUES):
            raise BadInput(
                f"{self._source}: data.pkl nests tuples over {MAX_NESTING} deep, or of over {MAX_VALUES} values; "
                "a dump of counts needs four and some twenty"
            )
        return _Value(nesting, values)

    def _take(self, count: int) -> list[_Value]:
        taken = self._stack[-count:] if count else []
        del self._stack[len(self._stack) - len(taken) :]
        return taken

    def _to_mark(self) -> list[_Value]:
        taken = []
        while self._stack and (top := self._stack.pop()) is not _MARK:
            taken.append(top)
        return taken
