"""Overlap modes and their bound; prediction of whole plans against the layer by layer price; labels."""

import dataclasses

import numpy as np
import pytest

from planner import build_workload, load_cluster, load_profile, predict
from planner.baselines import baseline
from planner.cost import step_cost
from planner.exchange_model import ExchangeModel, MessageRegime
from planner.layer import layer_problem
from planner.model import MoEModel
from planner.placement import Placement
from planner.provenance import FitReport, Span, weakest
from planner.routing import Routing
from planner.solve.bounds import lower_bound
from planner.timing import EXCHANGES, OVERLAPS
from topologies import BadInput


def workload(cluster="hgx-h100:2", *, seed=0, layers=2, per_source=False, tokens=300.0):
    model = MoEModel(
        name="small", experts=32, top_k=4, hidden=1024, intermediate=512, num_layers=layers,
        moe_layers=tuple(range(layers)),
        shared_experts=1, shared_intermediate=512,
    )  # fmt: skip
    machine = load_cluster(cluster)
    rng = np.random.default_rng(seed)
    counts = rng.pareto(1.5, (layers, machine.num_domains if per_source else 1, 32)) + 0.05
    return build_workload(
        model, machine, Routing(layers=tuple(range(layers)), counts=counts, trace=None, name="made"), tokens
    )


def random_placement(load, rng, spare=8):
    """Every expert once and a few replicas, on random ranks, with random shares for every domain."""
    ranks, experts = load.num_ranks, load.num_experts
    pairs = {(int(e), int(r)) for e, r in enumerate(rng.integers(0, ranks, experts))}
    pairs |= {
        (int(e), int(r)) for e, r in zip(rng.integers(0, experts, spare), rng.integers(0, ranks, spare), strict=True)
    }
    expert_S, rank_S = np.array(sorted(pairs)).T
    placement = Placement.of_slots(expert_S, rank_S, experts, ranks, load.num_domains)
    share_DS = rng.uniform(0.1, 1, placement.share_DS.shape)
    total_DE = np.zeros((load.num_domains, experts))
    np.add.at(total_DE, (slice(None), placement.expert_S), share_DS)
    return placement.with_shares(share_DS / total_DE[:, placement.expert_S])


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_the_bound_holds_for_random_placements_under_every_overlap(overlap, exchange):
    load = workload()
    cost = step_cost(load, load_profile(), exchange, overlap=overlap)
    problem = layer_problem(load, cost, np.full(load.num_ranks, 8), 0)
    bound = lower_bound(problem)
    assert bound > 0
    rng = np.random.default_rng(3)
    for _ in range(40):
        placement = random_placement(load, rng)
        if (placement.slots_R <= 8).all():
            assert problem.evaluate(placement).layer_us >= bound * (1 - 1e-12)


def test_overlaps_by_hand():
    load = workload()
    cost = step_cost(load, load_profile(), "pairwise")
    assert cost.layer_us(10, 40, 20) == 70
    shared = dataclasses.replace(cost, overlap="shared-expert", shared_us=7.0)
    assert shared.layer_us(10, 40, 20) == 63
    assert shared.layer_us(5, 40, 20) == 60  # a dispatch shorter than the shared experts costs nothing
    two = dataclasses.replace(cost, overlap="two-batches")
    assert two.layer_us(10, 40, 20) == 10 + 40 + 40 + 20  # compute-bound: both batches' experts in turn
    assert two.layer_us(30, 5, 20) == 30 + 30 + 20 + 20  # link-bound: both batches' transfers in turn


@pytest.mark.parametrize("times", [(10, 40, 20), (30, 5, 20), (1, 1, 1), (0, 9, 3)])
def test_two_batches_against_a_schedule(times):
    """Play the schedule: the link and the experts each do one thing at a time, batch 1 before batch 2."""
    d, c, b = times
    sent_1, sent_2 = d, 2 * d
    done_1 = sent_1 + c
    done_2 = max(done_1, sent_2) + c
    back_1 = max(done_1, sent_2) + b
    back_2 = max(back_1, done_2) + b
    two = dataclasses.replace(step_cost(workload(), load_profile(), "pairwise"), overlap="two-batches")
    assert two.layer_us(d, c, b) == pytest.approx(back_2)


def test_half_a_batch_costs_half_the_bytes_and_all_of_the_weights():
    load = workload(tokens=4096.0)
    whole = step_cost(load, load_profile(), "pairwise")
    half = step_cost(load, load_profile(), "pairwise", overlap="two-batches")
    placement = baseline("linear", load, np.full(load.num_ranks, 2))[0]
    slots = np.full(load.num_ranks, 32)
    a, b = (layer_problem(load, cost, slots, 0).evaluate(placement) for cost in (whole, half))
    assert b.dispatch_us_N.max() == pytest.approx(a.dispatch_us_N.max() / 2)
    assert half.slot_us_R == pytest.approx(whole.slot_us_R)
    assert half.row_us_R == pytest.approx(whole.row_us_R / 2)


def test_shared_experts_are_needed_to_hide_under_them():
    load = workload()
    load = dataclasses.replace(
        load, model=load.model.model_copy(update={"shared_experts": 0, "shared_intermediate": 0})
    )
    with pytest.raises(BadInput, match="no shared experts"):
        step_cost(load, load_profile(), "pairwise", overlap="shared-expert")


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("per_source", [False, True])
def test_a_plan_at_once_is_its_layers_one_by_one(exchange, per_source):
    load = workload(layers=3, per_source=per_source)
    rng = np.random.default_rng(5)
    placements = [random_placement(load, rng, spare) for spare in (0, 8, 40)]
    cost = step_cost(load, load_profile(), exchange)
    together = predict("plan", placements, load, load_profile(), exchange)
    for row, placement in enumerate(placements):
        alone = layer_problem(load, cost, np.full(load.num_ranks, 32), row).evaluate(placement)
        layer = together.layers[row]
        for field in ("imbalance", "dispatch_us", "compute_us", "combine_us", "layer_us"):
            assert getattr(layer, field) == pytest.approx(getattr(alone, field), rel=1e-9)
        assert layer.bottleneck == alone.bottleneck


def test_two_copies_on_one_rank_count_as_one():
    load = workload(layers=1)
    expert_S = np.concatenate([np.arange(32), [0, 0]])
    rank_S = np.concatenate([np.arange(32) % 16, [0, 3]])  # expert 0 twice on rank 0, once on rank 3
    doubled = Placement.of_slots(expert_S, rank_S, 32, 16, load.num_domains)
    merged = doubled.without_duplicates()
    a, b = (predict("plan", [p], load, load_profile(), "dedup").layers[0] for p in (doubled, merged))
    assert a.dispatch_us == pytest.approx(b.dispatch_us)


def test_the_price_list_is_kept_with_the_workload():
    load = workload()
    assert step_cost(load, load_profile(), "dedup") is step_cost(load, load_profile(), "dedup")
    assert step_cost(load, load_profile(), "dedup") is not step_cost(workload(), load_profile(), "dedup")


def fitted(system="h100_sxm", ranks=(2, 8), hosts=(1, 1), exchange=None, us=None):
    report = FitReport(table="t", date="2026-11-21", rows=1, mape=0, median=0, p95=0)
    spans = {
        "ranks": Span(low=ranks[0], high=ranks[1]),
        "hosts": Span(low=hosts[0], high=hosts[1]),
        "message_bytes": Span(low=1, high=1e9),
    }
    return ExchangeModel(
        kernel="k", exchange=exchange, system=system, op="alltoall", dtype="any", host_ranks=8,
        link_gbps=450, inter_link_gbps=50,
        regimes=(MessageRegime(us=us or {"start": 5.0, "doubling": 2.0, "wire": 1 / 300}),), spans=spans, fit=report,
    )  # fmt: skip


def with_model(model):
    return load_profile().model_copy(update={"name": "mine", "status": "calibrated", "exchanges": (model,)})


def test_a_fit_sets_start_up_and_link_speed():
    load = workload("hgx-h100:1")
    cost = step_cost(load, with_model(fitted()), "pairwise")
    assert cost.dispatch.alpha_us == pytest.approx(5 + 2 * 3)  # log2(8 ranks) = 3
    placement = baseline("linear", load, np.full(8, 4))[0]
    vendor, mine = (
        layer_problem(load, c, np.full(8, 32), 0).evaluate(placement)
        for c in (step_cost(load, load_profile(), "pairwise"), cost)
    )
    assert mine.dispatch_us_N.max() == pytest.approx(
        vendor.dispatch_us_N.max() * (0.65 if cost.dispatch else 1) * 450 / 300, rel=1e-6
    )


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (fitted(system="h200_sxm"), "measured on h200_sxm"),
        (fitted(ranks=(2, 4)), "ranks 8 outside the measured 2 to 4"),
    ],
)
def test_beyond_the_measurements_it_says_so(model, reason):
    cost = step_cost(workload("hgx-h100:1"), with_model(model), "pairwise")
    assert cost.label == "extrapolated"
    assert any(reason in line for line in cost.reasons)


def test_what_a_calibrated_profile_lacks_is_extrapolated_and_vendor_stays_vendor():
    load = workload("hgx-h100:1")
    calibrated = step_cost(load, with_model(fitted()), "pairwise")
    assert calibrated.label == "extrapolated"
    assert any("no measurements of bf16 experts" in line for line in calibrated.reasons)
    assert step_cost(load, load_profile(), "pairwise").label == "vendor"
    assert (
        predict("p", baseline("linear", load, np.full(8, 4)), load, load_profile(), "pairwise").provenance == "vendor"
    )


def test_weakest_label():
    assert weakest(["fitted", "vendor", "extrapolated"]) == "extrapolated"
    assert weakest(["fitted", "vendor"]) == "vendor"
    assert weakest(["fitted"]) == "fitted"


def test_shipped_h200_profile_is_fitted_where_it_was_measured():
    model = MoEModel(
        name="ds",
        experts=256,
        top_k=8,
        hidden=7168,
        intermediate=2048,
        num_layers=1,
        moe_layers=(0,),
        weight_dtype="fp8",
    )
    routing = Routing(layers=(0,), counts=np.ones((1, 1, 256)), trace=None, name="made")
    for exchange, tokens in (("two-level", 1024.0), ("pairwise", 128.0)):
        load = build_workload(model, load_cluster("hgx-h200:2"), routing, tokens)
        cost = step_cost(load, load_profile("h200"), exchange)
        assert cost.label == "fitted", cost.reasons
        assert (
            step_cost(
                build_workload(model, load_cluster("hgx-h100:2"), routing, tokens), load_profile("h200"), exchange
            ).label
            == "extrapolated"
        )
