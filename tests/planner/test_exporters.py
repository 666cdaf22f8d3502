"""Exported files against the rules of each format, checked here without the writers or readers of the project."""

import io
import json

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from planner.even import filled
from planner.exporters import TARGETS, export_plan
from planner.exporters.reshape import in_whole_groups, without_replicas
from planner.exporters.torch_file import torch_file
from planner.placement import Placement, check_placement
from planner.predict import predict
from tests.planner.plans import PROFILE, model_of, pair, placements, plan_of, two_hosts
from tests.planner.routing_data import FUZZ
from topologies import BadInput

# 6 experts on 4 ranks of 2 hosts, 2 slots each, layers 1 and 2 of 3 (layer 0 is dense):
#   layer 1: rank 0 [5 0], rank 1 [1 2], rank 2 [3 5], rank 3 [4 0]
#   layer 2: rank 0 [0 1], rank 1 [2 3], rank 2 [4 5], rank 3 [1 0]
SLOTS = {1: [[5, 0], [1, 2], [3, 5], [4, 0]], 2: [[0, 1], [2, 3], [4, 5], [1, 0]]}


@pytest.fixture(scope="module")
def small():
    model, cluster = model_of(6), two_hosts()
    return plan_of(model, cluster, [Placement.equal_shares(rows, 6, 2) for rows in SLOTS.values()])


def flat(layer):
    return [expert for row in SLOTS[layer] for expert in row]


def test_sglang(small):
    exported = export_plan(small[0], "sglang")
    document = json.loads(exported.data)
    assert list(document) == ["physical_to_logical_map"]  # another key raises TypeError in SGLang
    dense, first, second = document["physical_to_logical_map"]
    assert (first, second) == (flat(1), flat(2))
    assert dense == [0, 1, 2, 3, 4, 5, 0, 1]
    hint = exported.hint("f.json")
    for flag in ("--init-expert-location f.json", "--ep-num-redundant-experts 2", "--ep-size 4"):
        assert flag in hint


def test_trtllm(small):
    exported = export_plan(small[0], "trtllm")
    document = yaml.safe_load(exported.data)
    assert document == {
        "num_slots": 8, "layer_updates_per_iter": 0, "initial_global_assignments": {1: flat(1), 2: flat(2)},
    }  # fmt: skip
    assert "enable_attention_dp: true" in exported.hint("f")


def test_vllm_ascend(small):
    document = json.loads(export_plan(small[0], "vllm-ascend").data)
    assert document["moe_layer_count"] == 2
    assert [layer["layer_id"] for layer in document["layer_list"]] == [0, 1]
    for layer, rows in zip(document["layer_list"], SLOTS.values(), strict=True):
        assert layer["device_count"] == 4
        assert [(d["device_id"], d["device_expert"]) for d in layer["device_list"]] == list(enumerate(rows))


def test_omni(small):
    cube = np.load(io.BytesIO(export_plan(small[0], "omni").data), allow_pickle=False)
    assert (cube.dtype, cube.shape) == (np.dtype("int32"), (4, 2, 6))
    for layer, rows in enumerate(SLOTS.values()):
        for rank, row in enumerate(rows):
            assert np.flatnonzero(cube[rank, layer]).tolist() == sorted(row)


def test_eplb(small):
    arrays = np.load(io.BytesIO(export_plan(small[0], "eplb").data), allow_pickle=False)
    assert arrays["phy2log"].tolist() == [flat(1), flat(2)]
    assert arrays["logcnt"].tolist() == [[2, 1, 1, 1, 1, 2], [2, 2, 1, 1, 1, 1]]
    for phy2log, log2phy, logcnt in zip(arrays["phy2log"], arrays["log2phy"], arrays["logcnt"], strict=True):
        for expert, (slots, count) in enumerate(zip(log2phy, logcnt, strict=True)):
            assert slots[:count].tolist() == [p for p in range(8) if phy2log[p] == expert]
            assert (slots[count:] == -1).all()


def test_vllm_proposals(small):
    plan = small[0]
    assert json.loads(export_plan(plan, "vllm-49572").data) == [flat(1), flat(2)]
    hygon = json.loads(export_plan(plan, "vllm-hygon").data)
    assert (hygon["version"], hygon["format"]) == (2, "vllm_offline_eplb_physical_to_logical_by_model")
    (entry,) = hygon["model_maps"].values()
    assert entry["physical_to_logical_map"] == [flat(1), flat(2)]
    assert [entry[f"num_{what}"] for what in ("moe_layers", "logical_experts", "physical_experts",
                                              "redundant_experts")] == [2, 6, 8, 2]  # fmt: skip


def test_vllm_placement_file_has_one_rank_an_expert():
    rows = [[5, 0], [1], [2, 3], [4]]
    plan, _ = plan_of(model_of(6), two_hosts(), [Placement.equal_shares(rows, 6, 2)] * 2)
    document = json.loads(export_plan(plan, "vllm-34811").data)
    assert document == {"expert_to_ep_rank": [0, 1, 2, 2, 3, 0]}


def test_torch_files_are_what_torch_reads(small, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    (tmp_path / "map.pth").write_bytes(export_plan(small[0], "vllm-14544").data)
    slot_LRE = torch.load(tmp_path / "map.pth", weights_only=True)
    assert (slot_LRE.dtype, tuple(slot_LRE.shape)) == (torch.int32, (2, 4, 6))
    for layer, rows in enumerate(SLOTS.values()):
        for rank, row in enumerate(rows):
            expected = [row.index(expert) if expert in row else -1 for expert in range(6)]
            assert slot_LRE[layer, rank].tolist() == expected
    (tmp_path / "lp.pt").write_bytes(export_plan(small[0], "lp-shares").data)
    content = torch.load(tmp_path / "lp.pt", weights_only=True)
    assert content["physical_to_logical_map"].tolist()[1:] == [flat(1), flat(2)]
    mass = content["physical_mass"]
    assert mass.dtype == torch.float32
    assert torch.allclose(mass.sum(dim=1), torch.ones(3))
    assert mass[1][0] == mass[1][5] == pytest.approx(1 / 12)  # expert 5 has two equal copies


def test_torch_file_of_any_shape():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for array in (
        np.arange(6.0).reshape(2, 3),
        np.zeros((0, 2), np.int64),
        np.float32([[1]]),
        np.arange(4, dtype="i4"),
    ):
        loaded = torch.load(io.BytesIO(torch_file(array)), weights_only=True)
        assert tuple(loaded.shape) == array.shape
        assert (loaded.numpy() == array).all()
    with pytest.raises(BadInput, match="int8 has no place"):
        torch_file(np.zeros(3, dtype=np.int8))


def test_lp_shares_hold_the_shares_and_bring_the_map_along():
    rows = [[0, 1], [2, 0]]
    placement = Placement.equal_shares(rows, 3, 1).with_shares(np.array([[0.75, 1, 1, 0.25]]))
    plan, _ = plan_of(model_of(3, moe_layers=(0,), num_layers=1), pair(), [placement])
    exported = export_plan(plan, "lp-shares")
    suffix, beside = exported.beside()
    assert suffix == ".json"
    assert json.loads(beside)["physical_to_logical_map"] == [[0, 1, 2, 0]]
    with pytest.raises(BadInput, match=r"unequal shares of copies.*lp-shares"):
        export_plan(plan, "sglang")


def test_megatron_permutation_is_the_slots_in_order():
    rows = [[5, 0], [3, 2], [1, 4]]
    cluster = two_hosts().subset([0, 1, 2])
    plan, _ = plan_of(model_of(6), cluster, [Placement.equal_shares(rows, 6, cluster.num_domains)] * 2)
    document = json.loads(export_plan(plan, "megatron").data)
    assert [(layer["layer"], layer["new_to_old"]) for layer in document["layers"]] == [
        (1, [5, 0, 3, 2, 1, 4]), (2, [5, 0, 3, 2, 1, 4]),
    ]  # fmt: skip
    assert (document["experts"], document["ranks"]) == (6, 3)


# What a target cannot hold


def test_uneven_slots_are_refused_with_the_remedy():
    rows = [[0, 1, 2], [3], [4], [5]]
    plan, workload = plan_of(model_of(6), two_hosts(), [Placement.equal_shares(rows, 6, 2)] * 2)
    for target in ("sglang", "trtllm", "vllm-ascend", "eplb"):
        with pytest.raises(BadInput, match=r"ranks with fewer than 3 slots \(layer 1 and 1 more\).*omni.*--lossy"):
            export_plan(plan, target)
    export_plan(plan, "omni")
    exported = export_plan(plan, "sglang", lossy=(workload, PROFILE))
    assert len(exported.loss.what) == 2  # slots are filled, and the new copies take an equal share
    for row in json.loads(exported.data)["physical_to_logical_map"][1:]:
        assert len(row) == 12
        assert all(len(set(row[r * 3 : r * 3 + 3])) == 3 for r in range(4))
    before = predict("plan", plan.placements(), workload, PROFILE, plan.exchange)
    assert exported.loss.before.total_us == pytest.approx(before.total_us)
    after = predict("file", exported.deployment.placements, workload, PROFILE, plan.exchange)
    assert exported.loss.cost_us == pytest.approx(after.total_us - before.total_us)


def test_the_remedy_for_replicas_is_one_that_works():
    """8 experts on 4 ranks fit 2 a rank; 6 do not: 2 slots a rank are 8, two for replicas."""
    rows = [[0, 1, 2], [3, 4, 0], [5, 6, 0], [7, 1]]
    even, _ = plan_of(model_of(8), two_hosts(), [Placement.equal_shares(rows, 8, 2)] * 2)
    with pytest.raises(BadInput, match="--slots-per-rank 2,"):
        export_plan(even, "vllm-34811")
    odd, _ = plan_of(model_of(6), two_hosts(), [Placement.equal_shares([[0, 1], [2, 0], [3, 4], [5, 0]], 6, 2)] * 2)
    with pytest.raises(BadInput, match="number of ranks that divides 6"):
        export_plan(odd, "vllm-34811")
    layers = [[[0, 1], [2, 3], [4, 5], [6, 7]], [[1, 2], [3, 4], [5, 6], [7, 0]]]
    apart, _ = plan_of(model_of(8), two_hosts(), [Placement.equal_shares(layer, 8, 2) for layer in layers])
    with pytest.raises(BadInput, match="vllm-49572 and vllm-14544 hold one"):
        export_plan(apart, "vllm-34811")
    for other in ("vllm-49572", "vllm-14544"):
        export_plan(apart, other)


def test_lp_shares_fill_slots_without_a_loss():
    rows = [[0, 1, 2], [3], [4], [5]]
    plan, _ = plan_of(model_of(6), two_hosts(), [Placement.equal_shares(rows, 6, 2)] * 2)
    exported = export_plan(plan, "lp-shares")
    kept = [p.without_idle_slots() for p in exported.deployment.placements]
    assert [p.slots() for p in kept] == [rows, rows]


def test_shares_of_domains_become_their_mean():
    rows = [[0, 1], [2, 0], [3, 4], [5, 6]]
    shares = np.array([[1.0, 1, 1, 0, 1, 1, 1, 1], [0.5, 1, 1, 0.5, 1, 1, 1, 1]])
    placement = Placement.equal_shares(rows, 7, 2).with_shares(shares)
    plan, workload = plan_of(model_of(7, moe_layers=(0,), num_layers=1), two_hosts(), [placement])
    with pytest.raises(BadInput, match="shares that differ between source domains"):
        export_plan(plan, "lp-shares")
    exported = export_plan(plan, "lp-shares", lossy=(workload, PROFILE))
    assert exported.deployment.placements[0].share_DS[0].tolist() == [0.75, 1, 1, 0.25, 1, 1, 1, 1]


def test_replicas_where_there_can_be_none():
    rows = [[0, 1], [2, 0]]
    plan, workload = plan_of(model_of(3, moe_layers=(0,), num_layers=1), pair(), [Placement.equal_shares(rows, 3, 1)])
    with pytest.raises(BadInput, match=r"3 experts do not divide by 2 ranks"):
        export_plan(plan, "megatron", lossy=(workload, PROFILE))
    with pytest.raises(BadInput, match="cannot hold replicas"):
        export_plan(plan, "vllm-34811")
    exported = export_plan(plan, "vllm-34811", lossy=(workload, PROFILE))
    assert sorted(json.loads(exported.data)["expert_to_ep_rank"]) in ([0, 0, 1], [0, 1, 1])


def test_layers_that_the_plan_lacks():
    rows = [[0, 1], [2, 3]]
    model = model_of(4, moe_layers=(0, 1), num_layers=2)
    plan, workload = plan_of(model, pair(), [Placement.equal_shares(rows[::-1], 4, 1)], layers=(1,))
    with pytest.raises(BadInput, match=r"no layer 0 \(1 of 2 MoE layers"):
        export_plan(plan, "sglang")
    exported = export_plan(plan, "sglang", lossy=(workload, PROFILE))
    assert json.loads(exported.data)["physical_to_logical_map"] == [[0, 1, 2, 3], [2, 3, 0, 1]]
    assert "1 MoE layers that the plan lacks" in exported.loss.what[0]


def test_layers_of_one_map_differ():
    a, b = [[0, 1], [2, 3]], [[2, 3], [0, 1]]
    plan, workload = plan_of(model_of(4), pair(), [Placement.equal_shares(rows, 4, 1) for rows in (a, b)])
    with pytest.raises(BadInput, match="a placement of its own for every layer"):
        export_plan(plan, "vllm-34811")
    assert len(json.loads(export_plan(plan, "vllm-34811", lossy=(workload, PROFILE)).data)["expert_to_ep_rank"]) == 4


def test_groups_stay_whole():
    """4 groups of 2 on 4 ranks: the plan has groups 0 and 1 crossed over ranks 0 and 1; they are put right."""
    rows = [[0, 2], [1, 3], [6, 7], [4, 5]]
    plan, workload = plan_of(model_of(8, groups=4), two_hosts(), [Placement.equal_shares(rows, 8, 2)] * 2)
    with pytest.raises(BadInput, match=r"routing groups \(4\) that are spread over ranks"):
        export_plan(plan, "megatron")
    exported = export_plan(plan, "megatron", lossy=(workload, PROFILE))
    order = json.loads(exported.data)["layers"][0]["new_to_old"]
    assert [sorted(order[i : i + 2]) for i in range(0, 8, 2)] == [[0, 1], [2, 3], [6, 7], [4, 5]]
    assert "4 experts of 2 layers" in exported.loss.what[0]


def test_unknown_targets_are_named():
    plan, _ = plan_of(model_of(4), pair(), [Placement.equal_shares([[0, 1], [2, 3]], 4, 1)] * 2)
    with pytest.raises(BadInput, match=r"unknown export target 'vllm'; nearest: .*vllm-14544"):
        export_plan(plan, "vllm")
    assert sorted(TARGETS) == [
        "eplb", "lp-shares", "megatron", "omni", "sglang", "trtllm", "vllm-14544", "vllm-34811", "vllm-49572",
        "vllm-ascend", "vllm-hygon",
    ]  # fmt: skip


# One layer at a time


@given(placements(12, 4, even=False), st.integers(0, 99))
@FUZZ
def test_filled_keeps_the_plan_and_fills_every_rank(placement, seed):
    load_E = np.random.default_rng(seed).random(12)
    slots = int(placement.slots_R.max())
    more = filled(placement, slots, load_E)
    check_placement(more, np.full(4, slots))
    assert (more.slots_R == slots).all()
    for rank, row in enumerate(placement.slots()):
        assert more.slots()[rank][: len(row)] == row
    assert more.without_idle_slots().slots() == placement.slots()


@given(placements(12, 4))
@FUZZ
def test_without_replicas_keeps_an_expert_where_it_was(placement):
    weight_ER = np.zeros((12, 4))
    weight_ER[placement.expert_S, placement.rank_S] = 1
    single = without_replicas(weight_ER, np.full(4, 3), 2)
    check_placement(single, np.full(4, 3))
    assert len(single.expert_S) == 12
    if (placement.slots_R == 3).all():
        assert [set(row) for row in single.slots()] == [set(row) for row in placement.slots()]


@given(st.sampled_from([(4, 2), (4, 4), (2, 4), (3, 4), (6, 4)]), st.data())
@FUZZ
def test_whole_groups_are_blocks_and_fit_plans_that_have_them(shape, data):
    groups, ranks = shape
    experts = int(np.lcm(groups, ranks)) * 2
    placement = data.draw(placements(experts, ranks, replicas=False))
    whole = in_whole_groups(placement, groups)
    check_placement(whole, np.full(ranks, experts // ranks))
    size = experts // groups
    order = whole.expert_S
    blocks = [set((order[i : i + size] // size).tolist()) for i in range(0, experts, size)]
    assert all(len(block) == 1 for block in blocks)
    assert set.union(*blocks) == set(range(groups))
    again = in_whole_groups(whole, groups)
    assert [set(row) for row in again.slots()] == [set(row) for row in whole.slots()]  # what is whole stays
