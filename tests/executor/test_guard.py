"""Each fault is made on one of 4 gloo ranks; every rank that is left must end in time with the culprit named."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from executor.guard import Guard, GuardError, guard_of_group
from tests.executor.ranks import on_ranks

TIMEOUT_S = 2.0
EVEN = [1, 1, 1, 1]


def follow(rank: int, _: int, script: list) -> tuple[str, float, list[str]]:
    """Follow a script of waits and (call, sends, receives), with a real collective behind each guard.

    Returns what the guard said, after how many seconds, and which of its keys are left.
    """
    guard = guard_of_group(timeout_s=TIMEOUT_S)
    start = time.monotonic()
    said = "done"
    try:
        for step in script[rank]:
            if isinstance(step, float):
                time.sleep(step)
            else:
                guard.check(*step)
                dist.all_reduce(torch.ones(1))
    except GuardError as error:
        said = str(error)
    left = [f"{call}/{of}" for call in range(60) for of in range(4) if guard.store.check([f"{call}/{of}"])]
    return said, time.monotonic() - start, left


def told(script: list) -> list[str]:
    """Return what the guard said on each rank, all within thrice the time limit (and a second: a slow machine)."""
    said = on_ranks(4, follow, script)
    assert max(seconds for _, seconds, _ in said) < 3 * TIMEOUT_S + 1
    return [text for text, _, _ in said]


def test_equal_calls_pass_and_leave_nothing_behind():
    calls = [("counts", EVEN, EVEN), ("rows", EVEN, EVEN), ("barrier",)]
    said = on_ranks(4, follow, [calls * 20] * 4)
    assert [text for text, _, _ in said] == ["done"] * 4
    assert all(set(left) <= {f"{call}/{rank}" for call in (58, 59) for rank in range(4)} for _, _, left in said)


def test_uneven_sizes_that_agree_pass():
    """Rank i sends i + 2 j entries to rank j."""
    size_RR = [[i + 2 * j for j in range(4)] for i in range(4)]
    script = [[("rows", size_RR[rank], [row[rank] for row in size_RR])] for rank in range(4)]
    assert told(script) == ["done"] * 4


def test_a_skipped_collective():
    calls = [("counts",), ("rows",), ("sum",)]
    script = [calls, calls, [calls[0], calls[2]], calls]
    for rank, text in enumerate(told(script)):
        assert text.startswith(f"collective 2, {'sum' if rank == 2 else 'rows'}, on rank {rank}: ")
        assert text.endswith(": rank 2 at sum; ranks 0, 1, 3 at rows")


def test_a_skipped_last_collective():
    script = [[("counts",), ("rows",)]] * 3 + [[("counts",)]]
    said = told(script)
    assert said[3] == "done"
    for text in said[:3]:
        assert "collective 2, rows" in text
        assert "rank 3 of 4 did not come within 2 s (hung or dead); the last call of all ranks was: counts" in text


def test_one_wrong_size_names_both_ends():
    """Rank 1 sends 3 instead of 1 to rank 2."""
    script = [[("rows", EVEN, EVEN)]] * 4
    script[1] = [("rows", [1, 1, 3, 1], EVEN)]
    assert all(text.endswith(": rank 1 sends 3 entries to rank 2, which takes 1") for text in told(script))


def test_wrong_sizes_name_the_rank_that_is_in_all_pairs():
    script = [[("rows", EVEN, EVEN)]] * 4
    script[1] = [("rows", [3, 1, 3, 1], EVEN)]
    for text in told(script):
        assert "the sizes of rank 1 differ from the others' in 2 of 2 pairs that disagree; rank 1 sends 3" in text


def test_a_late_rank_hears_that_the_others_gave_up():
    script = [[("counts",), ("rows",)]] * 4
    script[0] = [("counts",), 1.7 * TIMEOUT_S, ("rows",)]
    for text in told(script):
        assert "rank 0 of 4 did not come within 2 s" in text
        assert "rows" in text


def die_or_tell(rank: int, port: int, folder: str) -> None:
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    store.set(f"rank {rank} has started", "")
    store.wait([f"rank {other} has started" for other in range(4)], timedelta(seconds=50))
    guard = Guard(store, rank, 4, TIMEOUT_S)
    guard.check("counts")
    if rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        guard.check("rows")
    except GuardError as error:
        (Path(folder) / str(rank)).write_text(str(error))


def test_a_killed_rank(tmp_path):
    """Not in a pool, which would end the others before they can tell."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    args = (store.port, str(tmp_path))
    ranks = [context.Process(target=die_or_tell, args=(rank, *args), daemon=True) for rank in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0, 0, -signal.SIGKILL]
    for rank in range(3):
        assert "rank 3 of 4 did not come within" in (tmp_path / str(rank)).read_text()


def test_a_lost_store():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    guard = Guard(dist.TCPStore("127.0.0.1", store.port, is_master=False), 0, 1, TIMEOUT_S)
    guard.check("first")
    del store
    with pytest.raises(GuardError, match="collective 2, second, on rank 0: the store is gone"):
        guard.check("second")
