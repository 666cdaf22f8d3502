"""Routing and how its rows find their layers; the formats themselves are tested in test_readers_*.py."""

import hashlib
import time

import numpy as np
import pytest

from planner.model import load_model
from planner.routing import Routing, count_trace, load_routing
from tests.planner.routing_data import ESFT, RECORDER, SGLANG, data_file, json_bytes, npz_bytes, small_model
from topologies.errors import BadInput

BUSY = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
IDLE = [0.0] * 8


def load(tmp_path, data: bytes, model=None) -> Routing:
    path = tmp_path / "routing"
    path.write_bytes(data)
    return load_routing(path, model)


def refusal(tmp_path, data: bytes, model=None) -> str:
    with pytest.raises(BadInput) as caught:
        load(tmp_path, data, model)
    text = str(caught.value)
    assert text.startswith(str(tmp_path / "routing"))
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", SGLANG)
def test_deepseek_statistics(name):
    path = data_file(name)
    model = load_model("deepseek-v3")
    started = time.perf_counter()
    routing = load_routing(path, model)
    assert time.perf_counter() - started < 1  # 5 ms on a quiet machine
    assert routing.layers == tuple(range(3, 61)) == model.moe_layers
    assert routing.counts.shape == (58, 1, 256)
    assert (routing.trace, routing.token_source, routing.num_tokens, routing.remarks) == (None, None, None, ())
    assert routing.probabilities.sum(axis=1) == pytest.approx(np.ones(58))
    assert routing.name == path.name
    assert routing.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_routing(path).layers == routing.layers


def test_recorder_dump():
    routing = load_routing(data_file(RECORDER), load_model("deepseek-r1"))
    assert routing.layers == tuple(range(3, 61))
    assert routing.counts.shape == (58, 1, 256)


@pytest.mark.parametrize("name", ESFT)
def test_traces_of_deepseek_v2_lite(name):
    path = data_file(name)
    routing = load_routing(path, load_model("deepseek-v2-lite"))
    assert routing.layers == tuple(range(1, 27))
    assert routing.counts.shape == (26, 1, 64)
    assert routing.trace.dtype == np.int16
    assert routing.trace.shape == (26, routing.num_tokens, 6)
    assert (routing.counts.sum(axis=(1, 2)) == routing.num_tokens * 6).all()
    with np.load(path) as file:
        assert (routing.trace == file["topk_ids"]).all()
    with pytest.raises(BadInput, match="topk_ids of 6 a token; the model deepseek-v3 has top_k = 8"):
        load_routing(path, load_model("deepseek-v3"))


@pytest.mark.parametrize(
    ("rows", "layers"),
    [
        ([IDLE, BUSY, BUSY, BUSY], (1, 2, 3)),  # a row for each layer
        ([BUSY, BUSY, BUSY], (1, 2, 3)),  # a row for each MoE layer
        ([IDLE, BUSY, BUSY, BUSY, BUSY], (1, 2, 3)),  # and one for multi-token prediction
        ([IDLE, BUSY], (1,)),  # the first layers
    ],
)
def test_rows_find_their_layers(tmp_path, rows, layers):
    routing = load(tmp_path, json_bytes(rows), small_model())
    assert routing.layers == layers
    assert (routing.counts == np.array(BUSY)).all()
    assert bool(routing.remarks) == (len(rows) not in (3, 4))


def test_counts_that_no_router_sends_get_a_remark(tmp_path):
    """Top-2: of 10 tokens' 20 pairs an expert has 10 at most, as many as there are tokens."""
    most, over = [10.0] + [1.0] * 6 + [4.0], [11.0] + [1.0] * 6 + [3.0]
    assert load(tmp_path, json_bytes([most] * 3), small_model()).remarks == ()
    assert load(tmp_path, json_bytes([most, over, over])).remarks == ()  # no model, no top_k
    (remark,) = load(tmp_path, json_bytes([most, over, most]), small_model()).remarks
    assert "layer 2: expert 0 has 55.0% of the pairs; a top-2 router gives an expert 50.0% at most" in remark


def test_counts_too_small_to_scale(tmp_path):
    assert load(tmp_path, json_bytes([[x * 1e-190 for x in BUSY]] * 3), small_model()).num_layers == 3
    tiny = [BUSY, [5e-324] * 8, BUSY]
    assert "counts of layer 2 sum to 3.95253e-323, less than 1e-200" in refusal(
        tmp_path, json_bytes(tiny), small_model()
    )


def test_without_a_model_a_row_is_a_layer(tmp_path):
    assert load(tmp_path, json_bytes([IDLE, BUSY, IDLE, BUSY])).layers == (1, 3)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([BUSY, BUSY, BUSY, BUSY], "row 0 of 4 has counts, but is dense in the model small (MoE layers 1..3)"),
        ([IDLE, BUSY, IDLE, BUSY], "row 2 of 4 has no counts, but is a MoE layer"),
        ([BUSY, IDLE, BUSY], "row 1 (layer 2) of 3 MoE layers has no counts"),
        ([BUSY, BUSY], "2 rows; the model small has 4 layers, 3 of them MoE (MoE layers 1..3)"),
        ([IDLE, *[BUSY] * 30], "31 rows; the model small has 4 layers"),
        ([IDLE, IDLE], "every count is zero"),
        ([[1.0] * 7], "counts of 7 experts; the model small has 8"),
        ([[1.0] * 9] * 4, "counts of 9 experts; the model small has 8"),
    ],
)
def test_rows_that_fit_no_layers(tmp_path, rows, words):
    assert words in refusal(tmp_path, json_bytes(rows), small_model())


def test_fewer_rows_than_layers_need_a_sign_of_the_model(tmp_path):
    model = small_model(moe_layers=(0, 1, 2, 3))
    assert "3 rows; the model small has 4 layers, 4 of them MoE" in refusal(tmp_path, json_bytes([BUSY] * 3), model)
    assert load(tmp_path, npz_bytes(counts=[BUSY] * 3, layers=[0, 1, 3]), model).layers == (0, 1, 3)


def test_stated_layers(tmp_path):
    counts = np.array([BUSY, IDLE, [2 * x for x in BUSY]])
    model = small_model()
    routing = load(tmp_path, npz_bytes(counts=counts[[0, 2]], layers=[3, 1]), model)
    assert routing.layers == (1, 3)
    assert (routing.counts[:, 0] == counts[[2, 0]]).all()
    assert "2 of the 3 MoE layers" in routing.remarks[0]
    for layers, words in [
        ([1, 2, 1], "layer 1 is stated twice"),
        ([0, 2, 1], "layer 0 has counts, but is dense in the model small"),
        ([4, 0, 1], "layer 4 has counts, but is past the last of 4 in the model small"),
        ([1, 2, 3], "layer 2 has no counts, but is a MoE layer"),
        ([1, 2], "2 layer numbers for 3 rows"),
    ]:
        assert words in refusal(tmp_path, npz_bytes(counts=counts, layers=layers), model)


@pytest.fixture
def traced(tmp_path) -> Routing:
    """Three layers, five tokens, two experts each; token 1 is masked in the first layer, sources 0 and 2."""
    ids = np.array(
        [
            [[0, 1], [-1, -1], [2, 3], [4, 5], [6, 7]],
            [[7, 0], [1, 2], [3, 4], [5, 6], [7, 1]],
            [[0, 2], [0, 2], [0, 2], [0, 2], [0, 3]],
        ]
    )
    return load(tmp_path, npz_bytes(topk_ids=ids, token_source=[0, 0, 2, 2, 2]), small_model())


def test_a_trace_is_counted_by_source(traced):
    assert traced.counts.shape == (3, 3, 8)
    assert traced.counts[0].tolist() == [[1, 1, 0, 0, 0, 0, 0, 0], [0] * 8, [0, 0, 1, 1, 1, 1, 1, 1]]
    assert traced.expert_counts[2].tolist() == [5, 0, 4, 1, 0, 0, 0, 0]
    assert (traced.num_layers, traced.num_sources, traced.num_experts, traced.num_tokens) == (3, 3, 8, 5)


def test_select_layers(traced):
    part = traced.select([3, 1])
    assert part.layers == (1, 3)
    assert (part.trace == traced.trace[[0, 2]]).all()
    assert (part.counts == traced.counts[[0, 2]]).all()
    with pytest.raises(BadInput, match=r"layer 0; the routing has 1\.\.3"):
        traced.select([0, 1])
    with pytest.raises(BadInput, match="list is empty"):
        traced.select([])


def test_split_by_tokens(traced):
    head, tail = traced.split(0.4)
    assert (head.num_tokens, tail.num_tokens) == (2, 3)
    assert (head.counts + tail.counts == traced.counts).all()
    assert tail.counts.shape == traced.counts.shape  # the sources stay, also where they send nothing
    for part in (0, 1, float("nan")):
        with pytest.raises(BadInput, match="head"):
            traced.split(part)
    with pytest.raises(BadInput, match="leave a layer without any"):
        traced.tokens(1, 2)


def test_counts_cannot_be_split(tmp_path):
    with pytest.raises(BadInput, match="per-token trace"):
        load(tmp_path, json_bytes([BUSY])).split(0.5)


def test_count_trace_equals_a_loop():
    rng = np.random.default_rng(1)
    trace = rng.integers(-1, 9, (2, 40, 3))
    source = rng.integers(0, 4, 40)
    expected = np.zeros((2, 4, 9))
    for layer in range(2):
        for token in range(40):
            for expert in trace[layer, token]:
                if expert >= 0:
                    expected[layer, source[token], expert] += 1
    assert (count_trace(trace, 9, source, 4) == expected).all()
    assert (count_trace(trace, 9) == expected.sum(axis=1, keepdims=True)).all()


def test_a_trace_must_fit_the_model(tmp_path):
    model = small_model()
    ids = np.array([[[0, 1], [6, 7]]] * 3)
    assert "topk_ids of 3 a token" in refusal(tmp_path, npz_bytes(topk_ids=np.array([[[0, 1, 2]]] * 3)), model)
    assert "topk_ids[2, 1, 0] = 8" in refusal(
        tmp_path, npz_bytes(topk_ids=ids + (ids == 6) * [[[0]], [[0]], [[2]]]), model
    )
    assert "experts = 16; the model small has 8" in refusal(tmp_path, npz_bytes(topk_ids=ids, experts=16), model)
    assert "the experts are 0..6" in refusal(tmp_path, npz_bytes(topk_ids=ids, experts=7))
    assert load(tmp_path, npz_bytes(topk_ids=ids)).num_experts == 8
    assert load(tmp_path, npz_bytes(topk_ids=ids, experts=12)).num_experts == 12


def test_a_masked_layer_of_a_trace_is_dense(tmp_path):
    ids = np.array([[[-1, -1]], [[0, 1]], [[2, 3]], [[4, 5]]])
    routing = load(tmp_path, npz_bytes(topk_ids=ids), small_model())
    assert routing.layers == (1, 2, 3)
    assert (routing.trace == ids[1:]).all()


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        load_routing(tmp_path / "absent")
    with pytest.raises(BadInput, match="is a directory with 0 files, none of a recording"):
        load_routing(tmp_path)
