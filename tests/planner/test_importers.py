"""Placement files that are built by hand from the rules of each format, and round trips of random plans."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.exporters import export_plan
from planner.importers import FORMATS, import_plan, read_placement
from planner.importers.match import match
from planner.placement import Placement
from tests.planner.plans import PROFILE, model_of, pair, placements, plan_of, two_hosts, workload_of
from tests.planner.routing_data import FUZZ, check_one_line
from topologies import BadInput

MODEL = model_of(6)  # layers 1 and 2 of 3 have experts
ROWS = [[5, 0, 1, 2, 3, 5, 4, 0], [0, 1, 2, 3, 4, 5, 1, 0]]  # 8 slots on 4 ranks, two layers
PARTED = [[[5, 0], [1, 2], [3, 5], [4, 0]], [[0, 1], [2, 3], [4, 5], [1, 0]]]
DENSE = [0, 1, 2, 3, 4, 5, 0, 1]


def npz(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def cube():
    array = np.zeros((4, 2, 6), dtype=np.int32)
    for layer, rows in enumerate(PARTED):
        for rank, row in enumerate(rows):
            array[rank, layer, row] = 1
    return array


def ascend(rows=PARTED):
    layers = [
        {
            "layer_id": n,
            "device_count": 4,
            "device_list": [{"device_id": r, "device_expert": e} for r, e in enumerate(row)],
        }
        for n, row in enumerate(rows)
    ]
    return json.dumps({"moe_layer_count": len(rows), "layer_list": layers}).encode()


def slots_json(rows):
    return json.dumps({"physical_to_logical_map": rows}).encode()


def permutation(order):
    layers = [{"layer": layer, "new_to_old": order} for layer in (2, 1)]
    return json.dumps({"format": "epplan.expert-permutation", "version": 1, "layers": layers}).encode()


YAML = "num_slots: 8\ninitial_global_assignments:\n  1: [5, 0, 1, 2, 3, 5, 4, 0]\n  2:\n  - 0\n" + "".join(
    f"  - {e}\n" for e in ROWS[1][1:]
)
FILES = {
    "sglang": slots_json([DENSE, *ROWS]),
    "trtllm": YAML.encode(),
    "vllm-ascend": ascend(),
    "omni": npy(cube()),
    "eplb": npz(phy2log=np.array(ROWS)),
    "vllm-49572": json.dumps(ROWS).encode(),
    "vllm-hygon": json.dumps(
        {"version": 2, "format": "vllm_offline_eplb_physical_to_logical_by_model",
         "model_maps": {"MadeForCausalLM": {"physical_to_logical_map": ROWS},
                        "MadeMTP": {"physical_to_logical_map": [DENSE]}}}
    ).encode(),
}  # fmt: skip


def read(fmt, data, tmp_path, model=MODEL, cluster=None):
    path = tmp_path / "file"
    path.write_bytes(data)
    return read_placement(path, fmt, model, cluster or two_hosts())


@pytest.mark.parametrize("fmt", FILES)
def test_files_by_the_rules(fmt, tmp_path):
    imported = read(fmt, FILES[fmt], tmp_path)
    assert imported.layers == (1, 2)
    found = [p.slots() for p in imported.placements]
    assert found == ([[sorted(row) for row in layer] for layer in PARTED] if fmt == "omni" else PARTED)
    assert imported.slots_per_rank == 2
    assert all((p.share_DS == (1 / p.copies_E)[p.expert_S]).all() for p in imported.placements)


def test_files_without_replicas(tmp_path):
    once = read("vllm-34811", b'{"expert_to_ep_rank": [0, 1, 2, 3, 0, 1]}', tmp_path)
    assert [p.slots() for p in once.placements] == [[[0, 4], [1, 5], [2], [3]]] * 2
    permuted = read("megatron", permutation([5, 4, 3, 2, 1, 0]), tmp_path, cluster=pair())
    assert [p.slots() for p in permuted.placements] == [[[5, 4, 3], [2, 1, 0]]] * 2


def test_files_that_torch_writes(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def saved(value):
        stream = io.BytesIO()
        torch.save(value, stream)
        return stream.getvalue()

    table = torch.tensor([DENSE, *ROWS])
    assert [p.slots() for p in read("sglang", saved({"physical_to_logical_map": table}), tmp_path).placements] == PARTED
    mass = torch.full((3, 8), 0.25)
    mass[1, 5] = 0.75  # the second copy of expert 5 in layer 1
    imported = read("lp-shares", saved({"physical_to_logical_map": table, "physical_mass": mass}), tmp_path)
    assert imported.placements[0].share_DS[:, [0, 5]].tolist() == [[0.25, 0.75]] * 2
    maps = torch.full((2, 4, 6), -1, dtype=torch.int32)
    for layer, rows in enumerate(PARTED):
        for rank, row in enumerate(rows):
            maps[layer, rank, row] = torch.arange(2, dtype=torch.int32)
    assert [p.slots() for p in read("vllm-14544", saved(maps), tmp_path).placements] == PARTED


def test_second_copies_on_one_rank_are_merged(tmp_path):
    imported = read("vllm-49572", b"[[0, 0, 1, 2, 3, 4, 5, 0], [0, 1, 2, 3, 4, 5, 1, 0]]", tmp_path)
    first = imported.placements[0]
    assert first.slots() == [[0], [1, 2], [3, 4], [5, 0]]
    assert first.share_DS[0, first.expert_S == 0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert "1 slots hold a second copy" in imported.remarks[0]


def test_rows_past_the_last_layer_are_left_out(tmp_path):
    imported = read("vllm-ascend", ascend([*PARTED, PARTED[0]]), tmp_path)
    assert [p.slots() for p in imported.placements] == PARTED
    assert "1 rows past the last layer" in imported.remarks[0]
    assert read("trtllm", YAML.split("  2:")[0].encode(), tmp_path).layers == (1,)


@pytest.mark.parametrize(
    ("fmt", "data", "words"),
    [
        ("sglang", b"", "not valid JSON"),
        ("sglang", FILES["sglang"][:40], "not valid JSON"),
        ("sglang", b"[1]", "a list, not an object with physical_to_logical_map"),
        ("sglang", b'{"logical_count": [[1]]}', "no 'physical_to_logical_map'; keys: logical_count"),
        ("sglang", slots_json(ROWS), "2 rows; the format has one for each of the 3"),
        ("sglang", slots_json([DENSE, ROWS[0][:7], ROWS[1]]), "7 slots do not divide"),
        ("sglang", b'{"physical_to_logical_map": [[0, 1.5]]}', "physical_to_logical_map[0][1] = '1.5'"),
        ("sglang", b'{"physical_to_logical_map": [[0, true]]}', "[0][1] = 'True'"),
        ("sglang", b'{"physical_to_logical_map": [[0, NaN]]}', "[0][1] = 'nan'"),
        ("sglang", b'{"physical_to_logical_map": [[0, -1]]}', "[0][1] = '-1'"),
        ("sglang", b'{"physical_to_logical_map": 3}', "int '3', not a list"),
        ("vllm-49572", b"[[0, 1, 2, 3, 4, 9], [0, 1, 2, 3, 4, 5]]", "6 slots do not divide by the 4 ranks"),
        ("vllm-49572", b"[[0, 1, 2, 3, 4, 5, 0, 9], [0, 1, 2, 3, 4, 5, 0, 1]]", "expert 9; made has experts 0..5"),
        ("vllm-49572", b"[[0, 1, 2, 3, 4, 4, 0, 1], [0, 1, 2, 3, 4, 5, 0, 1]]", "expert 5 has no slot (1 of 6"),
        ("vllm-49572", b"[" * 100_000, "nested too deeply"),
        ("vllm-49572", b"\xff\xfe", "not UTF-8"),
        ("trtllm", b"a: [", "not valid YAML"),
        ("trtllm", b"!!python/object/apply:os.system ['true']", "YAML tags are not accepted"),
        ("trtllm", b"num_slots: 8", "no 'initial_global_assignments'"),
        ("trtllm", YAML.replace("num_slots: 8", "num_slots: 9").encode(), "8 slots, but num_slots is 9"),
        ("trtllm", YAML.replace("  2:\n", "  1:\n").encode(), "is given twice"),
        ("trtllm", YAML.replace("  1:", "  0:").encode(), "layer 0 is no MoE layer of made (1..2)"),
        ("trtllm", b"num_slots: 8\ninitial_global_assignments:\n  one: [1]\n", "'one' is not a layer number"),
        ("vllm-ascend", ascend().replace(b'"moe_layer_count": 2', b'"moe_layer_count": 3'), "moe_layer_count is '3'"),
        ("vllm-ascend", ascend().replace(b'"device_id": 1', b'"device_id": 7', 1), "device_id is '7', expected 1"),
        ("vllm-ascend", ascend([row[:3] for row in PARTED]), "for 3 ranks; the cluster has 4"),
        ("omni", npy(cube() * 2), "holds 2; a placement pattern holds 0 and 1"),
        ("omni", npy(cube() - 1), "= -1: outside 0..2147483647"),
        ("omni", npy(cube()[:, :, :5]), "expert 5 has no slot"),
        ("omni", npy(cube()[0]), "not 3 dimensions"),
        ("omni", npy(cube().astype(float)), "holds float64, not integers"),
        ("omni", npy(np.array([{"a": 1}])), "holds |O, not numbers"),
        ("omni", npy(cube())[:200], "declares shape"),
        ("eplb", npz(log2phy=np.zeros(1)), "no phy2log; arrays: log2phy"),
        ("eplb", npz(phy2log=np.array(ROWS), logcnt=np.ones((2, 6), int)), "logcnt does not count the slots"),
        ("eplb", b"PK\x03\x04", "damaged or truncated zip"),
        ("eplb", b"no zip", "not an .npz"),
        ("vllm-14544", pickle.dumps([1]), "damaged or truncated zip"),
        ("lp-shares", npz(a=np.zeros(1)), "not a torch file"),
        ("vllm-34811", b'{"expert_to_ep_rank": [0, 1, 2, 3, 0, 7]}', "an expert is on rank 7"),
        ("vllm-34811", b'{"expert_to_ep_rank": [0, 1, 2, 3, 0]}', "expert 5 has no slot"),
        ("megatron", b'{"format": "x", "layers": []}', "format 'x' version 'None'"),
        ("megatron", permutation([1, 1]), "not a permutation of 0 to 1"),
        ("vllm-hygon", b'{"model_maps": {"A": {}, "B": {}}}', "model_maps holds 2 models (A, B)"),
        ("vllm", b"", "unknown import format 'vllm'"),
    ],
)  # fmt: skip
def test_files_that_are_wrong(fmt, data, words, tmp_path):
    with pytest.raises(BadInput) as caught:
        read(fmt, data, tmp_path)
    assert words in str(caught.value)
    if fmt in FORMATS:
        check_one_line(caught.value, str(tmp_path / "file"))


@pytest.mark.parametrize("fmt", ["lp-shares", "vllm-14544", "sglang"])
def test_hostile_pickles_do_not_run(fmt, tmp_path):
    class Call:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"physical_to_logical_map": Call()}, protocol=2))
    with pytest.raises(BadInput, match="refused"):
        read(fmt, stream.getvalue(), tmp_path)
    assert not (tmp_path / "ran").exists()


@given(st.sampled_from(sorted(FILES)), st.data())
@FUZZ
def test_damaged_files(fmt, data):
    content = bytearray(FILES[fmt])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    try:
        match(FORMATS[fmt](bytes(content), "file"), MODEL, 4, 2, "file")
    except BadInput as error:
        check_one_line(error)


# Round trips

ROUND_TRIPS = settings(FUZZ, max_examples=60)

HOLD_ALL = ["sglang", "trtllm", "vllm-ascend", "omni", "eplb", "vllm-49572", "vllm-14544", "vllm-hygon", "lp-shares"]
CLUSTER = two_hosts()


@given(st.data())
@ROUND_TRIPS
def test_round_trips_keep_slots_and_prediction(data):
    model = model_of(8, moe_layers=data.draw(st.sampled_from([(0, 1), (1, 2)])))
    held = [data.draw(placements(8, 4, slots=3)) for _ in range(2)]
    plan, workload = plan_of(model, CLUSTER, held)
    for fmt in HOLD_ALL:
        exported = export_plan(plan, fmt)
        assert exported.loss is None
        back = match(FORMATS[fmt](exported.data, "file"), model, 4, 2, "file")
        expected = [[sorted(row) for row in p.slots()] if fmt == "omni" else p.slots() for p in held]
        assert [p.slots() for p in back.placements] == expected
        again = import_plan(back, workload, PROFILE, plan.exchange, fmt=fmt, inputs={}, command="made")
        exact = 1e-6 if fmt == "lp-shares" else 1e-9  # masses are float32
        found, wanted = again.predicted.layers, plan.predicted.layers
        assert [layer.layer_us for layer in found] == pytest.approx([layer.layer_us for layer in wanted], rel=exact)


@given(st.data())
@ROUND_TRIPS
def test_round_trips_without_replicas(data):
    model = model_of(8)
    one = data.draw(placements(8, 4, replicas=False))
    two = data.draw(placements(8, 4, replicas=False))
    for fmt, held in (("megatron", [one, two]), ("vllm-34811", [one, one])):
        plan, _ = plan_of(model, CLUSTER, held)
        back = match(FORMATS[fmt](export_plan(plan, fmt).data, "file"), model, 4, 2, "file")
        found, wanted = ([[sorted(row) for row in p.slots()] for p in group] for group in (back.placements, held))
        assert found == wanted


@given(st.data())
@ROUND_TRIPS
def test_round_trips_of_shares_and_uneven_slots(data):
    held = data.draw(placements(8, 4, even=False))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    weight_S = rng.random(len(held.expert_S)) + 0.01
    total_E = np.bincount(held.expert_S, weight_S, 8)
    held = held.with_shares(np.tile(weight_S / total_E[held.expert_S], (2, 1)))
    model = model_of(8, moe_layers=(0,), num_layers=1)
    plan, workload = plan_of(model, CLUSTER, [held])
    exported = export_plan(plan, "lp-shares")
    back = match(FORMATS["lp-shares"](exported.data, "file"), model, 4, 2, "file").placements[0].without_idle_slots()
    assert back.slots() == held.slots()
    assert back.share_DS == pytest.approx(held.share_DS, abs=1e-6)
    lossy = export_plan(plan, "omni", lossy=(workload, PROFILE))
    back = match(FORMATS["omni"](lossy.data, "file"), model, 4, 2, "file")
    assert [sorted(r) for r in back.placements[0].slots()] == [sorted(r) for r in held.slots()]
    again = import_plan(back, workload, PROFILE, plan.exchange, fmt="omni", inputs={}, command="made")
    declared = 0.0 if lossy.loss is None else lossy.loss.cost_us
    assert again.predicted.total_us == pytest.approx(plan.predicted.total_us + declared, rel=1e-9)


def test_an_imported_plan_proves_nothing(tmp_path):
    imported = read("sglang", FILES["sglang"], tmp_path)
    workload = workload_of(MODEL, CLUSTER, imported.layers)
    plan = import_plan(imported, workload, PROFILE, fmt="sglang", inputs={}, command="made")
    assert not plan.certificate.proven
    assert plan.certificate.bound_us == 0
    assert plan.certificate.solver == "none: imported from sglang"
    assert isinstance(plan.placement(0), Placement)
