"""Pools of gloo ranks that the tests share: importing torch takes seconds, so processes are kept from test to test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from executor.launch import RankPool

T = TypeVar("T")
_POOLS: dict[int, RankPool] = {}


def on_ranks(world_size: int, target: Callable[..., T], *args: Any, timeout_s: float = 60.0) -> list[T]:
    """Return `target(rank, world_size, *args)` of every rank; `target` is a function of the test's module."""
    return _POOLS.setdefault(world_size, RankPool(world_size)).run(target, *args, timeout_s=timeout_s)


def close_pools() -> None:
    """Stop all ranks; `conftest.py` does so when the session ends."""
    for pool in _POOLS.values():
        pool.close()
