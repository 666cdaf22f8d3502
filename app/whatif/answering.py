"""A process of `app.whatif.pool`: `python -m app.whatif.answering FD` answers questions until the pipe ends.

It gets (question, workload or None) and sends ("unknown", None) where it lacks the workload, ("done", answer),
("refused", the planner's error) or ("failed", one line).
"""

from __future__ import annotations

import logging
import sys
from collections import OrderedDict
from multiprocessing.connection import Connection
from typing import TypeVar

from app.whatif.cases import Case
from app.whatif.questions import Question
from planner import Workload
from topologies.errors import EpplanError

SAMPLES, CASES = 8, 32
Kept = TypeVar("Kept")


class Memory:
    """The workloads and cases that were asked about lately, by content."""

    def __init__(self) -> None:
        self._samples: OrderedDict[str, Workload] = OrderedDict()
        self._workloads: OrderedDict[str, Workload] = OrderedDict()
        self._cases: OrderedDict[str, Case] = OrderedDict()

    def knows(self, case: Case) -> bool:
        """Return whether the tokens of a case are here."""
        return case.sample_key in self._samples

    def learn(self, case: Case, sample: Workload) -> None:
        """Keep the tokens of a case."""
        _keep(self._samples, case.sample_key, sample, SAMPLES)

    def recalled(self, case: Case) -> tuple[Case, Workload]:
        """Return a case and its workload, those of an earlier question where they are equal: they hold its prices."""
        sample = _keep(self._samples, case.sample_key, self._samples[case.sample_key], SAMPLES)
        case = _keep(self._cases, case.key, self._cases.get(case.key, case), CASES)
        workload = self._workloads.get(case.workload_key) or case.workload(sample)
        return case, _keep(self._workloads, case.workload_key, workload, CASES)


def _keep(held: OrderedDict[str, Kept], key: str, value: Kept, most: int) -> Kept:
    """Hold a value as the latest, in place of the oldest where there are too many."""
    held[key] = value
    held.move_to_end(key)
    while len(held) > most:
        held.popitem(last=False)
    return value


def answered(memory: Memory, question: Question, sample: Workload | None) -> tuple[str, object]:
    """Return what is sent back."""
    if sample is not None:
        memory.learn(question.case, sample)
    if not memory.knows(question.case):
        return "unknown", None
    try:
        return "done", question.answer(*memory.recalled(question.case))
    except EpplanError as error:
        return "refused", error
    except Exception as error:
        logging.getLogger("epplan.app").exception("a question failed")
        return "failed", f"{type(error).__name__}: {error}"


def main(handle: int) -> None:
    """Answer until the other end is gone."""
    pipe, memory = Connection(handle), Memory()
    while True:
        try:
            question, sample = pipe.recv()
        except EOFError:
            return
        pipe.send(answered(memory, question, sample))


if __name__ == "__main__":
    main(int(sys.argv[1]))
