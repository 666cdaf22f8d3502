"""Which solver there is for mixed-integer models: HiGHS, else CBC, else none, and what reports call it."""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib.metadata import version
from typing import Literal

Solver = Literal["HiGHS", "CBC", "none"]


@cache
def available_solver() -> Solver:
    """Return the solver to use, told by what is installed."""
    if importlib.util.find_spec("highspy") is not None:
        return "HiGHS"
    return "none" if cbc_path() is None else "CBC"


@cache
def cbc_path() -> str | None:
    """Return the program of CBC: one that is installed, else the one that PuLP 3 brings along."""
    from pulp import COIN_CMD  # noqa: PLC0415 - a tenth of a second that plans without a search do not need

    for solver in (COIN_CMD(msg=False), *(COIN_CMD(msg=False, path=path) for path in _bundled_paths())):
        if solver.available():
            return str(solver.path)
    return None


def _bundled_paths() -> list[str]:
    try:
        from pulp.apis.coin_api import pulp_cbc_path  # noqa: PLC0415 - as above
    except ImportError:  # PuLP 4 brings none along
        return []
    return [str(pulp_cbc_path)]


def solver_name() -> str:
    """Return the solver with its versions, and what to do where it is not the best one."""
    solver, modelling = available_solver(), f"PuLP {version('pulp')}"
    if solver == "HiGHS":
        return f"{modelling}, HiGHS {version('highspy')}"
    found = "CBC in its place" if solver == "CBC" else "no solver in its place, so the search is by swaps alone"
    return f"{modelling}, {found} (HiGHS is not installed: pip install highspy)"
