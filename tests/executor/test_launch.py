from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from executor.failures import RankFailed
from executor.launch import RankPool, run_ranks
from tests.executor.ranks import on_ranks
from topologies.errors import BadInput


def add_up(rank: int, world_size: int, factor: int) -> tuple[int, int, int]:
    total = torch.tensor(rank * factor)
    dist.all_reduce(total)
    return int(total), world_size, os.getpid()


def raise_on(rank: int, _: int, culprit: int, what: type[Exception]) -> None:
    if rank == culprit:
        raise what("boom\nwith a second line")
    dist.barrier()


def sleep_on(rank: int, _: int, culprit: int) -> None:
    if rank == culprit:
        time.sleep(600)
    dist.all_reduce(torch.ones(1))


def die_on(rank: int, _: int, culprit: int, how: int) -> None:
    if rank == culprit:
        os.kill(os.getpid(), how)
    dist.all_reduce(torch.ones(1))


def leave(_: int, __: int) -> None:
    os._exit(3)


def unpicklable(_: int, __: int) -> object:
    return lambda: None


def environment(_: int, __: int) -> tuple[str, int]:
    return os.environ["OMP_NUM_THREADS"], torch.get_num_threads()


def tensor(rank: int, _: int) -> torch.Tensor:
    return torch.full((3,), float(rank))


def test_results_come_by_rank_from_processes_that_are_kept():
    first, second = on_ranks(4, add_up, 10), on_ranks(4, add_up, 1)
    assert [result[:2] for result in first] == [(60, 4)] * 4
    assert [result[:2] for result in second] == [(6, 4)] * 4
    assert [result[2] for result in first] == [result[2] for result in second]
    assert len({result[2] for result in first} | {os.getpid()}) == 5


def test_tensors_outlive_their_process():
    assert [result.tolist() for result in run_ranks(tensor, 2)] == [[0.0] * 3, [1.0] * 3]


def test_threads_are_set_before_torch_is_imported():
    before = os.environ.get("OMP_NUM_THREADS")
    assert run_ranks(environment, 1, threads=2) == [("2", 2)]
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_no_ranks():
    with pytest.raises(BadInput, match="0 ranks"):
        run_ranks(add_up, 0, 1)


def notes(error: pytest.ExceptionInfo[RankFailed]) -> str:
    return "\n".join(error.value.__notes__)


def test_an_exception_names_the_rank_the_place_and_who_waited():
    with pytest.raises(RankFailed) as error:
        on_ranks(4, raise_on, 2, ValueError)
    text = str(error.value)
    assert text.startswith("rank 2 of 4 raised ValueError: boom with a second line at test_launch.py:")
    assert "in raise_on: raise what(" in text
    assert "ranks 0, 1, 3 stood at test_launch.py" in text
    assert "dist.barrier()" in text
    assert "\n" not in text
    assert "Traceback" in notes(error)
    assert [result[0] for result in on_ranks(4, add_up, 1)] == [6] * 4, "the pool starts anew"


def test_the_users_mistake_stays_the_users_mistake():
    with pytest.raises(BadInput, match=r"^boom"):
        on_ranks(2, raise_on, 1, BadInput)


def test_a_hung_rank_is_named_with_its_call():
    start = time.monotonic()
    with pytest.raises(RankFailed) as error:
        on_ranks(4, sleep_on, 1, timeout_s=2.0)
    assert time.monotonic() - start < 30
    assert str(error.value).startswith("4 of 4 ranks did not finish within 2 s; rank 1 hung at test_launch.py:")
    assert "time.sleep(600); ranks 0, 2, 3 hung at test_launch.py:" in str(error.value)
    assert "dist.all_reduce(torch.ones(1))" in str(error.value)
    assert "rank 1 stood (innermost call first):" in notes(error)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_rank_is_named_with_its_signal(how):
    with pytest.raises(RankFailed, match=f"^rank 1 of 2 was killed by {how.name}"):
        on_ranks(2, die_on, 1, how)


def test_a_rank_that_leaves():
    with pytest.raises(RankFailed, match=r"^rank 0 of 1 exited with code 3"):
        on_ranks(1, leave)


def test_a_result_that_cannot_travel():
    with pytest.raises(RankFailed, match=r"^rank 0 of 1 raised .*pickle"):
        on_ranks(1, unpicklable)


PARENT = """
import sys, time
from executor.launch import RankPool
from tests.executor.test_launch import pids_then_sleep

if __name__ == "__main__":
    RankPool(2).run(pids_then_sleep, sys.argv[1])
"""


def pids_then_sleep(rank: int, _: int, folder: str) -> None:
    (Path(folder) / f"{rank}.pid").write_text(str(os.getpid()))
    time.sleep(600)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_rank_outlives_its_parent(tmp_path, how):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], cwd=root, env=os.environ | {"PYTHONPATH": str(root)},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    files = [tmp_path / f"{rank}.pid" for rank in range(2)]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files), 60)
    parent.send_signal(how)
    _, err = parent.communicate(timeout=30)
    pids = [int(file.read_text()) for file in files]
    wait_until(lambda: not any(alive(pid) for pid in pids), 30)
    assert err.count("Traceback") == (1 if how == signal.SIGINT else 0), err


def wait_until(condition, timeout_s):
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)


def test_a_pool_that_is_not_used_starts_nothing():
    with RankPool(64) as pool:
        assert pool._ranks == []
