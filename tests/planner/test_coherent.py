"""The coherent exchange: rows against loops over tokens and layers, plans against every placement of tiny models."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.coherent import coherent_step, predict_coherent
from planner.coherent_rows import WAYS
from planner.model import MoEModel
from planner.placement import Placement
from planner.routing import Routing, count_trace
from planner.solve import coherent, solve
from planner.solve.coherent import followed
from planner.timing import plain
from planner.workload import build_workload
from tests.planner.coherent_loops import by_loops, coherent_times
from tests.planner.definitions import PROFILE, tiny_cluster
from topologies import BadInput


def made(trace, experts, cluster, *, source=None, tokens=None, dtype="bf16"):
    """A workload of a trace [L, T, K]."""
    trace = np.asarray(trace)
    L, _, K = trace.shape
    model = MoEModel(
        name="made", experts=experts, top_k=K, hidden=1024, intermediate=256, num_layers=L, moe_layers=tuple(range(L)),
        weight_dtype=dtype,
    )  # fmt: skip
    sources = 1 if source is None else int(max(source)) + 1
    counts = count_trace(trace, experts, None if source is None else np.asarray(source), sources)
    routing = Routing(tuple(range(L)), counts, trace=trace, name="made", token_source=source)
    return build_workload(model, cluster, routing, tokens)


def drawn(seed, layers=3, tokens=40, experts=6, top_k=2, masked=0.1):
    rng = np.random.default_rng(seed)
    weight = rng.random((layers, tokens, experts)) ** 3 + 1e-6
    ids = np.argsort(-weight * (1 + np.arange(experts)), axis=2)[:, :, :top_k]
    return np.where(rng.random(ids.shape) < masked, -1, ids)


def placed(rng, experts, ranks, domains, copies=0):
    """Every expert on a rank at random, some on more; shares at random."""
    held = [[] for _ in range(ranks)]
    for expert in rng.permutation(experts).tolist():
        held[int(rng.integers(ranks))].append(expert)
    for expert in rng.choice(experts, copies, replace=False).tolist():
        free = [rank for rank in range(ranks) if expert not in held[rank]]
        held[int(rng.choice(free))].append(expert)
    placement = Placement.equal_shares(held, experts, domains)
    weight = rng.random(placement.share_DS.shape)
    total = np.stack([np.bincount(placement.expert_S, row, experts) for row in weight])
    return placement.with_shares(weight / total[:, placement.expert_S])


def leaving(rows):
    """The rows between different ranks, as (source, destination): count."""
    if isinstance(rows, np.ndarray):
        rows = {pair: int(count) for pair, count in np.ndenumerate(rows)}
    return {pair: count for pair, count in rows.items() if count and pair[0] != pair[1]}


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([(4, 2), (4, 1), (6, 3), (2, 2)]), st.integers(0, 3), st.sampled_from(WAYS)
)
def test_rows_equal_loops_over_tokens_and_layers(seed, shape, copies, way):
    """Two to six ranks on one to three hosts; masked experts, copies with shares of their own for each domain."""
    ranks, hosts = shape
    cluster, rng = tiny_cluster(ranks, hosts), np.random.default_rng(seed)
    workload = made(drawn(seed), 6, cluster)
    placements = [placed(rng, 6, ranks, cluster.num_domains, copies if ranks > 1 else 0) for _ in range(3)]
    ways = coherent_step(workload, PROFILE, way).ways
    assert ways.home_P.tolist() == [token * ranks // 40 for token in range(40)]
    layers, gather = by_loops(workload, placements, way)
    for found, (moved, sent, back, load, at) in zip(ways.walk(placements), layers, strict=True):
        assert leaving(found.moved_RR) == leaving(moved)
        assert leaving(found.sent_RR) == leaving(sent)
        assert leaving(found.back_RR) == leaving(back)
        assert found.load_R.tolist() == [load[rank] for rank in range(ranks)]
        assert found.at_P.tolist() == at
    assert leaving(ways.gathered_RR(np.array(layers[-1][-1]))) == leaving(gather)


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
@pytest.mark.parametrize("copies", [0, 2])
@pytest.mark.parametrize("way", WAYS)
def test_times_are_those_of_the_rows(dtype, copies, way):
    """Links and ranks added up here: hidden states in bf16, other dispatched rows as the model sends them."""
    cluster, rng = tiny_cluster(4, 2), np.random.default_rng(1)
    workload = made(drawn(1), 6, cluster, tokens=1000, dtype=dtype)
    placements = [placed(rng, 6, 4, 2, copies) for _ in range(3)]
    found = coherent_step(workload, PROFILE, way).predict("plan", placements)
    times = coherent_times(workload, placements, way)
    for one, (dispatch_us, combine_us, load_R) in zip(found.layers, times, strict=True):
        assert (one.dispatch_us, one.combine_us) == pytest.approx((dispatch_us, combine_us))
        assert one.imbalance == pytest.approx(max(load_R) / np.mean(load_R))
        assert one.layer_us == pytest.approx(one.dispatch_us + one.compute_us + one.combine_us)
    assert found.exchange == "coherent"


def test_top_1_tokens_that_stay_cost_nothing_but_start_ups():
    """Ranks 0 | 1 hold experts 0 1 | 2 3 in every layer; tokens of 0 and 1 never leave rank 0, and none comes back."""
    cluster = tiny_cluster(2, 2)
    trace = np.repeat(np.array([[0, 1, 0, 2, 3, 2], [1, 0, 1, 3, 3, 3]])[:, :, None], 1, axis=2)
    placements = [Placement.equal_shares([[0, 1], [2, 3]], 4, 2)] * 2
    found = predict_coherent("plan", placements, made(trace, 4, cluster), PROFILE)
    regime = PROFILE.regime(1.0)
    start_up = regime.alpha_inter_us  # of the way with fewer start-ups
    assert [one.dispatch_us for one in found.layers] == pytest.approx([start_up, start_up])
    assert found.layers[0].combine_us == pytest.approx(start_up)
    assert found.layers[1].combine_us > 2 * start_up


def test_sources_that_the_trace_names_are_the_homes():
    cluster = tiny_cluster(4, 2)
    by_rank = made(drawn(0, tokens=8), 6, cluster, source=np.array([3, 0, 0, 1, 2, 3, 1, 2]))
    assert coherent_step(by_rank, PROFILE, "dedup").ways.home_P.tolist() == [3, 0, 0, 1, 2, 3, 1, 2]
    by_host = made(drawn(0, tokens=8), 6, cluster, source=np.array([1, 0, 1, 0, 1, 0, 1, 0]))
    assert coherent_step(by_host, PROFILE, "dedup").ways.home_P.tolist() == [2, 0, 2, 0, 3, 1, 3, 1]


@pytest.mark.parametrize("seed", range(4))
def test_equals_brute_force(seed):
    """Two layers of four experts on two ranks of two hosts, two slots each: 6 x 6 plans."""
    cluster = tiny_cluster(2, 2)
    workload = made(drawn(seed, layers=2, tokens=60, experts=4), 4, cluster, tokens=5000)
    ways = [[list(held), sorted(set(range(4)) - set(held))] for held in itertools.combinations(range(4), 2)]
    every = [Placement.equal_shares(held, 4, 2) for held in ways]
    every_plan = itertools.product(every, repeat=2)
    best = min(predict_coherent("one", plan, workload, PROFILE).total_us for plan in every_plan)
    found = solve(workload, PROFILE, np.array([2, 2]), exchange="coherent", workers=1)
    assert found.predictions[-1].total_us == pytest.approx(best)
    assert sum(layer.bound for layer in found.layers) <= best


@pytest.mark.parametrize(
    ("ranks", "hosts", "slots", "limit"), [(4, 2, 3, None), (4, 1, 4, 0), (4, 2, 3, 0), (6, 3, 2, 0.5)]
)
def test_never_worse_than_a_baseline(ranks, hosts, slots, limit, monkeypatch):
    monkeypatch.setattr(coherent, "SWEEPS", (2, 2))
    workload = made(drawn(7, tokens=120, experts=8), 8, tiny_cluster(ranks, hosts), tokens=2000)
    found = solve(workload, PROFILE, np.full(ranks, slots), exchange="coherent", time_limit_s=limit, workers=1)
    *baselines, without, this = found.predictions
    assert [one.exchange for one in baselines] == ["coherent"] * 4
    assert this.total_us <= min(one.total_us for one in baselines) * (1 + 1e-9)
    assert this == predict_coherent("this plan", found.placements, workload, PROFILE)
    assert without.name == "without coherent"
    assert without.exchange != "coherent"
    assert all(layer.bound <= layer.objective for layer in found.layers)


def test_interrupted_it_keeps_the_best_so_far(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(coherent._Descent, "_sweep", interrupt)
    workload = made(drawn(7, experts=8), 8, tiny_cluster(4, 2), tokens=2000)
    found = solve(workload, PROFILE, np.full(4, 3), exchange="coherent", workers=1)
    *baselines, _, this = found.predictions
    assert not found.complete
    assert this.total_us <= min(one.total_us for one in baselines) * (1 + 1e-9)


def test_the_same_plan_for_the_same_seed(monkeypatch):
    monkeypatch.setattr(coherent, "SWEEPS", (2, 2))
    workload = made(drawn(3, layers=2, experts=8), 8, tiny_cluster(4, 2), tokens=2000)
    one, two = (solve(workload, PROFILE, np.full(4, 3), exchange="coherent", seed=5, workers=1) for _ in range(2))
    assert [p.slots() for p in one.placements] == [p.slots() for p in two.placements]


def test_maps_follow_the_tokens_and_keep_what_ranks_hold():
    """Layer 1 has layer 0's experts on the other host and rank: as a whole it goes where the tokens come from."""
    cluster = tiny_cluster(4, 2)
    tokens = np.random.default_rng(0).integers(8, size=200)
    trace = np.stack([tokens, tokens])[:, :, None]
    first = Placement.equal_shares([[0, 1], [2, 3], [4, 5], [6, 7]], 8, 2)
    other = Placement.equal_shares([[6, 7], [4, 5], [2, 3], [0, 1]], 8, 2)
    step = coherent_step(made(trace, 8, cluster, tokens=4096), PROFILE, "dedup")
    found = followed(step, [first, other], np.asarray(cluster.domain_of_rank))
    assert found[0].slots() == found[1].slots()
    assert sorted(found[1].slots()) == sorted(other.slots())
    assert step.predict("new", found).total_us < step.predict("old", [first, other]).total_us


def test_what_cannot_be_coherent_is_refused():
    cluster = tiny_cluster(2, 1)
    workload = made(drawn(0), 6, cluster)
    counts = replace(workload.routing, trace=None, name="loads.json")
    without_trace = build_workload(workload.model, cluster, counts)
    placements = [Placement.equal_shares([[0, 1, 2], [3, 4, 5]], 6, 1)] * 3
    with pytest.raises(BadInput, match=r"loads.json: counts only; --exchange coherent .* record the experts of every"):
        predict_coherent("plan", placements, without_trace, PROFILE)
    with pytest.raises(BadInput, match="made: one layer only; --exchange coherent follows"):
        solve(made(drawn(0, layers=1), 6, cluster), PROFILE, np.full(2, 3), exchange="coherent")
    with pytest.raises(BadInput, match="--overlap two-batches: --exchange coherent"):
        predict_coherent("plan", placements, workload, PROFILE, overlap="two-batches")
    with pytest.raises(BadInput, match="exchange coherent: goes with the objective time"):
        solve(workload, PROFILE, np.full(2, 3), exchange="coherent", objective="balance")
    with pytest.raises(BadInput, match=r"the plan is made for --exchange coherent, .* make it with another one"):
        plain("coherent")
    assert plain("dedup") == "dedup"
