"""Loads against a count by hand, shared cores against small steps, and fits against a machine of known speed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed as dist

from executor.loads import Loads, loads_of
from executor.machine_model import Machine, fit_machine
from executor.measure import PhaseTimes, Spread
from executor.probes import SIZES, make_probes
from executor.sharing import finish_R
from executor.step_ids import step_ids
from executor.transport import Transport
from executor.trial import Setting, timed
from planner import MoEModel, Routing
from planner.routing import count_trace
from tests.executor.layers import Case, ids_of, placement_of
from tests.executor.ranks import on_ranks
from topologies import BadInput

TINY = MoEModel(
    name="tiny", experts=8, top_k=2, hidden=16, intermediate=8, num_layers=4, moe_layers=(0, 1, 2, 3), groups=1
)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(1, 8))
@settings(deadline=None)
def test_shared_cores_against_small_steps(work, cores):
    step, left, done, now = 1 / 64, np.array(work, dtype=float), np.zeros(len(work)), 0.0
    while (left > 1e-9).any():
        at_work = left > 1e-9
        left = np.where(at_work, left - step * min(cores / at_work.sum(), 1.0), left)
        now += step
        done = np.where(at_work, now, done)
    assert finish_R(np.array(work, dtype=float), cores) == pytest.approx(done, abs=len(work) * len(work) * step + 1e-6)


@pytest.mark.parametrize("exchange", ["pairwise", "dedup"])
def test_loads_are_those_of_a_count_by_hand(exchange):
    """One copy of each expert, so that every pair's rank is known without any rule of choice."""
    case = Case((6, 9, 4), replicas=0.0)
    placement, domain_R, rail_R = placement_of(case)
    rank_of = dict(zip(placement.expert_S.tolist(), placement.rank_S.tolist(), strict=True))
    ids = [ids_TK.numpy() for ids_TK in ids_of(case)]
    rows, sent, received, active = np.zeros(3), np.zeros(3), np.zeros(3), [set() for _ in range(3)]
    for source, ids_TK in enumerate(ids):
        for token in ids_TK.tolist():
            targets = [rank_of[expert] for expert in token if expert >= 0]
            for expert, rank in zip([e for e in token if e >= 0], targets, strict=True):
                rows[rank] += 1
                active[rank].add(expert)
            for rank in sorted(set(targets)) if exchange == "dedup" else targets:
                sent[source] += rank != source
                received[rank] += rank != source
    loads = loads_of(placement, ids, exchange, domain_R, rail_R)
    for found, expected in zip(
        (loads.rows_R, loads.sent_R, loads.received_R, loads.active_R),
        (rows, sent, received, [len(experts) for experts in active]),
        strict=True,
    ):
        assert found.tolist() == list(expected)


def even(rows, active, wire, ranks=4):
    """Return loads that are alike on all ranks."""
    return Loads(*(np.full(ranks, value) for value in (rows, active, wire, wire)))


def times_of(us):
    """Return times of 4 ranks that are alike."""
    spreads = {way: tuple([Spread(us[way], us[way], us[way])] * 4) for way in us}
    forward = {phase: spread for (phase, backward), spread in spreads.items() if not backward}
    return PhaseTimes(True, 1, forward, {phase: spread for (phase, backward), spread in spreads.items() if backward})


def known_machine(cores):
    """Fit a machine whose every constant is known: 4 ranks on so many cores."""
    crowding = max(4 / cores, 1)
    probes = []
    for rows, active in ((100, 4), (200, 4), (400, 4), (800, 4), (200, 2), (400, 2), (800, 1)):
        loads = even(rows, active, rows)
        us = {("dispatch", False): 50 + 0.3 * rows, ("combine", False): 70 + 0.2 * rows}
        us |= {("compute", way): crowding * ((1 + way) * 10 + 5 * active + 0.25 * rows) for way in (False, True)}
        probes.append((loads, times_of(us)))
    machine = Machine(np.zeros(4, dtype=np.int64), np.arange(4), cores)
    return fit_machine(probes, "pairwise", machine, row_bytes=1000.0)


@pytest.mark.parametrize("cores", [2.0, 4.0])
def test_a_machine_of_known_speed_is_found(cores):
    machine = known_machine(cores)
    assert max(machine.errors.values()) < 1e-3
    found = machine.predict(even(300, 3, 600))
    assert {way: prediction.provenance for way, prediction in found.items()} == dict.fromkeys(found, "fitted")
    crowding = max(4 / cores, 1)
    assert found["dispatch", False].us == pytest.approx(50 + 0.3 * 600, rel=0.01)
    assert found["combine", False].us == pytest.approx(70 + 0.2 * 600, rel=0.01)
    assert found["compute", True].us == pytest.approx(crowding * (20 + 15 + 75), rel=0.01)
    assert ("combine", True) not in found, "what was not probed is not predicted"


def test_uneven_loads_wait_for_the_busiest_rank():
    """Rank 0 has 800 rows, the others 200: work of 230 and 80 us a rank.

    On 4 cores the busiest takes 230. On 2 cores all four share until 80 each is done, at 160; then rank 0 runs alone
    for the rest of its 150, until 310.
    """
    rows_R = np.array([800, 200, 200, 200])
    loads = Loads(rows_R, np.full(4, 4), np.full(4, 400), np.full(4, 400))
    for cores, us in ((4.0, 230), (2.0, 310)):
        assert known_machine(cores).predict(loads)["compute", False].us == pytest.approx(us, rel=0.01)


def test_sizes_beyond_the_probes_are_extrapolated():
    found = known_machine(4.0).predict(even(8000, 4, 8000))
    assert {prediction.provenance for prediction in found.values()} == {"extrapolated"}


def probed(_, size):
    machine = Machine(np.zeros(size, dtype=np.int64), np.arange(size), float(size))
    setting = Setting(torch.device("cpu"), torch.float32, 2, 1, backward=True)
    transport = Transport(dist.group.WORLD)
    probes = make_probes(TINY, "dedup", machine, 32, transport, setting)
    times = timed({number: probe.moe for number, probe in enumerate(probes)}, transport, setting, dist.barrier)
    measured = [(probe.loads, times[number]) for number, probe in enumerate(probes)]
    model = fit_machine(measured, "dedup", machine, row_bytes=64.0)
    return {way: prediction.us for way, prediction in model.predict(even(64, 4, 20, size)).items()}, model.errors


def test_probes_on_real_ranks():
    (predicted, errors), other = on_ranks(2, probed)
    assert (predicted, errors) == other, "all ranks find the same model"
    assert set(predicted) == {(p, way) for p in ("dispatch", "compute", "combine") for way in (False, True)}
    assert all(0 < us < 1e6 for us in predicted.values())
    assert len({part for part, _ in SIZES}) > 3


def routing_of(trace_LTK, token_source=None):
    sources = 1 if token_source is None else int(token_source.max()) + 1
    counts = count_trace(trace_LTK, TINY.experts, token_source, sources)
    return Routing(tuple(range(len(trace_LTK))), counts, trace_LTK, token_source, name="trace.npz")


def some_trace(tokens, layers=2):
    rng = np.random.default_rng(0)
    return np.stack([[rng.permutation(8)[:2] for _ in range(tokens)] for _ in range(layers)]).astype(np.int16)


def test_a_trace_is_dealt_to_one_rank_after_the_other():
    """7 tokens for 3 ranks x 4: 0123 456(0) 1234."""
    trace_LTK = some_trace(7)
    ids = step_ids(TINY, (0, 1), 3, 4, routing_of(trace_LTK))
    for layer in range(2):
        for rank, tokens in enumerate(([0, 1, 2, 3], [4, 5, 6, 0], [1, 2, 3, 4])):
            np.testing.assert_array_equal(ids[layer][rank], trace_LTK[layer, tokens])


def test_tokens_stay_with_the_rank_that_they_came_from():
    trace_LTK, source = some_trace(5), np.array([0, 2, 0, 2, 2])
    ids = step_ids(TINY, (1,), 4, 4, routing_of(trace_LTK, source))
    assert list(ids) == [1]
    np.testing.assert_array_equal(ids[1][0], trace_LTK[1, [0, 2, 0, 2]])
    np.testing.assert_array_equal(ids[1][2], trace_LTK[1, [1, 3, 4, 1]])
    assert [len(ids_TK) for ids_TK in ids[1]] == [4, 0, 4, 0]
    with pytest.raises(BadInput, match="tokens of 3 source ranks, but the plan has 2"):
        step_ids(TINY, (1,), 2, 4, routing_of(trace_LTK, source))


def test_counts_are_sampled_at_their_rates():
    counts_LSE = np.array([[[4.0, 4, 2, 2, 1, 1, 1, 1]]])
    ids = step_ids(TINY, (0,), 2, 2000, Routing((0,), counts_LSE, name="counts.csv"))
    found_E = np.bincount(np.concatenate(ids[0]).ravel(), minlength=8)
    assert found_E.sum() == 2 * 2000 * 2
    assert found_E / 500 == pytest.approx(counts_LSE[0, 0], rel=0.1)


def test_random_tokens_are_even_and_the_same_everywhere():
    ids, again = (step_ids(TINY, (0, 3), 2, 1000, None) for _ in range(2))
    for layer in (0, 3):
        np.testing.assert_array_equal(ids[layer], again[layer])
        assert np.bincount(np.concatenate(ids[layer]).ravel(), minlength=8) == pytest.approx(500, rel=0.15)
    assert not np.array_equal(ids[0], ids[3])
