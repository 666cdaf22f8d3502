"""How deep tuples nest in a pickle, found without running it.

The interpreter hashes a tuple by recursion in C and crashes where the stack ends; a program of a few kilobytes can nest
tuples that deep and use them as a key. A tensor's arguments nest four.
"""

from __future__ import annotations

from typing import Any

from topologies.errors import BadInput

MAX_NESTING = 50
_MARK = -1
_TAKEN = {
    "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "POP": 1, "REDUCE": 2, "STACK_GLOBAL": 2,
    "BINPERSID": 1,
}  # fmt: skip
"""Values that an instruction takes from the stack."""
_TO_MARK = {"TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS", "POP_MARK"}
_LEAVE_NOTHING = {"PROTO", "FRAME", "STOP", "APPEND", "SETITEM", "POP", "APPENDS", "SETITEMS", "POP_MARK"}


class TupleNesting:
    """Follows the instructions of a pickle with the nesting of every value in place of the value."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._stack: list[int] = []
        self._memo: dict[int, int] = {}

    def follow(self, name: str, argument: Any) -> None:
        """Follow one instruction; raise BadInput where it nests too deep. Programs that make no sense pass."""
        if name == "MARK":
            self._stack.append(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self._stack[-1] if self._stack else 0
        elif name in ("BINGET", "LONG_BINGET"):
            self._push(self._memo.get(argument, 0))
        else:
            taken = self._to_mark() if name in _TO_MARK else self._take(_TAKEN.get(name, 0))
            if name not in _LEAVE_NOTHING:
                self._push(1 + max(taken, default=0) if name.startswith("TUPLE") else 0)

    def _push(self, nesting: int) -> None:
        if nesting > MAX_NESTING:
            raise BadInput(
                f"{self._source}: data.pkl nests tuples over {MAX_NESTING} deep; a dump of counts needs four"
            )
        self._stack.append(nesting)

    def _take(self, count: int) -> list[int]:
        taken = self._stack[-count:] if count else []
        del self._stack[len(self._stack) - len(taken) :]
        return taken

    def _to_mark(self) -> list[int]:
        taken = []
        while self._stack and (top := self._stack.pop()) != _MARK:
            taken.append(top)
        return taken
