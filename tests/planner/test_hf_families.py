"""config.json fields as the families publish them -> what the planner reads.

The fields are those of the named checkpoints' config.json that bear on MoE layers. The expected values were checked
once against the modules that transformers 5.23 builds from such configs (test_hf_against_transformers.py does it where
transformers is installed); the totals are published parameter counts.
"""

import re

import pytest

from planner.hf_config import parse_config
from planner.model import build_model
from topologies.errors import BadInput

INT4 = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True},
        }
    },
}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
KIMI_K2 = {
    "model_type": "kimi_k2", "num_hidden_layers": 61, "hidden_size": 7168, "intermediate_size": 18432,
    "n_routed_experts": 384, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048,
    "moe_layer_freq": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc",
}  # fmt: skip

# name: (config, (experts, top_k, hidden, intermediate), (groups, top_groups), layers, MoE layers, shared width,
#        storage, billions of parameters in the routed experts: at least, below)
FAMILIES = {
    "DeepSeek-V2": (
        {
            "model_type": "deepseek_v2", "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
            "num_hidden_layers": 60, "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_routed_experts": 160,
            "n_shared_experts": 2, "num_experts_per_tok": 6, "n_group": 8, "topk_group": 3,
            "topk_method": "group_limited_greedy", "torch_dtype": "bfloat16",
        },
        (160, 6, 5120, 1536), (8, 3), 60, range(1, 60), 3072, "bf16", (220, 236),
    ),
    "Qwen2-57B-A14B": (
        {
            "model_type": "qwen2_moe", "hidden_size": 3584, "intermediate_size": 18944, "moe_intermediate_size": 2560,
            "shared_expert_intermediate_size": 20480, "num_hidden_layers": 28, "num_experts": 64,
            "num_experts_per_tok": 8, "decoder_sparse_step": 1, "torch_dtype": "bfloat16",
        },
        (64, 8, 3584, 2560), (1, 1), 28, range(28), 20480, "bf16", (48, 57.4),
    ),
    "Qwen3-Next-80B-A3B": (
        {
            "model_type": "qwen3_next", "hidden_size": 2048, "intermediate_size": 5120, "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512, "num_hidden_layers": 48, "num_experts": 512,
            "num_experts_per_tok": 10, "decoder_sparse_step": 1, "mlp_only_layers": [], "torch_dtype": "bfloat16",
        },
        (512, 10, 2048, 512), (1, 1), 48, range(48), 512, "bf16", (76, 80),
    ),
    "Qwen3-VL-235B-A22B (nested)": (
        {
            "model_type": "qwen3_vl_moe", "vision_config": {"hidden_size": 1152},
            "text_config": {
                "hidden_size": 4096, "moe_intermediate_size": 1536, "intermediate_size": 12288, "num_hidden_layers": 94,
                "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [],
                "dtype": "bfloat16",
            },
        },
        (128, 8, 4096, 1536), (1, 1), 94, range(94), 0, "bf16", (220, 235),
    ),
    "GLM-4.5-Air": (
        {
            "model_type": "glm4_moe", "hidden_size": 4096, "intermediate_size": 10944, "moe_intermediate_size": 1408,
            "num_hidden_layers": 46, "first_k_dense_replace": 1, "n_routed_experts": 128, "n_shared_experts": 1,
            "num_experts_per_tok": 8, "n_group": 1, "topk_group": 1, "torch_dtype": "bfloat16",
        },
        (128, 8, 4096, 1408), (1, 1), 46, range(1, 46), 1408, "bf16", (98, 106),
    ),
    "Llama-4-Scout (nested)": (
        {
            "model_type": "llama4", "torch_dtype": "bfloat16",
            "text_config": {
                "model_type": "llama4_text", "hidden_size": 5120, "intermediate_size": 8192,
                "intermediate_size_mlp": 16384, "num_hidden_layers": 48, "num_local_experts": 16,
                "num_experts_per_tok": 1, "interleave_moe_layer_step": 1,
            },
        },
        (16, 1, 5120, 8192), (1, 1), 48, range(48), 8192, "bf16", (96, 109),
    ),
    "Llama-4-Maverick (every second layer)": (
        {
            "model_type": "llama4", "torch_dtype": "bfloat16",
            "text_config": {
                "model_type": "llama4_text", "hidden_size": 5120, "intermediate_size": 8192,
                "intermediate_size_mlp": 16384, "num_hidden_layers": 48, "num_local_experts": 128,
                "num_experts_per_tok": 1, "interleave_moe_layer_step": 2,
            },
        },
        (128, 1, 5120, 8192), (1, 1), 48, range(1, 48, 2), 8192, "bf16", (386, 400),
    ),
    "MiniMax-M2": (
        {
            "model_type": "minimax", "hidden_size": 3072, "intermediate_size": 1536, "num_hidden_layers": 62,
            "num_local_experts": 256, "num_experts_per_tok": 8, "shared_intermediate_size": 0,
            "quantization_config": FP8,
        },
        (256, 8, 3072, 1536), (1, 1), 62, range(62), 0, "fp8", (224, 230),
    ),
    "MiniMax-Text-01": (
        {
            "model_type": "minimax_text_01", "hidden_size": 6144, "intermediate_size": 9216, "num_hidden_layers": 80,
            "num_local_experts": 32, "num_experts_per_tok": 2, "shared_intermediate_size": 0,
            "shared_moe_mode": "sigmoid",
        },
        (32, 2, 6144, 9216), (1, 1), 80, range(80), 0, "bf16", (430, 456),
    ),
    "Kimi-K2-Instruct": (
        KIMI_K2 | {"quantization_config": FP8},
        (384, 8, 7168, 2048), (1, 1), 61, range(1, 61), 2048, "fp8", (1000, 1040),
    ),
    "Kimi-K2.5 (nested, int4)": (
        {"model_type": "kimi_k25", "dtype": "bfloat16", "text_config": KIMI_K2 | {"quantization_config": INT4}},
        (384, 8, 7168, 2048), (1, 1), 61, range(1, 61), 2048, "int4-g32", (1000, 1040),
    ),
    "Phi-3.5-MoE": (
        {
            "model_type": "phimoe", "hidden_size": 4096, "intermediate_size": 6400, "num_hidden_layers": 32,
            "num_local_experts": 16, "num_experts_per_tok": 2, "torch_dtype": "bfloat16",
        },
        (16, 2, 4096, 6400), (1, 1), 32, range(32), 0, "bf16", (40, 42),
    ),
    "Jamba-v0.1": (
        {
            "model_type": "jamba", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_experts": 16, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1,
            "attn_layer_period": 8, "attn_layer_offset": 4, "torch_dtype": "bfloat16",
        },
        (16, 2, 4096, 14336), (1, 1), 32, range(1, 32, 2), 0, "bf16", (44, 52),
    ),
    "DBRX (ffn_config)": (
        {
            "model_type": "dbrx", "d_model": 6144, "n_layers": 40, "torch_dtype": "bfloat16",
            "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4, "model_type": ""},
        },
        (16, 4, 6144, 10752), (1, 1), 40, range(40), 0, "bf16", (126, 132),
    ),
    "Granite-3.0-3B-A800M": (
        {
            "model_type": "granitemoe", "hidden_size": 1536, "intermediate_size": 512, "num_hidden_layers": 32,
            "num_local_experts": 40, "num_experts_per_tok": 8, "torch_dtype": "bfloat16",
        },
        (40, 8, 1536, 512), (1, 1), 32, range(32), 0, "bf16", (2.9, 3.4),
    ),
    "Granite-4.0-H-Small (hybrid)": (
        {
            "model_type": "granitemoehybrid", "hidden_size": 4096, "intermediate_size": 768, "num_hidden_layers": 40,
            "num_local_experts": 72, "num_experts_per_tok": 10, "shared_intermediate_size": 1536,
            "layer_types": ["mamba"] * 40, "torch_dtype": "bfloat16",
        },
        (72, 10, 4096, 768), (1, 1), 40, range(40), 1536, "bf16", (27, 32),
    ),
    "Hunyuan-A13B (a value a layer)": (
        {
            "model_type": "hunyuan_v1_moe", "hidden_size": 4096, "intermediate_size": 3072, "num_hidden_layers": 32,
            "num_experts": 64, "moe_topk": [8] * 32, "moe_intermediate_size": [3072] * 32,
            "num_shared_expert": [1] * 32, "use_mixed_mlp_moe": True, "moe_layer_num_skipped": 0,
            "torch_dtype": "bfloat16",
        },
        (64, 8, 4096, 3072), (1, 1), 32, range(32), 3072, "bf16", (77, 80.4),
    ),
    "ERNIE-4.5-21B-A3B": (
        {
            "model_type": "ernie4_5_moe", "hidden_size": 2560, "intermediate_size": 12288,
            "moe_intermediate_size": 1536, "num_hidden_layers": 28, "moe_num_experts": 64, "moe_k": 6,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1, "moe_layer_end_index": 27, "moe_layer_interval": 1, "torch_dtype": "bfloat16",
        },
        (64, 6, 2560, 1536), (1, 1), 28, range(1, 28), 3072, "bf16", (20, 22),
    ),
    "Grok-1": (
        {
            "model_type": "grok-1", "hidden_size": 6144, "intermediate_size": 32768, "num_hidden_layers": 64,
            "num_experts": 8, "num_selected_experts": 2, "torch_dtype": "bfloat16",
        },
        (8, 2, 6144, 32768), (1, 1), 64, range(64), 0, "bf16", (300, 314),
    ),
    "dots.llm1": (
        {
            "model_type": "dots1", "hidden_size": 4096, "intermediate_size": 10944, "moe_intermediate_size": 1408,
            "num_hidden_layers": 62, "first_k_dense_replace": 1, "n_routed_experts": 128, "n_shared_experts": 2,
            "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1, "torch_dtype": "bfloat16",
        },
        (128, 6, 4096, 1408), (1, 1), 62, range(1, 62), 2816, "bf16", (134, 142),
    ),
    "Ling-mini-2.0": (
        {
            "model_type": "bailing_moe", "hidden_size": 2048, "intermediate_size": 5120, "moe_intermediate_size": 512,
            "moe_shared_expert_intermediate_size": 512, "num_hidden_layers": 20, "first_k_dense_replace": 1,
            "num_experts": 256, "num_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
        },
        (256, 8, 2048, 512), (8, 4), 20, range(1, 20), 512, "bf16", (15, 16.3),
    ),
    "Nemotron-3-Nano-30B (two matrices, layers by letters)": (
        {
            "model_type": "nemotron_h", "hidden_size": 2688, "intermediate_size": 1856, "moe_intermediate_size": 1856,
            "moe_shared_expert_intermediate_size": 3712, "n_routed_experts": 128, "n_shared_experts": 1,
            "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1, "num_hidden_layers": 52,
            "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
            "mlp_hidden_act": "relu2", "torch_dtype": "bfloat16",
        },
        (128, 6, 2688, 1856), (1, 1), 52, None, 3712, "bf16", (28, 31.6),
    ),
    "MiMo-V2-Flash (a flag a layer)": (
        {
            "model_type": "mimo_v2_flash", "hidden_size": 4096, "intermediate_size": 16384,
            "moe_intermediate_size": 2048, "num_hidden_layers": 48, "moe_layer_freq": [0] + [1] * 47,
            "n_routed_experts": 256, "n_shared_experts": None, "num_experts_per_tok": 8, "n_group": 1, "topk_group": 1,
            "quantization_config": FP8,
        },
        (256, 8, 4096, 2048), (1, 1), 48, range(1, 48), 0, "fp8", (300, 309),
    ),
    "LFM2-8B-A1B": (
        {
            "model_type": "lfm2_moe", "hidden_size": 2048, "intermediate_size": 7168, "moe_intermediate_size": 1792,
            "num_hidden_layers": 24, "num_dense_layers": 2, "num_experts": 32, "num_experts_per_tok": 4,
            "dtype": "bfloat16",
        },
        (32, 4, 2048, 1792), (1, 1), 24, range(2, 24), 0, "bf16", (7.5, 8.4),
    ),
    "Step-3 (layers as text)": (
        {
            "model_type": "step3_text", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 5120,
            "share_expert_dim": 5120, "num_hidden_layers": 61, "moe_num_experts": 48, "moe_top_k": 3,
            "moe_layers_enum": ",".join(map(str, range(4, 60))), "torch_dtype": "bfloat16",
        },
        (48, 3, 7168, 5120), (1, 1), 61, range(4, 60), 5120, "bf16", (290, 321),
    ),
    "LongCat-Flash": (
        {
            "model_type": "longcat_flash", "hidden_size": 6144, "ffn_hidden_size": 12288,
            "expert_ffn_hidden_size": 2048, "num_layers": 28, "n_routed_experts": 512, "moe_topk": 12,
            "zero_expert_num": 256,
            "torch_dtype": "bfloat16",
        },
        (512, 12, 6144, 2048), (1, 1), 28, range(28), 0, "bf16", (520, 560),
    ),
    "openPangu-Ultra-MoE-718B": (
        {
            "model_type": "pangu_ultra_moe", "hidden_size": 7680, "intermediate_size": 18432,
            "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_dense_layers": 3, "num_routed_experts": 256,
            "num_shared_experts": 1, "num_experts_per_tok": 8, "torch_dtype": "bfloat16",
        },
        (256, 8, 7680, 2048), (1, 1), 61, range(3, 61), 2048, "bf16", (690, 718),
    ),
    "SmallThinker-21B-A3B": (
        {
            "model_type": "smallthinker", "hidden_size": 2560, "moe_ffn_hidden_size": 768, "num_hidden_layers": 52,
            "moe_num_primary_experts": 64, "moe_num_active_primary_experts": 6, "moe_layer_layout": [1] * 52,
            "torch_dtype": "bfloat16",
        },
        (64, 6, 2560, 768), (1, 1), 52, range(52), 0, "bf16", (19, 21.5),
    ),
    "Muse-Spark-816B-A42B (nested, narrower rows)": (
        {
            "model_type": "muse_spark", "dtype": "bfloat16",
            "text_config": {
                "hidden_size": 8192, "moe_hidden_size": 4096, "intermediate_size": 16384, "moe_intermediate_size": 4096,
                "num_hidden_layers": 62, "num_local_experts": 256, "num_experts_per_tok": 8,
                "mlp_layer_types": ["sparse"] * 62,
            },
        },
        (256, 8, 4096, 4096), (1, 1), 62, range(62), 0, "bf16", (790, 816),
    ),
    "Kimi-K3 (nested, narrower rows, mxfp4)": (
        {
            "model_type": "kimi_k3", "dtype": "bfloat16",
            "text_config": {
                "model_type": "kimi_linear", "dtype": "bfloat16", "hidden_size": 7168, "intermediate_size": 33792,
                "routed_expert_hidden_size": 3584, "moe_intermediate_size": 3072, "num_hidden_layers": 93,
                "first_k_dense_replace": 1, "moe_layer_freq": 1, "num_experts": 896, "num_experts_per_token": 16,
                "num_shared_experts": 2, "num_expert_group": 1, "topk_group": 1, "topk_method": "noaux_tc",
                "quantization_config": {
                    "quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized",
                    "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 32}}},
                    "ignore": ["re:.*self_attn.*", "re:.*shared_experts.*", "re:.*lm_head.*"],
                },
            },
        },
        (896, 16, 3584, 3072), (1, 1), 93, range(1, 93), 2 * 2 * 3072, "mxfp4", (2600, 2800),
    ),
    "a toy of our own": (
        {
            "model_type": "epplan_toy", "hidden_size": 64, "moe_intermediate_size": 48, "num_hidden_layers": 6,
            "num_experts": 32, "num_experts_per_tok": 4, "torch_dtype": "float32",
        },
        (32, 4, 64, 48), (1, 1), 6, range(6), 0, "fp32", (0, 0.01),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_family(name):
    config, sizes, groups, layers, moe_layers, shared_width, storage, (least, below) = FAMILIES[name]
    model = build_model({"name": name} | parse_config(config, name), name)
    assert (model.experts, model.top_k, model.hidden, model.intermediate) == sizes
    assert (model.groups, model.top_groups) == groups
    assert model.num_layers == layers
    if moe_layers is not None:
        assert model.moe_layers == tuple(moe_layers)
    assert model.shared_intermediate == shared_width
    assert model.weight_dtype == storage
    assert least <= model.expert_params * model.experts * len(model.moe_layers) / 1e9 <= below


def test_letters_of_nemotron_h():
    config = FAMILIES["Nemotron-3-Nano-30B (two matrices, layers by letters)"][0]
    fields = parse_config(config, "config.json")
    assert [config["hybrid_override_pattern"][layer] for layer in fields["moe_layers"]] == ["E"] * 23
    assert fields["gated"] is False
    assert parse_config(config | {"num_hidden_layers": None}, "config.json")["num_layers"] == 52


QWEN = FAMILIES["Qwen3-Next-80B-A3B"][0] | {"num_hidden_layers": 8}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"decoder_sparse_step": 2}, [1, 3, 5, 7]),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, [1, 5, 7]),
        ({"mlp_only_layers": [0, 7]}, [1, 2, 3, 4, 5, 6]),
        ({"first_k_dense_replace": 3, "moe_layer_freq": 2}, [4, 6]),
        ({"moe_layer_freq": [0, 0, 1, 1, 0, 1, 0, 1]}, [2, 3, 5, 7]),
        ({"moe_layer_start_index": 2, "moe_layer_end_index": 6, "moe_layer_interval": 2}, [3, 5]),
        ({"moe_layer_start_index": 2, "moe_layer_end_index": -1}, [2, 3, 4, 5, 6, 7]),
        ({"moe_layers": [1, 4], "interleave_moe_layer_step": 4}, [1, 4]),
        ({"interleave_moe_layer_step": 4}, [3, 7]),
        ({"mlp_layer_types": ["dense"] * 6 + ["sparse", "moe"]}, [6, 7]),
        ({"is_moe_layer": [False, True] * 4}, [1, 3, 5, 7]),
        ({"moe_layer_layout": [0, 0, 1, 1, 1, 1, 1, 0]}, [2, 3, 4, 5, 6]),
        ({"expert_layer_period": 4, "expert_layer_offset": 2}, [2, 6]),
        ({"layers_block_type": ["mamba", "attention"] * 4}, list(range(8))),
        ({"layers_block_type": ["mamba", "moe"] * 4}, [1, 3, 5, 7]),
    ],
)
def test_rules_of_layers(rule, expected):
    assert parse_config(QWEN | rule, "config.json")["moe_layers"] == tuple(expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"enable_moe_block": False}, "not a MoE model: enable_moe_block = false"),
        ({"is_moe": False}, "not a MoE model: is_moe = false"),
        ({"model_type": "doge", "is_moe": True}, "rows of embeddings"),
        (
            {"block_configs": [{"num_experts": 512}, {"num_experts": 256}]},
            "block_configs: layer 1 has num_experts = 256, the model num_experts = 512; one value is supported",
        ),
        ({"per_layer_config": {"05": {"moe_intermediate_size": 256}}}, "layer 05 has moe_intermediate_size = 256"),
    ],
)
def test_models_that_one_size_of_expert_does_not_describe(fields, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        parse_config(QWEN | fields, "config.json")


@pytest.mark.parametrize("sizes", [7, "x", [None, 3], [{"head_dim": 512}], {"05": {"head_dim": 512}}, {"1": 2}])
def test_layers_that_say_nothing_of_experts(sizes):
    assert parse_config(QWEN | {"per_layer_config": sizes}, "config.json") == parse_config(QWEN, "config.json")


def test_experts_of_two_kinds_are_refused():
    with pytest.raises(BadInput, match=r"moe_intermediate_size = \[1536, 512\]"):
        parse_config(QWEN | {"moe_intermediate_size": [1536, 512]}, "config.json")


def test_groups_that_the_router_does_not_use():
    config = FAMILIES["DeepSeek-V2"][0]
    for unused in ({"topk_method": "greedy"}, {"use_grouped_topk": False}):
        fields = parse_config(config | unused, "config.json")
        assert (fields["groups"], fields["top_groups"]) == (1, 1)
