"""`--ep-groups` as a user calls it: one plan for all groups, which every command prices with all of them."""

import json

import pytest

from planner import load_plan
from tests.app.test_plan_cli import failed
from tests.topologies.test_groups import fat_tree
from topologies.cluster_file import save_spec


@pytest.fixture
def cluster_file(tmp_path):
    """Two hosts whose leaves have uplinks of a quarter of their NICs."""
    path = tmp_path / "cluster.yaml"
    save_spec(fat_tree(2, 4.0).spec, path)
    return path


def test_one_plan_for_two_groups(run, cluster_file, tmp_path):
    where = tmp_path / "plan.json"
    arguments = ["plan", "--cluster", cluster_file, "--tokens-per-rank", 4096, "--time-limit", 0]
    code, out, err = run(*arguments, "--ep-groups", 2, "--ep-stride", 2, "-o", where)
    assert code == 0, err
    assert "2 EP groups of 8 ranks x" in err
    assert "2 EP groups alike at once, of 8 ranks each" in out
    assert "one plan for 2 EP groups" in " ".join(out.split())
    plan = load_plan(where)
    assert (plan.num_ranks, plan.cluster.ep_groups, plan.cluster.ep_stride) == (8, 2, 2)
    assert [(rank.host, rank.gpu) for rank in plan.cluster.ranks] == [(h, g) for h in (0, 1) for g in (0, 2, 4, 6)]
    code, out, _ = run("evaluate", where, "--cluster", cluster_file, "--json")
    assert code == 0
    assert json.loads(out)["plans"][0]["total_us"] == pytest.approx(plan.predicted.total_us)
    code, out, _ = run("diff", where, where, "--cluster", cluster_file)
    assert code == 0
    assert "moves: 0" in out
    code, out, _ = run(*arguments, "--ep-groups", 2, "--ep-stride", 2, "--from", where, "--json")
    assert code == 0
    assert json.loads(out)["migration"]["part_of_gain"] is not None


def test_what_is_refused(run):
    failed(run("plan", "--ep-groups", 3), 2, "16 ranks are no multiple of 3 EP groups; nearest that divide: 2, 4")
    failed(run("plan", "--ep-stride", 2), 2, "1 EP groups with ranks 2 apart")
