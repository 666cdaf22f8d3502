"""The last check of a plan, and what the planner does with solvers that lie, fail, are missing or are stopped."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.assemble import assemble_plan
from planner.placement import Placement, check_placement
from planner.solve import one_layer, search_layers, solve
from planner.solve.milp import SolveResult
from planner.solve.one_layer import Budget
from planner.solve.solvers import cbc_path
from planner.solve.verify import SolverFault, broken_constraint, verify_plan
from planner.survive import Backups
from tests.planner import plans
from tests.planner.test_solve import random_workload
from topologies import BadInput

SLOTS_R = np.array([2, 2, 2, 2])


def placement(slots=((5, 0), (1, 2), (3, 5), (4, 0)), num_experts=6) -> Placement:
    """Experts 0 and 5 have two copies:  rank 0: 5 0 | rank 1: 1 2 | rank 2: 3 5 | rank 3: 4 0."""
    return Placement.equal_shares(slots, num_experts, 2)


def with_share(slot: int, value: float) -> Placement:
    share_DS = placement().share_DS.copy()
    share_DS[1, slot] = value
    return placement().with_shares(share_DS)


def test_a_plan_is_a_plan():
    assert broken_constraint(placement(), SLOTS_R, 6) == ""


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (placement(((5, 0), (1, 2), (3, 5), (4, 0, 1))), "rank 3 holds more than its 2 slots"),
        (placement(((5, 5), (1, 2), (3, 0), (4, 0))), "expert 5 stands twice on rank 0"),
        (placement(((5, 0), (1, 2), (0, 5), (4, 0))), "expert 3 has no slot"),
        (replace(placement(), expert_S=np.array([5, 0, 1, 2, 3, 5, 4, 6])), "holds expert 6 on rank 3"),
        (replace(placement(), rank_S=np.array([0, 0, 1, 1, 2, 2, 3, -1])), "on rank -1"),
        (replace(placement(), rank_S=np.array([0, 0, 1])), "not of the same slots"),
        (with_share(0, 0.4), "the shares of expert 5 for source domain 1 sum to 0.9, not to 1"),
        (with_share(0, float("nan")), "a share of expert 5 on rank 0 is not within"),
        (with_share(0, -0.5), "a share of expert 5 on rank 0 is not within"),
        (with_share(2, 1.5), "a share of expert 1 on rank 1 is not within"),
    ],
)
def test_every_broken_constraint_is_named(wrong, words):
    assert words in broken_constraint(wrong, SLOTS_R, 6)


def test_experts_that_have_to_survive():
    host_R = np.array([0, 0, 1, 1])
    assert broken_constraint(placement(), SLOTS_R, 6, Backups(host_R, 2)) == ""
    assert "2 experts have copies on two hosts, asked were 3" in broken_constraint(
        placement(), SLOTS_R, 6, Backups(host_R, 3)
    )


@settings(max_examples=150, deadline=None)
@given(plans.placements(6, 4), st.integers(0, 2**32 - 1))
def test_it_agrees_with_the_check_of_placements(drawn, seed):
    """Two checks written apart: of a placement with one number changed they say the same."""
    rng = np.random.default_rng(seed)
    expert_S, share_DS = drawn.expert_S.copy(), drawn.share_DS.copy()
    slot = rng.integers(len(expert_S))
    if rng.random() < 0.5:
        expert_S[slot] = rng.integers(6)
    else:
        share_DS[rng.integers(len(share_DS)), slot] = rng.choice([0.0, 0.5, 1.0, 1.2, -0.1, np.nan])
    changed = replace(drawn, expert_S=expert_S, share_DS=share_DS)
    slots_R = rng.integers(1, 4, 4)
    try:
        check_placement(changed, slots_R)
        valid = True
    except BadInput:
        valid = False
    assert (broken_constraint(changed, slots_R, 6) == "") == valid


def test_memory_and_number_of_layers():
    model, cluster = plans.model_of(6), plans.two_hosts()
    verify_plan([placement()] * 2, SLOTS_R, model, (1, 2), cluster)
    with pytest.raises(SolverFault, match="has 1 layers, asked were 2"):
        verify_plan([placement()], SLOTS_R, model, (1, 2), cluster)
    huge = model.model_copy(update={"hidden": 10**6, "intermediate": 10**6})
    verify_plan([placement()], SLOTS_R, huge, (1,), cluster)  # as many slots as were asked for: the user knows
    with pytest.raises(SolverFault, match=r"layer 1: rank 0 holds more than its 1 slots.*report it"):
        verify_plan([placement()], np.array([1, 2, 2, 2]), model, (1,), cluster)


# Solvers that do not keep their word


def small():
    return random_workload(1), np.full(16, 3)


def solved(**more):
    workload, slots_R = small()
    asked = {"exchange": "pairwise", "workers": 1, "budget": Budget(swaps=5, neighbourhoods=2)} | more
    return workload, slots_R, solve(workload, plans.PROFILE, slots_R, **asked)


def everything(model, **_):
    """Claim that every expert has a slot on every rank, at no cost."""
    names = [variable.name for variable in model._lp.variables()]
    return SolveResult(True, True, 0.0, 0.0, dict.fromkeys(names, 1.0))


def test_an_invalid_point_is_thrown_away(monkeypatch):
    """The solver breaks the limits on slots: the best valid placement stays."""
    calls = []
    monkeypatch.setattr(
        one_layer.PlacementModel, "solve", lambda self, **asked: calls.append(1) or everything(self, **asked)
    )
    workload, slots_R, solution = solved()
    assert calls
    assert all(broken_constraint(p, slots_R, workload.num_experts) == "" for p in solution.placements)


def test_nothing_invalid_leaves_solve(monkeypatch):
    """The search itself goes wrong: no plan comes out, in `solve` or in `assemble_plan`."""
    workload, slots_R, solution = solved()
    bad = solution.placements[0].with_shares(solution.placements[0].share_DS * 0.9)
    layers = (replace(solution.layers[0], placement=bad), *solution.layers[1:])
    with pytest.raises(SolverFault, match=r"sum to 0\.9, not to 1"):
        assemble_plan(workload, plans.PROFILE, slots_R, replace(solution, layers=layers), seed=0, inputs={}, command="")
    monkeypatch.setattr(search_layers.LayerSearch, "run", lambda *_: ("pairwise", dict(enumerate(layers)), True))
    with pytest.raises(SolverFault, match=r"sum to 0\.9, not to 1"):
        solved()


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_no_memory_and_interrupts_keep_the_best_so_far(monkeypatch, error):
    """Raised within the second layer's search: the plan is valid, whole and not called complete."""
    real, turns = search_layers.solve_layer, []

    def fails(*args, **kwargs):
        turns.append(1)
        if len(turns) == 2:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(search_layers, "solve_layer", fails)
    workload, slots_R, solution = solved()
    assert not solution.complete
    assert len(solution.layers) == workload.num_layers
    assert all(broken_constraint(p, slots_R, workload.num_experts) == "" for p in solution.placements)


WITHOUT_HIGHS = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "highspy" else find(name, *more)
sys.modules["highspy"] = None
import numpy as np
from planner.solve import solve
from planner.solve.one_layer import Budget
from tests.planner import plans
from tests.planner.test_solve import random_workload
workload = random_workload(1)
solution = solve(workload, plans.PROFILE, np.full(16, 3), exchange="pairwise", workers=1, budget=Budget(swaps=5))
assert solution.complete
print(solution.solver)
"""


def test_cbc_takes_over_where_highs_is_missing():
    """PuLP 3 brings CBC along; with PuLP 4 it has to be installed, and without it the search is by swaps alone."""
    found = "no solver in its place, so the search is by swaps alone" if cbc_path() is None else "CBC in its place"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HIGHS], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{found} (HiGHS is not installed: pip install highspy)" in done.stdout
