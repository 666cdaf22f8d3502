"""Recordings of engines and trainers, built here from the rules of their formats."""

import io
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.readers.detect import read_raw
from planner.readers.plain_tables import rows_of, table_of
from planner.routing import load_routing
from tests.planner.routing_data import FUZZ, check_one_line, small_model
from topologies.errors import BadInput

MODEL = small_model()  # layers 1, 2, 3 of 4 have 8 experts, top-2
RNG = np.random.default_rng(0)


def ids_of(layers=3, tokens=5, seed=0):
    """Random top-2 of 8 experts [layers, tokens, 2]."""
    rng = np.random.default_rng(seed)
    return np.array([[rng.permutation(8)[:2] for _ in range(tokens)] for _ in range(layers)])


def counted(ids):
    return np.array([np.bincount(layer[layer >= 0].ravel(), minlength=8) for layer in np.asarray(ids)])


def refusal(data: bytes, top_k=None) -> str:
    with pytest.raises(BadInput) as caught:
        read_raw(data, "file", top_k)
    check_one_line(caught.value)
    return str(caught.value)


# Megatron-LM


def record(step, layer, ids, rank=0, **more) -> str:
    fields = {"step": step, "stage": "pre_dispatch", "block": "decoder", "layer": layer, "rank": rank}
    return (
        json.dumps(fields | {"num_tokens": len(ids), "topk": 2, "top_indices": np.asarray(ids).tolist()} | more) + "\n"
    )


def megatron(ids, step=0, rank=0, first=1):
    return "".join(record(step, first + row, layer, rank) for row, layer in enumerate(ids))


def test_megatron_ranks_are_sources(tmp_path):
    a, b, c = ids_of(seed=1), ids_of(seed=2, tokens=7), ids_of(seed=3)
    (tmp_path / "router_trace_rank0.jsonl").write_text(megatron(a) + megatron(b, step=1))
    (tmp_path / "router_trace_rank2.jsonl").write_text(megatron(c, rank=2))
    routing = load_routing(tmp_path, MODEL)
    assert routing.layers == (1, 2, 3)
    assert (routing.counts[:, 0] == counted(a) + counted(b)).all()
    assert not routing.counts[:, 1].any()
    assert (routing.counts[:, 2] == counted(c)).all()
    assert (routing.trace == np.concatenate([a, b, c], axis=1)).all()
    assert routing.token_source.tolist() == [0] * 12 + [2] * 5
    assert (routing.windows == [counted(a) + counted(c), counted(b)]).all()


def test_megatron_micro_batches_and_other_blocks():
    """A layer that comes again in a step starts the next micro-batch; MTP layers are left out."""
    a, b = ids_of(seed=1), ids_of(seed=2)
    mtp = record(0, 1, ids_of(1)[0], block="mtp", mtp_idx=0)
    raw = read_raw((megatron(a) + mtp + megatron(b)).encode(), "file")
    assert (raw.trace == np.concatenate([a, b], axis=1)).all()
    assert (raw.counts[:, 0] == counted(a) + counted(b)).all()
    assert "1 records of multi-token-prediction layers" in raw.remarks[0]


def test_megatron_layers_that_start_at_one_are_shifted(tmp_path):
    """Layers 2, 3, 4 of a model whose MoE layers are 1, 2, 3: numbered from one."""
    path = tmp_path / "router_trace_rank0.jsonl"
    path.write_text(megatron(ids_of(), first=2))
    routing = load_routing(path, MODEL)
    assert routing.layers == (1, 2, 3)
    assert "numbers layers from 1" in routing.remarks[0]


@given(st.integers(1, 5), st.integers(1, 4), st.booleans(), st.integers(0, 99))
@FUZZ
def test_tables_are_parsed_as_json_parses_them(rows, width, spaces, seed):
    table = np.random.default_rng(seed).integers(-1, 40_000, (rows, width)).tolist()
    text = json.dumps(table, separators=(", ", ": ") if spaces else (",", ":"))
    assert table_of(text.encode()).tolist() == table


@given(st.text(alphabet="[],-012 .", max_size=16))
@FUZZ
def test_other_texts_are_left_to_json(text):
    found = table_of(f"[[{text}]]".encode())
    if found is not None:
        assert found.tolist() == [[int(x) for x in row] for row in json.loads(f"[[{text}]]")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (megatron(ids_of()) + '{"step": 0', "line 4: not valid JSON"),
        (megatron(ids_of()) + '{"step": 0}', "line 4: no 'layer'"),
        (record(0, 1, [[0, 0]]), "line 1: top_indices: token 0 visits expert 0 twice"),
        (record(0, 1, [[0, -2]]), "top_indices[0, 1] = -2"),
        (record(0, 1, [[0, 40_000]]), "top_indices[0, 1] = 40000"),
        (record(0, 1, [[0, 1]], num_tokens=3), "num_tokens = 3, but top_indices has 1"),
        (record(0, 1, [[0, 1]], rank=-1), "rank = '-1'"),
        (record(0, "a", [[0, 1]]), "layer = 'a'"),
        (record(0, 1, [[0, 1]], top_indices=[[0, 1], [2]]), "not a list of equally long lists"),
        (record(0, 1, [[0, 1]], top_indices=[[0, 1.5]]), "not a list of equally long lists of integers"),
        (record(0, 1, [[0, 1]], top_indices={}), "not a list of equally long lists"),
        (record(0, 1, [[0, 1]], block="mtp"), "holds no counts"),
    ],
)
def test_megatron_traces_that_are_wrong(text, words):
    assert words in refusal(text.encode())


# SGLang


def dumps(torch, records, physical_to_logical):
    stream = io.BytesIO()
    torch.save({"records": records, "last_physical_to_logical_map": torch.tensor(physical_to_logical)}, stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


MAP = [[0, 1, 2, 3, 4, 5, 6, 7, 0, 1]] + [[7, 6, 5, 4, 3, 2, 1, 0, 0, 7]] * 3  # 10 slots a layer; layer 0 is dense


def per_token(torch, ids, rank, step=0):
    """Slots of logical ids: the first slot that holds each."""
    slots = torch.full((4, ids.shape[1], 8), -1, dtype=torch.int32)
    for layer in range(3):
        for token, pair in enumerate(ids[layer].tolist()):
            slots[layer + 1, token, :2] = torch.tensor([MAP[layer + 1].index(e) for e in pair], dtype=torch.int32)
    physical = torch.zeros((4, 10), dtype=torch.int32)
    return {"forward_pass_id": step, "rank": rank, "gatherer_key": "primary", "topk_ids_of_layer": slots,
            "input_ids": list(range(ids.shape[1])), "positions": [0], "extend_seq_lens": None, "forward_mode": 1,
            "misc_objects": [], "global_physical_count": physical}  # fmt: skip


def test_sglang_per_token_of_two_ranks(torch, tmp_path):
    a, b = ids_of(seed=1), ids_of(seed=2)
    (tmp_path / "expert_distribution_recorder_1.5_0.pt").write_bytes(dumps(torch, [per_token(torch, a, 0)], MAP))
    (tmp_path / "expert_distribution_recorder_1.5_1.pt").write_bytes(dumps(torch, [per_token(torch, b, 1)], MAP))
    routing = load_routing(tmp_path, MODEL)
    assert routing.layers == (1, 2, 3)
    assert (routing.counts[:, 0] == counted(a)).all()
    assert (routing.counts[:, 1] == counted(b)).all()
    assert (routing.trace == np.concatenate([a, b], axis=1)).all()
    assert "translated by the last map" in routing.remarks[0]


def test_sglang_per_pass_counts_what_a_rank_sends_or_receives(torch, tmp_path):
    def dump(rank, count_LP):
        records = [
            {"forward_pass_id": step, "rank": rank, "gatherer_key": "primary", "global_physical_count": torch.tensor(c)}
            for step, c in enumerate(count_LP)
        ]
        (tmp_path / f"expert_distribution_recorder_2_{rank}.pt").write_bytes(dumps(torch, records, MAP))

    everywhere = np.vstack([np.zeros((1, 10), int), np.arange(1, 31).reshape(3, 10)])
    dump(0, [everywhere])
    dump(1, [2 * everywhere, everywhere])
    routing = load_routing(tmp_path, MODEL)
    expected = np.array([np.bincount(MAP[row + 1], everywhere[row + 1], 8) for row in range(3)])
    assert (routing.counts == np.stack([expected, 3 * expected], axis=1)).all()
    received = everywhere * (np.arange(10) < 5)
    dump(0, [received])
    dump(1, [everywhere - received])
    assert load_routing(tmp_path, MODEL).counts.shape == (3, 1, 8)


def test_sglang_dumps_that_are_wrong(torch, tmp_path):
    good = per_token(torch, ids_of(), 0)
    for change, words in [
        ({"rank": -1}, "records[0]: rank = '-1'"),
        ({"topk_ids_of_layer": good["topk_ids_of_layer"][:2]}, "not [4 layers, tokens, top_k]"),
        ({"topk_ids_of_layer": good["topk_ids_of_layer"] + 9}, "the map has slots 0..9"),
        ({"topk_ids_of_layer": [1]}, "topk_ids_of_layer is a list, not a tensor"),
    ]:
        assert words in refusal(dumps(torch, [good | change], MAP))
    assert "holds no counts" in refusal(dumps(torch, [], MAP))
    assert "a int, not a dict" in refusal(dumps(torch, [1], MAP))
    (tmp_path / "stat.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(BadInput, match="damaged or truncated zip"):
        load_routing(tmp_path)


# safetensors: TensorRT-LLM and router logits


def safetensors(arrays, **changes) -> bytes:
    """A file by the rules of the format, made without the library."""
    names = {"int64": "I64", "int32": "I32", "float32": "F32", "uint16": "BF16"}
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        begin = len(body)
        body += np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": names[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [begin, len(body)],
        }
        header[name] |= changes
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_tensorrt_statistics(tmp_path):
    counts = RNG.integers(0, 9, (2, 2, 3, 8))  # rank, iteration, layer, expert
    (tmp_path / "meta_info.json").write_text('{"num_experts": 8, "num_experts_per_token": 2}')
    for rank in range(2):
        tensors = {f"{100 + i}_{layer + 1}": counts[rank, i, layer] for i in range(2) for layer in range(3)}
        (tmp_path / f"rank{rank}.safetensors").write_bytes(safetensors(tensors))
    (tmp_path / "rank0_raw.safetensors").write_bytes(b"not read")
    routing = load_routing(tmp_path, MODEL)
    assert (routing.counts == counts.sum(axis=1).transpose(1, 0, 2)).all()
    assert (routing.windows == counts.sum(axis=0)).all()
    (tmp_path / "meta_info.json").write_text('{"num_experts": 9}')
    with pytest.raises(BadInput, match=r"counts of 8 experts; meta_info\.json has num_experts = 9"):
        load_routing(tmp_path, MODEL)


def test_tensorrt_raw_dumps_keep_tokens(tmp_path):
    ids = ids_of()
    tensors = {f"7_{layer + 1}": ids[layer].astype(np.int32) for layer in range(3)}
    (tmp_path / "rank1_raw.safetensors").write_bytes(safetensors(tensors))
    routing = load_routing(tmp_path, MODEL)
    assert (routing.trace == ids).all()
    assert (routing.counts[:, 1] == counted(ids)).all()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (safetensors({"1_1": np.arange(8)})[:-8], "damaged or truncated"),
        (safetensors({"1_1": np.arange(8)}, shape=[9]), "takes 72 bytes, not 64"),
        (safetensors({"1_1": np.arange(8)}, data_offsets=[8, 72]), "starts at byte"),
        (safetensors({"1_1": np.arange(8)}, shape=[-1]), "shape [-1]"),
        (safetensors({"1_1": np.arange(8)}, dtype="C64"), "holds C64"),
        (safetensors({"1_1": np.arange(8) - 1}), "1_1[0] = -1"),
        (safetensors({"a": np.arange(8)}), "neither router logits"),
        (struct.pack("<Q", 90) + b"{" + b" " * 5, "a safetensors header of 90 bytes in a file of 14"),
        (struct.pack("<Q", 5) + b"{nope", "damaged safetensors header"),
    ],
)
def test_safetensors_that_are_wrong(data, words):
    assert words in refusal(data)


def test_router_logits_of_every_dress(tmp_path):
    """Top-2 of 8 by plain sorting; stacked or one array a layer, NumPy or safetensors, float32 or bfloat16."""
    logits = RNG.normal(size=(3, 20, 8)).astype(np.float32)
    logits = (logits.view(np.uint32) & 0xFFFF0000).view(np.float32)  # exact in bfloat16
    expected = counted(np.argsort(-logits, axis=2)[:, :, :2])
    stacked, parted, single = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(stacked, router_logits=logits)
    np.savez(parted, *logits)
    np.save(single, logits)
    halves = {f"router_logits.{n}": (layer.view(np.uint32) >> 16).astype(np.uint16) for n, layer in enumerate(logits)}
    named = {f"router_logits.{n}": layer for n, layer in enumerate(logits)}
    files = [stacked.getvalue(), parted.getvalue(), single.getvalue(), safetensors(named), safetensors(halves),
             safetensors({"router_logits": logits})]  # fmt: skip
    for data in files:
        (tmp_path / "f").write_bytes(data)
        routing = load_routing(tmp_path / "f", MODEL)
        assert (routing.counts[:, 0] == expected).all()
        assert "correction bias" in routing.remarks[0]
        assert "give --model" in refusal(data)
    logits[1, 3, 4] = np.nan
    np.savez(stacked := io.BytesIO(), router_logits=logits)
    assert "the logit of token 3 for expert 4 is NaN" in refusal(stacked.getvalue(), 2)
    np.savez(odd := io.BytesIO(), a0=logits[0], b1=logits[1])
    assert "arrays of several names" in refusal(odd.getvalue(), 2)


# vLLM, CSV, Parquet


def test_vllm_load_windows():
    window = RNG.integers(0, 9, (4, 3, 8))
    data = json.dumps({"global_expert_load_window": window.tolist()}).encode()
    raw = read_raw(data, "file")
    assert (raw.counts[:, 0] == window.sum(axis=0)).all()
    assert (raw.windows == window).all()
    lines = "\n".join(json.dumps({"expert_load_pass": step.tolist()}) for step in window)
    again = read_raw(lines.encode(), "file")
    assert (again.counts == raw.counts).all()
    assert (again.windows == window).all()


def test_vllm_windows_of_slots_are_credited_to_experts():
    window = RNG.integers(0, 9, (2, 1, 4))
    document = {"expert_load_window": window.tolist(), "physical_to_logical_map": [[2, 0, 1, 2]]}
    raw = read_raw(json.dumps(document).encode(), "file")
    slots = window.sum(axis=0)[0]
    assert raw.counts[0, 0].tolist() == [slots[1], slots[2], slots[0] + slots[3]]
    document["physical_to_logical_map"] = [[0, 1]]
    assert "both end in [layers, slots]" in refusal(json.dumps(document).encode())
    document["physical_to_logical_map"] = [[2, 0, 1, -1]]
    assert "a slot holds expert -1; every slot of the counts holds one" in refusal(json.dumps(document).encode())


def test_csv_in_pieces(monkeypatch):
    monkeypatch.setattr("planner.readers.csv_counts.PIECE_ROWS", 3)
    rows = [(step, layer, expert, 10 * step + expert) for step in range(3) for layer in (1, 2) for expert in range(2)]
    text = "step,layer,expert,count\n" + "".join(f"{a},{b},{c},{d}\n" for a, b, c, d in rows)
    raw = read_raw(text.encode(), "file")
    assert raw.counts[:, 0].tolist() == [[30, 33]] * 2
    assert raw.windows[:, 0].tolist() == [[0, 1], [10, 11], [20, 21]]
    assert "line 14: layer 2, expert 1, step 2 comes twice" in refusal((text + "2,2,1,5\n").encode())
    assert "line 14: step 1 after step 2; sort the file by step" in refusal((text + "1,2,1,5\n").encode())


@given(st.text(alphabet="0123,\n.- ", max_size=30))
@FUZZ
def test_plain_rows_are_those_of_integers(text):
    lines = [line + b"\n" for line in text.encode().split(b"\n")]
    found = rows_of(lines, 2)
    if found is not None:
        assert found.tolist() == [[int(field) for field in line.split(b",")] for line in lines]
        assert all(line.count(b",") == 1 for line in lines)


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")

    def written(**columns):
        parquet.write_table(pyarrow.table(columns), tmp_path / "f.parquet")
        return (tmp_path / "f.parquet").read_bytes()

    raw = read_raw(written(layer=[1, 1, 2], expert=[0, 1, 0], count=[1.5, 2, 3], source=[0, 1, 1]), "file")
    assert raw.counts.tolist() == [[[1.5, 0], [0, 2]], [[0, 0], [3, 0]]]
    assert "row 1: -1 is not an integer" in refusal(written(layer=[1, -1], expert=[0, 0], count=[1, 1]))
    assert "holds float64, not integers" in refusal(written(layer=[1.0], expert=[0], count=[1]))
    assert "row 0: count = nan" in refusal(written(layer=[1], expert=[0], count=[float("nan")]))
    assert "comes twice" in refusal(written(layer=[1, 1], expert=[0, 0], count=[1, 1]))
    assert "no column count" in refusal(written(layer=[1], expert=[0]))
    assert "1 empty values" in refusal(written(layer=[1, None], expert=[0, 1], count=[1, 1]))
    assert "damaged Parquet" in refusal(b"PAR1 nothing like it")


def test_folders_that_hold_no_recording(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(BadInput, match="is a directory with 1 files, none of a recording; known: router_trace_rank"):
        load_routing(tmp_path)
    (tmp_path / "router_trace_rank0.jsonl").write_text(megatron(ids_of()))
    (tmp_path / "rank0.safetensors").write_bytes(safetensors({"1_1": np.arange(8)}))
    with pytest.raises(BadInput, match="recordings of several kinds"):
        load_routing(tmp_path)
