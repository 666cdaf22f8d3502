"""Pools of gloo ranks that the tests share: importing torch takes seconds, so processes are kept from test to test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from executor.launch import RankPool

T = TypeVar("T")
_POOLS: dict[int, RankPool] = {}


def on_ranks(world_size: int, target: Callable[..., T], *args: Any, timeout_s: float = 60.0) -> list[T]:
    """Return `target(rank, world_size, *args)` of every rank; `target` is a function of the test's module."""
    return _POOLS.setdefault(world_size, RankPool(world_size)).run(_afresh, target, *args, timeout_s=timeout_s)


def _afresh(rank: int, world_size: int, target: Callable[..., T], *args: Any) -> T:
    """Run in a process that has run others: DTensors' caches hold on to meshes, whose process groups are gone."""
    tensor = sys.modules.get("torch.distributed.tensor")
    if tensor is not None:
        tensor.DTensor._op_dispatcher.sharding_propagator.propagate_op_sharding.cache.cache_clear()
        clear_newer = getattr(sys.modules["torch"]._C, "_clear_DTensor_sharding_propagator_cache", None)  # torch 2.12
        if clear_newer is not None:
            clear_newer()
    return target(rank, world_size, *args)


def close_pools() -> None:
    """Stop all ranks; `conftest.py` does so when the session ends."""
    for pool in _POOLS.values():
        pool.close()
