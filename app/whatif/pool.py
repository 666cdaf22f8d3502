"""A few processes that answer the short questions of all sessions: the server's own process only draws pages.

Sessions share one Python process, in which one at a time computes; without the pool a plan for one user would hold up
the pages of all. A process keeps what it was sent by content, so that nobody is handed another's upload. Long tasks
have processes of their own (see `app.whatif.jobs`).
"""

from __future__ import annotations

import atexit
import os
import queue
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from app.whatif.jobs import CORES
from app.whatif.questions import Question
from planner import Workload
from topologies.errors import EpplanError

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # cores are shared


class Pool:
    """As many processes as are asked for, each started at its first question."""

    def __init__(self, size: int) -> None:
        self._all = [_Answering() for _ in range(size)]
        self._idle: queue.LifoQueue[_Answering] = queue.LifoQueue()
        for one in self._all:
            self._idle.put(one)

    def ask(self, question: Question, sample: Callable[[], Workload]) -> Any:
        """Return the answer to a question; `sample` gives the workload whose tokens are those of its case.

        Raises what the planner raises; waits where all processes are at work.
        """
        answering = self._idle.get()
        try:
            return answering.answer(question, sample)
        finally:
            self._idle.put(answering)

    def close(self) -> None:
        """End all processes."""
        for one in self._all:
            one.close()


class _Answering:
    """One process at the other end of a pipe, started anew where it has ended."""

    def __init__(self) -> None:
        self._pipe: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def answer(self, question: Question, sample: Callable[[], Workload]) -> Any:
        try:
            what, content = self._exchanged((question, None))
            if what == "unknown":
                what, content = self._exchanged((question, sample()))
        except (EOFError, OSError) as error:
            self.close()
            raise RuntimeError("the process that answers questions has ended") from error
        if what == "done":
            return content
        if isinstance(content, EpplanError):
            raise content
        raise RuntimeError(f"in the process that answers questions: {content}")

    def _exchanged(self, message: tuple[Question, Workload | None]) -> tuple[str, Any]:
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        self._pipe.send(message)
        what, content = self._pipe.recv()
        return what, content

    def _start(self) -> None:
        """Start a process; it ends when our end of the pipe does, with this process at the latest."""
        self._pipe, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "app.whatif.answering", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | ONE_THREAD,
        )
        theirs.close()

    def close(self) -> None:
        """End the process; the next question starts another."""
        if self._pipe is not None and self._process is not None:
            self._pipe.close()
            self._process.kill()
            self._process.wait()
        self._pipe = self._process = None


@cache
def pool() -> Pool:
    """Return the pool of this server."""
    made = Pool(max(2, CORES))
    atexit.register(made.close)
    return made
