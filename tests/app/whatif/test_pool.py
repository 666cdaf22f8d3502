"""Processes that answer questions: the same answers as here, errors as they are, another for one that died."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pytest

from app.whatif.answering import Memory, answered
from app.whatif.cases import Case, make_case
from app.whatif.pool import Pool
from app.whatif.questions import FastPlan, Predicted, Reported, Simulated
from app.whatif.settings import POWER_LAW, Settings
from app.whatif.uploads import Uploads
from planner import Workload, predict
from planner.routing_report import report
from planner.simulate import simulate_layer
from topologies import BadInput

LITE = Settings(model="deepseek-v2-lite", routing=POWER_LAW, cluster="hgx-h100:2", tokens=64.0)


@pytest.fixture(scope="module")
def one() -> Iterator[Pool]:
    with closing(Pool(1)) as pool:
        yield pool


@pytest.fixture
def two() -> Iterator[Pool]:
    with closing(Pool(2)) as pool:
        yield pool


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(LITE, Uploads())


@dataclass(frozen=True)
class Pid:
    """Asks a process who it is."""

    case: Case

    def answer(self, case: Case, workload: Workload) -> int:  # noqa: ARG002 - every question is asked alike
        return os.getpid()


@dataclass(frozen=True)
class Wrong:
    """Asks for what cannot be."""

    case: Case
    error: Exception

    def answer(self, case: Case, workload: Workload) -> None:  # noqa: ARG002 - every question is asked alike
        raise self.error


def test_answers_are_those_of_this_process(one, case):
    workload = case.workload()
    here, there = case.fast_plan(workload), one.ask(FastPlan(case), case.workload)
    assert there.predictions == here.predictions
    assert there.exchange == here.exchange
    for mine, theirs in zip(here.placements, there.placements, strict=True):
        assert mine.slots() == theirs.slots()
        np.testing.assert_array_equal(mine.share_DS, theirs.share_DS)
    moved = make_case(LITE.but(nic_gbps=100.0), Uploads())
    asked = Predicted("moved", moved, here.placements, here.exchange)
    expected = predict("moved", here.placements, moved.workload(), moved.profile, here.exchange)
    assert one.ask(asked, pytest.fail) == expected  # it has the tokens of these statistics already
    placement = here.placements[3]
    simulated = simulate_layer(workload, placement, 3, case.profile, here.exchange)
    assert one.ask(Simulated(case, placement, 3, here.exchange, False), pytest.fail).layer_us == simulated.layer_us
    assert one.ask(Reported(case), pytest.fail) == report(case.routing, case.cluster.num_ranks)


def test_errors_come_back_as_they_are_and_faults_of_ours_in_one_line(one, case):
    with pytest.raises(BadInput, match="no such thing"):
        one.ask(Wrong(case, BadInput("no such thing")), case.workload)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: by zero"):
        one.ask(Wrong(case, ZeroDivisionError("by zero")), case.workload)


def test_a_process_that_ended_is_started_anew(one, case):
    first = one.ask(Pid(case), case.workload)
    assert one.ask(Pid(case), case.workload) == first
    os.kill(first, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="has ended"):
        one.ask(Pid(case), case.workload)
    assert one.ask(Pid(case), case.workload) != first


def test_questions_of_several_sessions_are_answered_at_once_each_its_own(two, case):
    found = dict[int, float]()
    cases = {tokens: make_case(LITE.but(tokens=float(tokens)), Uploads()) for tokens in (32, 64, 128, 256)}

    def ask(tokens: int) -> None:
        found[tokens] = two.ask(FastPlan(cases[tokens]), case.workload).predictions[-1].total_us

    threads = [threading.Thread(target=ask, args=(tokens,)) for tokens in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    for tokens, one_case in cases.items():
        assert found[tokens] == one_case.fast_plan(one_case.workload()).predictions[-1].total_us


def test_what_is_kept_is_kept_by_content_and_not_for_ever(case):
    memory = Memory()
    assert answered(memory, Pid(case), None) == ("unknown", None)
    assert answered(memory, Pid(case), case.workload()) == ("done", os.getpid())
    for seed in range(1, 9):
        other = make_case(LITE.but(seed=seed), Uploads())
        assert answered(memory, Pid(other), None) == ("unknown", None)
        assert answered(memory, Pid(other), other.workload())[0] == "done"
    assert answered(memory, Pid(case), None) == ("unknown", None)  # eight are kept
