"""Long tasks in processes of their own, with progress and cancel: no user waits for the search of another.

Each job belongs to one session and ends with it. As many run at once as the machine has halves of its cores; others
wait their turn.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Literal

from app.whatif.worker import Task

State = Literal["waiting", "running", "done", "failed", "cancelled"]

CORES = len(os.sched_getaffinity(0))
RUNNING_AT_ONCE = max(1, CORES // 2)
WORKERS = max(1, CORES // RUNNING_AT_ONCE)  # of each search
GRACE_S = 15.0  # after a cancel, for the best so far to arrive

_TURN = threading.BoundedSemaphore(RUNNING_AT_ONCE)


@dataclass(eq=False)
class Progress:
    """What is known of a task from outside; written by the thread that watches it."""

    total: int
    state: State = "waiting"
    done: int = 0
    rows: list[Any] = field(default_factory=list)
    result: Any = None
    error: str = ""
    started: float | None = None
    ended: float | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def seconds(self) -> float:
        """Return how long it has been at work."""
        if self.started is None:
            return 0.0
        return (self.ended or time.monotonic()) - self.started


class Job:
    """One task, from its start to its result.

    Attributes:
        title: for people.
        key: of the case that it is about.
        time_limit_s: that a search was given.

    """

    def __init__(self, title: str, task: Task, key: str, time_limit_s: float | None = None) -> None:
        self.title, self.key, self.time_limit_s = title, key, time_limit_s
        self.progress = Progress(task.total)
        self._task = task
        self._cancel = threading.Event()
        weakref.finalize(self, self._cancel.set)

    def start(self) -> None:
        """Begin, or wait for a turn."""
        arguments = (self._task, self.progress, self._cancel)  # not self: the job ends when nobody holds it any more
        threading.Thread(target=_watch, args=arguments, name=f"epplan job {self.title}", daemon=True).start()

    def cancel(self) -> None:
        """Ask it to stop; a search keeps the best so far."""
        self._cancel.set()


def _watch(task: Task, progress: Progress, cancel: threading.Event) -> None:
    """Run a task in a process of its own, and write down what it says."""
    while not _TURN.acquire(timeout=0.2):
        if cancel.is_set():
            progress.state = "cancelled"
            return
    try:
        if cancel.is_set():
            progress.state = "cancelled"
            return
        progress.started, progress.state = time.monotonic(), "running"
        ours, theirs = Pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "app.whatif.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        try:
            _listen(ours, task, process, progress, cancel)
        finally:
            _end(process)
            ours.close()
    finally:
        progress.ended = time.monotonic()
        if not progress.over:
            progress.state = "failed"
        _TURN.release()


def _listen(
    pipe: Connection, task: Task, process: subprocess.Popen[bytes], progress: Progress, cancel: threading.Event
) -> None:
    asked_at: float | None = None
    try:
        pipe.send(task)
        while not progress.over:
            if cancel.is_set() and asked_at is None:
                asked_at = time.monotonic()
                process.send_signal(signal.SIGINT)
            if asked_at is not None and time.monotonic() > asked_at + GRACE_S:
                progress.state = "cancelled"
            elif pipe.poll(0.1):
                _note(progress, *pipe.recv(), cancelled=asked_at is not None)
    except (EOFError, OSError):
        progress.error = f"the background process ended with code {process.wait()}; try again, or use `epplan plan`"
        progress.state = "cancelled" if asked_at is not None else "failed"


def _note(progress: Progress, what: str, content: Any, *, cancelled: bool) -> None:
    if what == "progress":
        progress.done = content
    elif what == "row":
        progress.rows.append(content)
    elif what == "done":
        progress.result, progress.state = content, "done"
    else:
        progress.error, progress.state = content, "cancelled" if cancelled else "failed"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1.0)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
