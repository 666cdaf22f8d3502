"""Long tasks: progress, results, cancel, failure; each in a process of its own that does not outlive its job."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable

import pytest

from app.whatif.cases import make_case
from app.whatif.jobs import RUNNING_AT_ONCE, Job
from app.whatif.settings import POWER_LAW, Settings
from app.whatif.sweeps import KNOBS, make_points
from app.whatif.uploads import Uploads
from app.whatif.worker import Search, Sweep

PATIENCE_S = 120.0
LITE = Settings(model="deepseek-v2-lite", routing=POWER_LAW, cluster="hgx-h100:1", tokens=64.0)


def _search(settings: Settings, time_limit_s: float | None) -> Job:
    case = make_case(settings, Uploads())
    return Job("test", Search(case, case.workload(), time_limit_s, 1), case.key, time_limit_s)


def _until(what: str, true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"waited {PATIENCE_S:.0f} s for {what}")
        time.sleep(0.05)


def test_a_search_comes_back_with_a_plan_no_worse_than_the_fast_one():
    job = _search(LITE, 2.0)
    job.start()
    _until("the search", lambda: job.progress.over)
    assert job.progress.state == "done", job.progress.error
    case = make_case(LITE, Uploads())
    fast = case.fast_plan(case.workload())
    assert job.progress.result.predictions[-1].total_us <= fast.predictions[-1].total_us * (1 + 1e-9)
    assert job.progress.done == job.progress.total == 26


def test_a_cancelled_search_keeps_the_best_so_far():
    job = _search(LITE.but(exchange="pairwise"), 60.0)  # two seconds a layer
    job.start()
    _until("the first layer", lambda: job.progress.done > 0 or job.progress.over)
    job.cancel()
    _until("the end", lambda: job.progress.over)
    assert job.progress.state == "done"
    assert not job.progress.result.complete
    assert len(job.progress.result.layers) == 26


def test_a_sweep_tells_of_every_point_and_of_what_cannot_be():
    points = make_points(LITE, Uploads(), KNOBS["hosts"], [1, 2, 500], None, ())
    job = Job("sweep", Sweep(points, 0.0), "key")
    job.start()
    _until("the sweep", lambda: job.progress.over)
    assert job.progress.state == "done", job.progress.error
    assert [row.x for row in job.progress.rows] == [1, 2, 500]
    assert [bool(row.problem) for row in job.progress.rows] == [False, False, True]


def test_what_the_planner_refuses_is_one_line():
    job = _search(LITE.but(overlap="shared-expert", model="mixtral-8x7b"), 1.0)
    job.start()
    _until("the refusal", lambda: job.progress.over)
    assert job.progress.state == "failed"
    assert "has no shared experts" in job.progress.error


def test_others_wait_their_turn_and_can_be_cancelled_there():
    running = [_search(LITE, 600.0) for _ in range(RUNNING_AT_ONCE)]
    for job in running:
        job.start()
    _until("the first", lambda: all(job.progress.state == "running" for job in running))
    waiting = _search(LITE, 1.0)
    waiting.start()
    time.sleep(0.5)
    assert waiting.progress.state == "waiting"
    waiting.cancel()
    _until("the cancel", lambda: waiting.progress.over)
    assert waiting.progress.state == "cancelled"
    for job in running:
        job.cancel()
    _until("the end of all", lambda: all(job.progress.over for job in running))


def test_a_job_that_nobody_holds_ends():
    job = _search(LITE, 600.0)
    progress = job.progress
    job.start()
    _until("its start", lambda: progress.state == "running")
    del job
    gc.collect()
    _until("its end", lambda: progress.over)


def test_a_process_that_dies_is_a_failure_and_not_a_hang(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false" if os.path.exists("/bin/false") else "/usr/bin/false")  # noqa: PTH110
    job = _search(LITE, 1.0)
    job.start()
    _until("the failure", lambda: job.progress.over)
    assert job.progress.state == "failed"
    assert "ended with code 1" in job.progress.error
