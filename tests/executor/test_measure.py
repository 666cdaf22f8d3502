"""The clock is tested with a time of our own: every reading is the seconds that the fake phases have spent."""

from __future__ import annotations

import json

import pytest
import torch
from torch import distributed as dist
from torch.utils.checkpoint import checkpoint

from executor.measure import MARKS, PHASES, PhaseClock, mark
from executor.transport import Transport
from tests.executor.ranks import on_ranks

FORWARD = dict(zip(PHASES, (1.0, 20.0, 300.0, 4000.0), strict=True))  # seconds
BACKWARD = dict(zip(PHASES, (5.0, 60.0, 700.0, 8000.0), strict=True))


class Work(torch.autograd.Function):
    """Takes so many fake seconds forward, and so many backward."""

    @staticmethod
    def forward(ctx, x, time, forward, backward):
        ctx.time, ctx.backward_seconds = time, backward
        time[0] += forward
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        ctx.time[0] += ctx.backward_seconds
        return grad * 2, None, None, None


@pytest.fixture
def fake():
    return [0.0]


def clock_of(fake, monkeypatch, barrier=None):
    clock = PhaseClock(barrier=barrier)
    monkeypatch.setattr(clock, "_now", lambda: fake[0])
    return clock


def layer(x, clock, time, slower=0.0):
    x = mark(clock, x, "start")
    for phase, name in zip(PHASES, MARKS[1:], strict=True):
        x = mark(clock, Work.apply(x, time, FORWARD[phase] + slower, BACKWARD[phase] + slower), name)
    return x


def medians(clock, backward=False, warmup=0):
    return {phase: spread.median_us / 1e6 for phase, spread in clock.spreads(warmup)[backward].items()}


def test_each_phase_gets_its_own_time(fake, monkeypatch):
    clock = clock_of(fake, monkeypatch)
    x = torch.ones(3, requires_grad=True)
    layer(x, clock, fake).sum().backward()
    assert medians(clock) == FORWARD
    assert medians(clock, backward=True) == BACKWARD
    assert x.grad.tolist() == [16.0] * 3


def test_nothing_happens_without_a_clock():
    x = torch.ones(3)
    assert mark(None, x, "start") is x


def test_warm_up_and_quartiles(fake, monkeypatch):
    """Steps are slower by 90, 0, 1, 2, 3, 4 s; the first is warm-up, so that the quartiles are 1, 2, 3."""
    clock = clock_of(fake, monkeypatch)
    for slower in (90, 0, 1, 2, 3, 4):
        layer(torch.ones(3, requires_grad=True), clock, fake, slower).sum().backward()
    for backward, seconds in ((False, FORWARD), (True, BACKWARD)):
        for phase, spread in clock.spreads(warmup=1)[backward].items():
            found = (spread.q1_us, spread.median_us, spread.q3_us)
            assert found == pytest.approx([1e6 * (seconds[phase] + more) for more in (1, 2, 3)])
    clock.clear()
    assert clock.spreads() == {False: {}, True: {}}


def test_without_gradients_there_is_no_backward(fake, monkeypatch):
    clock = clock_of(fake, monkeypatch)
    with torch.no_grad():
        layer(torch.ones(3), clock, fake)
    assert medians(clock) == FORWARD
    assert medians(clock, backward=True) == {}


def test_recomputation_is_not_a_forward(fake, monkeypatch):
    """Checkpointing runs the forward again inside backward: it shows in no forward phase."""
    clock = clock_of(fake, monkeypatch)
    x = torch.ones(3, requires_grad=True)
    checkpoint(lambda x: layer(x, clock, fake) ** 2, x, use_reentrant=False).sum().backward()
    assert medians(clock) == FORWARD
    assert len(clock._spans[False, "compute"]) == 1
    assert medians(clock, backward=True) == BACKWARD


def test_two_micro_batches_in_flight(fake, monkeypatch):
    clock = clock_of(fake, monkeypatch)
    outputs = [layer(torch.ones(3, requires_grad=True), clock, fake) for _ in range(2)]
    for output in reversed(outputs):
        output.sum().backward()
    assert medians(clock, backward=True) == BACKWARD
    assert {len(spans) for spans in clock._spans.values()} == {2}


def test_a_barrier_is_not_part_of_any_phase(fake, monkeypatch):
    def barrier():
        fake[0] += 1e6

    clock = clock_of(fake, monkeypatch, barrier)
    layer(torch.ones(3, requires_grad=True), clock, fake).sum().backward()
    assert medians(clock) == FORWARD
    assert medians(clock, backward=True) == BACKWARD


def timed(rank, _):
    transport = Transport(dist.group.WORLD)
    clock, time = PhaseClock(barrier=dist.barrier), [0.0]
    clock._now = lambda: time[0]
    for _ in range(3):
        layer(torch.ones(3, requires_grad=True), clock, time, slower=rank).sum().backward()
    return clock.times(transport, warmup=1)


def test_times_of_all_ranks():
    first, second = on_ranks(2, timed)
    assert first == second
    assert (first.steps, first.isolated) == (2, True)
    assert first.median_us_R("compute") == [300e6, 301e6]
    assert first.median_us_R("route", backward=True) == [5e6, 6e6]
    assert json.loads(json.dumps(first.as_json()))["forward"]["dispatch"][1]["q3_us"] == 21e6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_events_see_the_gpu_at_work():
    """The host runs ahead of the GPU; the events must not."""
    clock = PhaseClock("cuda")
    x = torch.randn(4096, 4096, device="cuda", requires_grad=True)
    for _ in range(5):
        y = mark(clock, x, "dispatched")
        for _ in range(10):
            y = torch.tanh(y @ x)
        mark(clock, y, "computed").sum().backward()
    forward, backward = (clock.spreads(warmup=2)[way]["compute"].median_us for way in (False, True))
    flops = 10 * 2 * 4096**3
    assert forward > flops / 1e9  # 1000 TFLOP/s would be a record for float32
    assert backward > forward
