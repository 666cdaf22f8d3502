"""Choosing rows of a table by an expression such as `ranks != 4 and system == "h200_sxm"`.

The expression comes from outside: it is parsed, never evaluated as code. Names are columns; there are no calls, no
attributes, no subscripts.
"""

from __future__ import annotations

import ast
import io
import operator
import tokenize
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from topologies.errors import BadInput, unknown_name

MAX_LENGTH = 2000
MAX_DEPTH = 40

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_WORDS = {"&": "and", "|": "or", "~": "not", "&&": "and", "||": "or"}


def select_rows(frame: pd.DataFrame, expression: str | None, *, option: str = "expression") -> pd.DataFrame:
    """Return the rows for which the expression holds; all of them without one.

    Columns, numbers, quoted strings, lists; comparisons (also chained), `in`, `and`, `or`, `not` (also `&`, `|`, `~`),
    and arithmetic. Raises BadInput that names the option where it is malformed, names no column, compares what cannot
    be compared, or holds for no row.
    """
    if expression is None or not expression.strip():
        return frame
    where = f"{option} {_short(expression)!r}"
    if len(expression) > MAX_LENGTH:
        raise BadInput(f"{option}: {len(expression)} characters, over the limit of {MAX_LENGTH}")
    try:
        tree = ast.parse(_with_words(expression.strip()), mode="eval").body
        with np.errstate(all="ignore"):
            mask = _Reader(frame, where).value(tree, 0)
    except BadInput:
        raise
    except (
        SyntaxError,
        ValueError,
        TypeError,
        ZeroDivisionError,
        OverflowError,
        RecursionError,
        MemoryError,
        tokenize.TokenError,
    ) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise BadInput(f"{where}: cannot be read: {_short(reason)}") from error
    if not isinstance(mask, pd.Series) or mask.dtype != bool:
        raise BadInput(f"{where}: is no condition on the rows; write one such as `ranks != 4`")
    chosen = frame[mask]
    if chosen.empty:
        raise BadInput(f"{where}: holds for none of the {len(frame)} rows")
    return chosen


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _with_words(expression: str) -> str:
    """Replace `&`, `|` and `~` by the words, as pandas does, so that they bind less tightly than comparisons."""
    tokens = tokenize.generate_tokens(io.StringIO(expression).readline)
    words = [_WORDS.get(t.string, t.string) if t.type == tokenize.OP else t.string for t in tokens]
    return " ".join(word for word in words if word.strip())


class _Reader:
    """Works out an expression tree over a frame's columns."""

    def __init__(self, frame: pd.DataFrame, where: str) -> None:
        self._frame, self._where = frame, where

    def value(self, node: ast.expr, depth: int) -> Any:  # noqa: PLR0911 - one return for each kind of node
        """Return the value of a node: a column, a constant, or a condition on the rows."""
        if depth > MAX_DEPTH:
            raise BadInput(f"{self._where}: nested too deeply")
        if isinstance(node, ast.Name):
            return self._column(node.id)
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, bool)):
            return node.value
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            return [self._constant(item, depth) for item in node.elts]
        if isinstance(node, ast.BoolOp):
            return self._joined(node, depth)
        if isinstance(node, ast.UnaryOp):
            return self._unary(node, depth)
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            return _ARITHMETIC[type(node.op)](self.value(node.left, depth + 1), self.value(node.right, depth + 1))
        if isinstance(node, ast.Compare):
            return self._compared(node, depth)
        raise BadInput(
            f"{self._where}: {type(node).__name__} is not allowed; columns, constants, comparisons, and/or/not are"
        )

    def _column(self, name: str) -> pd.Series:
        if name not in self._frame.columns:
            raise BadInput(f"{self._where}: {unknown_name('column', name, map(str, self._frame.columns))}")
        column: pd.Series = self._frame[name]
        return column

    def _constant(self, node: ast.expr, depth: int) -> Any:
        value = self.value(node, depth + 1)
        if isinstance(value, (pd.Series, list)):
            raise BadInput(f"{self._where}: a list may hold constants only")
        return value

    def _joined(self, node: ast.BoolOp, depth: int) -> pd.Series:
        masks = [self._condition(part, depth) for part in node.values]
        joined = masks[0]
        for mask in masks[1:]:
            joined = joined & mask if isinstance(node.op, ast.And) else joined | mask
        return joined

    def _condition(self, node: ast.expr, depth: int) -> pd.Series:
        mask = self.value(node, depth + 1)
        if not isinstance(mask, pd.Series) or mask.dtype != bool:
            raise BadInput(f"{self._where}: {_short(ast.unparse(node))!r} is no condition on the rows")
        return mask

    def _unary(self, node: ast.UnaryOp, depth: int) -> Any:
        if isinstance(node.op, ast.Not):
            return ~self._condition(node.operand, depth)
        value = self.value(node.operand, depth + 1)
        return -value if isinstance(node.op, ast.USub) else +value

    def _compared(self, node: ast.Compare, depth: int) -> pd.Series:
        operands = [self.value(part, depth + 1) for part in (node.left, *node.comparators)]
        mask: Any = None
        for left, how, right in zip(operands[:-1], node.ops, operands[1:], strict=True):
            part = self._one_comparison(left, how, right)
            mask = part if mask is None else mask & part
        if not isinstance(mask, pd.Series):
            raise BadInput(f"{self._where}: compares constants only; name a column")
        return mask.astype(bool)

    def _one_comparison(self, left: Any, how: ast.cmpop, right: Any) -> Any:
        if isinstance(how, (ast.In, ast.NotIn)) or (isinstance(right, list) and isinstance(how, (ast.Eq, ast.NotEq))):
            if not isinstance(left, pd.Series) or not isinstance(right, list):
                raise BadInput(f"{self._where}: write `column in [value, ...]`")
            found = left.isin(right)
            return ~found if isinstance(how, (ast.NotIn, ast.NotEq)) else found
        if type(how) not in _COMPARE:
            raise BadInput(f"{self._where}: {type(how).__name__} is not allowed; use ==, !=, <, <=, >, >= or in")
        return _COMPARE[type(how)](left, right)
