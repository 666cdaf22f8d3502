"""The search of many layers under a time limit: which come first, in how many processes, and what is kept."""

import importlib
import time
from dataclasses import replace

import numpy as np
import pytest

from planner.solve import solve
from planner.solve.incumbents import Incumbents, place_baselines
from planner.solve.solution import LayerSolution
from tests.planner import plans
from tests.planner.test_solve import random_workload

search_layers = importlib.import_module("planner.solve.search_layers")
SLOTS_R = np.full(16, 3)


def search(workload, time_limit_s=None, workers=2):
    known = Incumbents(workload, plans.PROFILE, SLOTS_R, "time", "none", place_baselines(workload, SLOTS_R))
    return search_layers.LayerSearch(known, None, 0, workers, time.monotonic(), time_limit_s)


@pytest.mark.parametrize(
    ("limit_s", "workers", "expected"),
    [(None, 2, 2), (60, 2, 2), (3.1, 2, 2), (2.9, 2, 1), (2.9, 16, 8), (1, 16, 1), (60, 1, 1)],
)
def test_processes_are_started_where_they_have_more_time_together(limit_s, workers, expected):
    """Two workers that start after 1.5 s have 2 (t - 1.5) s together: more than t from 3 s on. There are 8 layers."""
    assert search(random_workload(1), limit_s, workers)._workers(8) == expected


def test_layers_with_most_to_gain_come_first():
    one = search(random_workload(3, layers=6))
    plans_of_baselines = [prediction.layers for prediction in one.incumbents.predicted("pairwise")]
    best_L = [min(layer.layer_us for layer in layers) for layers in zip(*plans_of_baselines, strict=True)]
    gain_L = np.array(best_L) - one.incumbents.bounds("pairwise")
    rows = one._by_promise("pairwise")
    assert sorted(rows) == list(range(len(gain_L)))
    assert (np.diff(gain_L[rows]) <= 0).all()


def test_the_better_solution_is_kept_under_the_higher_bound():
    placement = plans.placements(4, 2)
    first = LayerSolution(placement, 10.0, 6.0, 1.0)
    assert search_layers._better(None, first) is first
    worse = replace(first, objective=11.0, bound=7.0, seconds=2.0)
    assert vars(search_layers._better(first, worse)) == vars(first) | {"bound": 7.0, "seconds": 3.0}
    better = replace(first, objective=9.0, bound=0.0)
    assert vars(search_layers._better(first, better)) == vars(better) | {"bound": 6.0, "seconds": 2.0}


def test_without_time_for_any_layer_the_best_starts_are_the_plan():
    workload = random_workload(2)
    late, fast = (solve(workload, plans.PROFILE, SLOTS_R, time_limit_s=limit) for limit in (1e-9, 0))
    assert late.complete
    assert late.exchange == fast.exchange
    assert [one.objective for one in late.layers] == [one.objective for one in fast.layers]
