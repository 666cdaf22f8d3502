"""Predicted rows of a cover against the integers of `exact_rows`, and the choice between cover and shares."""

from dataclasses import replace

import numpy as np
import pytest

from planner.assemble import assemble_plan
from planner.cover_rows import CoverSlots
from planner.exact_rows import exact_rows
from planner.exporters import export_plan
from planner.placement import Placement
from planner.plan import load_plan
from planner.predict import predict
from planner.routing import Routing
from planner.simulate import simulate_layer
from planner.solve import solve
from planner.solve.copies import choose_copies
from planner.solve.one_layer import Budget
from planner.timing import EXCHANGES
from planner.workload import build_workload
from tests.planner.definitions import PROFILE, tiny_cluster, tiny_model
from topologies import BadInput

E, K, R, P = 12, 4, 4, 120
QUICK = Budget(swaps=5, domain_swaps=5, neighbourhoods=0)


def traced(seed=0, tokens_per_rank=None):
    """A trace of 120 tokens on four ranks of two hosts: experts of one half of the ids go together."""
    rng = np.random.default_rng(seed)
    half = rng.integers(0, 2, P)
    ids = np.stack([rng.permutation(E // 2)[:K] + E // 2 * h for h in half])
    counts = np.bincount(ids.ravel(), minlength=E).astype(float)
    routing = Routing((0,), counts[None, None], trace=ids[None], name="made")
    return build_workload(tiny_model(E, top_k=K), tiny_cluster(R, 2), routing, tokens_per_rank), ids


def replicated(seed=0):
    rng = np.random.default_rng(seed)
    has_ER = rng.random((E, R)) < 0.5
    has_ER[np.arange(E), rng.integers(0, R, E)] = True
    placement = Placement.equal_shares([np.flatnonzero(row).tolist() for row in has_ER.T], E, 2)
    return replace(placement, replica_choice="cover")


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_those_of_the_first_rank_of_each_domain(seed):
    workload, ids = traced(seed)
    placement = replicated(seed)
    slots = CoverSlots(workload, [placement])
    domain_R, rail_R = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    part = workload.tokens_per_rank / P  # every token stands for so many of one rank
    pairs = exact_rows(placement, [ids] * R, "pairwise", domain_R, rail_R)["dispatch"]
    ranks = exact_rows(placement, [ids] * R, "dedup", domain_R, rail_R)["dispatch"]
    out = exact_rows(placement, [ids] * R, "two-level", domain_R, rail_R)["scale-out"]
    for c, rank in enumerate((0, 2)):  # the first rank of each host
        assert slots.pairs_LCR[0, c] == pytest.approx(part * pairs[rank])
        assert slots.by_rank_LCR[0, c] == pytest.approx(part * ranks[rank])
        assert slots.by_domain_LCD[0, c] == pytest.approx(part * out[rank][[0, 2]])  # through the peers of rail 0


def test_one_copy_each_leaves_nothing_to_choose():
    workload, _ = traced()
    placement = Placement.equal_shares([[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]], E, 2)
    for exchange in EXCHANGES:
        shares = predict("a", [placement], workload, PROFILE, exchange)
        cover = predict("a", [replace(placement, replica_choice="cover")], workload, PROFILE, exchange)
        assert cover.total_us == pytest.approx(shares.total_us, rel=1e-9)


def test_sampled_tokens_serve_where_there_is_no_trace():
    """Counts alone: tokens are sampled; loads stay those of the counts."""
    workload, _ = traced()
    counted = build_workload(workload.model, workload.cluster, replace(workload.routing, trace=None), 500)
    slots = CoverSlots(counted, [replicated()])
    assert slots.pairs_LCR.sum(axis=2) == pytest.approx(counted.rows_LCE.sum(axis=2))
    assert (slots.by_domain_LCD <= slots.by_rank_LCR.reshape(1, 2, 2, 2).sum(axis=3) + 1e-9).all()


@pytest.fixture(scope="module")
def solved():
    workload, _ = traced(3, tokens_per_rank=2000)
    return workload, solve(workload, PROFILE, np.full(R, 6), exchange="two-level", workers=1, budget=QUICK)


def test_auto_takes_the_faster_and_cover_is_taken_when_asked(solved):
    workload, solution = solved
    forced, chosen = (choose_copies(solution, workload, PROFILE, how) for how in ("cover", "auto"))
    assert {p.replica_choice for p in forced.placements} == {"cover"}
    assert forced.predictions[-1].total_us == pytest.approx(
        predict("", forced.placements, workload, PROFILE, "two-level").total_us
    )
    best = min(forced.predictions[-1].total_us, solution.predictions[-1].total_us)
    assert chosen.predictions[-1].total_us == pytest.approx(best)
    assert all(layer.bound <= layer.objective for layer in forced.layers)


def test_a_cover_goes_through_plan_json_and_not_into_an_engine(solved, tmp_path):
    workload, solution = solved
    forced = choose_copies(solution, workload, PROFILE, "cover")
    plan = assemble_plan(workload, PROFILE, np.full(R, 6), forced, seed=0, inputs={}, command="")
    plan.save(tmp_path / "plan.json")
    again = load_plan(tmp_path / "plan.json")
    assert again.replica_choice == "cover"
    assert {p.replica_choice for p in again.placements()} == {"cover"}
    with pytest.raises(BadInput, match="--replica-choice shares"):
        export_plan(again, "lp-shares")
    with pytest.raises(BadInput, match="cover"):
        simulate_layer(workload, again.placement(0), 0, PROFILE, "two-level")


def test_plans_without_the_field_use_shares(solved, tmp_path):
    workload, solution = solved
    plan = assemble_plan(workload, PROFILE, np.full(R, 6), solution, seed=0, inputs={}, command="")
    text = plan.to_json()
    lines = [line for line in text.splitlines() if '"replica_choice"' not in line and '"sha256"' not in line]
    (tmp_path / "plan.json").write_text("\n".join(lines))
    assert load_plan(tmp_path / "plan.json").replica_choice == "shares"
