import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.hf_config import parse_config
from planner.model import MoEModel, build_model, load_model, model_names
from planner.weights import WEIGHT_FORMATS
from tests.planner.routing_data import FUZZ, check_one_line, small_model
from topologies.errors import BadInput

DEEPSEEK = {
    "hidden_size": 7168, "moe_intermediate_size": 2048, "num_hidden_layers": 61, "first_k_dense_replace": 3,
    "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "n_shared_experts": 1,
}  # fmt: skip

# Published parameters in billions (model cards, technical reports), and the part of them that experts hold at least.
PUBLISHED = [
    ("deepseek-v3", 671.0, 0.96),  # 671 B without the MTP module
    ("deepseek-v2-lite", 15.7, 0.88),
    ("mixtral-8x7b", 46.7, 0.95),
    ("mixtral-8x22b", 141.0, 0.95),
    ("qwen3-30b-a3b", 30.5, 0.93),
    ("qwen3-235b-a22b", 235.0, 0.95),
    ("gpt-oss-20b", 20.91, 0.90),
    ("gpt-oss-120b", 116.83, 0.97),
    ("olmoe-1b-7b", 6.92, 0.90),
]


@pytest.mark.parametrize(("name", "total", "least_part"), PUBLISHED)
def test_experts_hold_most_of_the_published_parameters(name, total, least_part):
    model = load_model(name)
    experts = model.expert_params * model.experts * len(model.moe_layers) / 1e9
    assert least_part * total <= experts < total


@pytest.mark.parametrize(("name", "billions"), [("gpt-oss-120b", 114.71), ("gpt-oss-20b", 19.12)])
def test_experts_of_gpt_oss_are_the_mlp_parameters_of_its_model_card(name, billions):
    model = load_model(name)
    biases = 2 * model.intermediate + model.hidden
    router = model.experts * (model.hidden + 1)
    layer = model.experts * (model.expert_params + biases) + router
    assert layer * len(model.moe_layers) / 1e9 == pytest.approx(billions, abs=0.005)


def test_deepseek_v3_in_numbers():
    model = load_model("deepseek-v3")
    assert (model.experts, model.top_k, model.groups, model.top_groups) == (256, 8, 8, 4)
    assert model.moe_layers == tuple(range(3, 61))
    assert model.expert_params == 44_040_192
    scales = 3 * (2048 // 128) * (7168 // 128) * 4
    assert model.expert_bytes == 44_040_192 + scales
    assert model.flops_per_row == 88_080_384
    assert (model.dispatch_dtype, model.dispatch_row_bytes, model.combine_row_bytes) == ("fp8", 7168 + 224, 14336)
    assert (model.shared_experts, model.shared_intermediate) == (1, 2048)
    assert load_model("deepseek-r1").model_dump(exclude={"name"}) == model.model_dump(exclude={"name"})


def test_mxfp4_has_a_byte_of_scale_for_32_weights():
    model = load_model("gpt-oss-120b")
    assert model.expert_bytes == 3 * 2880 * 2880 // 2 + 3 * 2880 * 2880 // 32
    assert (model.dispatch_dtype, model.dispatch_row_bytes) == ("bf16", 5760)


def test_two_matrices_without_a_gate():
    assert small_model(gated=False).expert_params == 2 * 16 * 32
    assert small_model(gated=False).expert_bytes == 2 * 16 * 32 * 2


@pytest.mark.parametrize("name", sorted(WEIGHT_FORMATS))
def test_bytes_of_every_storage_are_near_its_bits(name):
    model = small_model(hidden=4096, intermediate=4096, weight_dtype=name)
    bits = {"fp32": 32, "bf16": 16, "fp16": 16}.get(name, 8 if "8" in name.split("-")[0] else 4)
    ratio = model.expert_bytes / (model.expert_params * bits / 8)
    assert 1 <= ratio <= 1.13


def test_every_name_loads_whatever_its_case():
    assert set(model_names()) >= {name for name, *_ in PUBLISHED} | {"deepseek-r1"}
    for name in model_names():
        assert load_model(name.upper()).name == name
    assert load_model("deepseek-ai/DeepSeek-V3").name == "deepseek-v3"


@pytest.mark.parametrize("name", ["mixtrl-8x7b", "", "a\0b", "x" * 5000, "no/such/model"])
def test_unknown_name(name):
    with pytest.raises(BadInput, match="unknown model"):
        load_model(name)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(BadInput, match="nearest: deepseek-v3"):
        load_model("deepseek-v33")


def test_a_file_and_the_directory_that_holds_it(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(DEEPSEEK))
    assert load_model(str(folder)) == load_model(str(folder / "config.json"))
    assert load_model(str(folder)).name == "my-model"
    assert load_model(str(folder)).model_dump(exclude={"name", "weight_dtype"}) == load_model("deepseek-v3").model_dump(
        exclude={"name", "weight_dtype"}
    )
    (tmp_path / "other.json").write_text(json.dumps(DEEPSEEK))
    assert load_model(str(tmp_path / "other.json")).name == "other"


def test_weights_of_model_slim_need_a_word_in_the_config(tmp_path):
    config = DEEPSEEK | {"torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "quant_model_description.json").write_text(json.dumps({"model_quant_type": "W8A8_DYNAMIC"}))
    with pytest.raises(BadInput, match=r"config.json: quant_model_description.json \(Ascend msModelSlim\) beside it"):
        load_model(str(tmp_path))
    for bits, storage in ((8, "int8"), (4, "int4-g128")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": bits}}))
        assert load_model(str(tmp_path)).weight_dtype == storage


def test_modelopt_quantization_beside_the_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK | {"torch_dtype": "bfloat16"}))
    (tmp_path / "hf_quant_config.json").write_text(
        json.dumps({"quantization": {"quant_algo": "NVFP4", "group_size": 16}})
    )
    assert load_model(str(tmp_path)).weight_dtype == "nvfp4"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_experts_per_tok": 257}, ["num_experts_per_tok = 257", "n_routed_experts = 256"]),
        ({"num_experts_per_tok": 0}, ["num_experts_per_tok = 0"]),
        ({"num_experts_per_tok": None}, ["no field num_experts_per_tok"]),
        ({"num_experts_per_tok": "8"}, ['num_experts_per_tok = "8"']),
        ({"num_experts_per_tok": True}, ["num_experts_per_tok = true"]),
        ({"num_experts_per_tok": [8, 4]}, ["num_experts_per_tok = [8, 4]"]),
        ({"num_experts_per_tok": []}, ["num_experts_per_tok = []"]),
        ({"n_routed_experts": -3}, ["n_routed_experts = -3"]),
        ({"n_routed_experts": 256.0}, ["n_routed_experts = 256.0"]),
        ({"n_routed_experts": float("nan")}, ["n_routed_experts = NaN"]),
        ({"n_routed_experts": 10**400}, ["n_routed_experts", "bits"]),
        ({"n_routed_experts": 1}, ["not a MoE model", "n_routed_experts = 1"]),
        ({"n_routed_experts": None, "model_type": "llama"}, ["not a MoE model", "n_routed_experts", '"llama"']),
        ({"n_group": 7}, ["n_group = 7", "256"]),
        ({"topk_group": 9}, ["topk_group = 9", "n_group = 8"]),
        ({"n_group": 128, "topk_group": 2}, ["num_experts_per_tok = 8", "topk_group = 2"]),
        ({"hidden_size": 10**9}, ["hidden_size = 1000000000"]),
        ({"hidden_size": None}, ["no field", "hidden_size"]),
        ({"moe_intermediate_size": {"a": 1}}, ['moe_intermediate_size = {"a": 1}']),
        ({"num_hidden_layers": 1_000_000}, ["1000000 layers"]),
        ({"first_k_dense_replace": 61}, ["first_k_dense_replace", "61 layers"]),
        ({"moe_layer_freq": 0}, ["moe_layer_freq = 0"]),
        ({"moe_layer_freq": [1, 2, 3]}, ["moe_layer_freq = [1, 2, 3]", "61 layers"]),
        ({"moe_layers": [1, 61]}, ["moe_layers = [1, 61]", "60"]),
        ({"moe_layers_enum": "3,four"}, ["moe_layers_enum"]),
        ({"mlp_only_layers": "3"}, ['mlp_only_layers = "3"']),
        ({"mlp_layer_types": ["dense"]}, ["mlp_layer_types", "61 layers"]),
        ({"mlp_layer_types": ["dense"] * 61}, ["mlp_layer_types", "none of 61 layers"]),
        ({"torch_dtype": "int3"}, ['torch_dtype = "int3"']),
        ({"quantization_config": "fp8"}, ['quantization_config = "fp8"']),
        ({"quantization_config": {"quant_method": "exotic"}}, ["exotic", "known: fp8"]),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [7, 7]}}, ["weight_block_size", "7, 7"]),
    ],
)  # fmt: skip
def test_nonsense_is_one_line_that_names_file_field_and_value(tmp_path, change, words):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(DEEPSEEK | change))
    with pytest.raises(BadInput) as caught:
        load_model(str(path))
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < 500 + len(str(path))
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        (json.dumps(DEEPSEEK)[:-20], "not valid JSON"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ("[1, 2]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{}", "not a MoE model"),
        ('{"text_config": []}', "not a MoE model"),
        ('{"n_routed_experts": ' + "9" * 5000 + "}", "not valid JSON"),
        ("\xff", "n_routed"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, words):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(BadInput, match="UTF-8" if text == "\xff" else words):
        load_model(str(path))


def test_missing_file_and_empty_directory(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        load_model(str(tmp_path / "absent.json"))
    with pytest.raises(BadInput, match="no such file"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"top_k": 9}, "top_k"),
        ({"groups": 3}, "groups"),
        ({"groups": 4, "top_groups": 5}, "top_groups"),
        ({"groups": 8, "top_groups": 1}, "top_k"),
        ({"moe_layers": (1, 1)}, "ascending"),
        ({"moe_layers": (1, 4)}, "num_layers is 4"),
        ({"moe_layers": ()}, "moe_layers"),
        ({"experts": 0}, "experts"),
        ({"weight_dtype": "fp5"}, "weight_dtype"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_model_that_contradicts_itself(change, words):
    with pytest.raises(BadInput, match=words):
        build_model(small_model().model_dump() | change, "plan.json")


def test_a_model_survives_json():
    model = load_model("deepseek-v3")
    assert MoEModel.model_validate_json(model.model_dump_json()) == model


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        *DEEPSEEK, "num_experts", "moe_layer_freq", "moe_layers", "moe_layers_enum", "mlp_only_layers",
        "mlp_layer_types", "layers_block_type", "hybrid_override_pattern", "decoder_sparse_step",
        "expert_layer_period", "expert_layer_offset",
        "moe_layer_end_index", "text_config", "ffn_config", "quantization_config", "dtype", "expert_dtype",
        "shared_expert_intermediate_size", "num_shared_expert", "topk_method", "interleave_moe_layer_step",
    ]
)  # fmt: skip
QUANTIZATION = st.fixed_dictionaries(
    {},
    optional={
        name: JSON_VALUES | st.sampled_from(["fp8", "quark", "int", "float", 4, 8, 32])
        for name in ("quant_method", "quant_algo", "bits", "group_size", "weight_block_size", "config_groups")
    }
    | {
        "global_quant_config": st.fixed_dictionaries(
            {"weight": JSON_VALUES | st.fixed_dictionaries({"dtype": JSON_VALUES})}
        )
    },
)


@FUZZ
@given(st.dictionaries(FIELDS, JSON_VALUES | st.integers(0, 70) | QUANTIZATION, max_size=5))
def test_any_config_is_a_model_or_one_line(changes):
    try:
        model = build_model({"name": "any"} | parse_config(DEEPSEEK | changes, "config.json"), "config.json")
    except BadInput as error:
        check_one_line(error, "config.json: ")
    else:
        assert model.top_k <= model.experts
        assert model.expert_bytes > 0


def test_a_config_may_carry_a_byte_order_mark_and_torch_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(DEEPSEEK | {"torch_dtype": "torch.float16"})
    (tmp_path / "config.json").write_text(text, encoding="utf-8-sig")
    monkeypatch.chdir(tmp_path)
    model = load_model(".")
    assert (model.name, model.weight_dtype) == (tmp_path.name, "fp16")


@pytest.mark.parametrize("name", ["", "nul\0byte", "x" * 5000])
def test_what_is_no_name_is_an_unknown_model(name: str) -> None:
    with pytest.raises(BadInput, match="unknown model"):
        load_model(name)
