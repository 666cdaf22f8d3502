"""quantization_config as checkpoints publish it -> how the routed experts are stored."""

import pytest

from planner.hf_config import parse_config
from planner.model import build_model
from tests.planner.test_hf_families import FP8, INT4, QWEN
from topologies.errors import BadInput


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (FP8, "fp8"),
        ({"quant_method": "fp8"}, "fp8-channel"),
        ({"quant_method": "fp8", "weight_block_size": [1, 32]}, "mxfp8"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "mxfp4"),
        (INT4, "int4-g32"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, "int4-g128"),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, "int4-g128"),
        ({"quant_method": "gptq", "bits": 8, "group_size": 64}, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4-g64"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, "fp8-channel"),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32}}}, "mxfp4"),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3"}}}, "fp8-channel"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128], "expert_dtype": "fp4"}, "mxfp4"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
            },
            "fp8-channel",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float", "strategy": "block"}}},
            },
            "fp8",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}},
            },
            "nvfp4",
        ),
    ],
)
def test_quantization(quantization, expected):
    assert parse_config(QWEN | {"quantization_config": quantization}, "config.json")["weight_dtype"] == expected


@pytest.mark.parametrize(
    ("top", "nested", "quantization", "expected"),
    [
        ({"expert_dtype": "fp4"}, {}, {}, "mxfp4"),
        ({}, {"expert_dtype": "fp4"}, {}, "mxfp4"),  # the language part says it, the file's top has the quantization
        ({}, {}, {"expert_dtype": "fp4"}, "mxfp4"),
        ({"expert_dtype": "fp8"}, {}, {}, "fp8"),
    ],
)
def test_experts_of_deepseek_v4_are_stored_apart(top, nested, quantization, expected):
    """DeepSeek-V4-Flash: w1 [2048, 2048] bytes (two weights each), [2048, 128] scales; w2 [4096, 1024], [4096, 64].

    Its first published config.json does not say so, and engines take different things for granted.
    """
    text = {
        "model_type": "deepseek_v4", "hidden_size": 4096, "moe_intermediate_size": 2048, "num_hidden_layers": 43,
        "n_routed_experts": 256, "num_experts_per_tok": 6,
    }  # fmt: skip
    config = {"text_config": text | nested, "quantization_config": FP8 | quantization, **top}
    model = build_model({"name": "v4"} | parse_config(config, "v4"), "v4")
    assert model.weight_dtype == expected
    if expected == "mxfp4":
        assert model.expert_bytes == 2 * 2048 * (2048 + 128) + 4096 * (1024 + 64)
    with pytest.raises(BadInput, match="no field expert_dtype; state how the experts are stored"):
        parse_config(text | {"quantization_config": FP8}, "v4")
    with pytest.raises(BadInput, match='expert_dtype = "int3"; known: fp8, mxfp4'):
        parse_config(text | {"quantization_config": FP8, "expert_dtype": "int3"}, "v4")


def test_the_older_name_of_a_quantization_config():
    compression = {"quant_method": "compressed-tensors", "config_groups": INT4["config_groups"]}
    assert parse_config(QWEN | {"compression_config": compression}, "config.json")["weight_dtype"] == "int4-g32"
    with pytest.raises(BadInput, match=r"compression_config = \[\] is not an object"):
        parse_config(QWEN | {"compression_config": []}, "config.json")


@pytest.mark.parametrize(
    ("quantization", "entry", "expected"),
    [
        (INT4, ("ignore", "re:.*mlp.experts.*"), "bf16"),
        (FP8, ("modules_to_not_convert", "block_sparse_moe.experts"), "bf16"),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4"},
            ("exclude_modules", "model.layers.*.mlp.experts*"),
            "bf16",
        ),
        (FP8, ("ignored_layers", "model.layers.*.mlp.experts"), "bf16"),
        (INT4, ("ignore", "re:.*shared_experts.*"), "int4-g32"),
        (FP8, ("modules_to_not_convert", "model.layers.3.mlp.experts"), "fp8"),
        (FP8, ("modules_to_not_convert", "mtp.*.mlp.experts"), "fp8"),
        (FP8, ("modules_to_not_convert", "model.layers.0.mlp.gate"), "fp8"),
    ],
)
def test_experts_among_the_modules_that_are_not_quantized(quantization, entry, expected):
    field, module = entry
    stated = quantization | {field: ["lm_head", module]}
    assert parse_config(QWEN | {"quantization_config": stated}, "config.json")["weight_dtype"] == expected


def test_experts_of_modelopt_mixed_precision_are_told_by_their_modules():
    """As in NVIDIA's Nemotron-3-Super: attention and shared experts in FP8, routed experts in NVFP4."""
    modules = {
        "backbone.layers.0.mixer.in_proj": {"quant_algo": "FP8"},
        "backbone.layers.1.mixer.shared_experts.up_proj": {"quant_algo": "FP8"},
        "backbone.layers.1.mixer.experts.0.up_proj": {"quant_algo": "NVFP4", "group_size": 16},
        "model.layers.2.mlp.experts": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
        "mtp.layers.0.mlp.experts": {"quant_algo": "FP8_PB_WO"},
    }

    def stored(changes):
        quantization = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": changes}
        return parse_config(QWEN | {"quantization_config": quantization}, "config.json")["weight_dtype"]

    assert stored(modules) == "nvfp4"
    assert stored({"model.layers.0.mlp.experts.7.up_proj": {"quant_algo": "FP8"}}) == "fp8-channel"
    for unclear in ({"a.experts.1.up_proj": {"quant_algo": "FP8"}}, {"a.experts.1.up_proj": {"quant_algo": "NEW"}}):
        with pytest.raises(BadInput, match="storage cannot be read"):
            stored(modules | unclear)
    with pytest.raises(BadInput, match="storage cannot be read"):
        stored({"backbone.layers.0.mixer.in_proj": {"quant_algo": "FP8"}})


def test_two_storages_in_one_config_are_refused():
    groups = {"a": INT4["config_groups"]["group_0"], "b": {"weights": {"num_bits": 8, "type": "int"}}}
    with pytest.raises(BadInput, match="quantization_config"):
        parse_config(QWEN | {"quantization_config": {"config_groups": groups}}, "config.json")
