"""The config reader against the modules that transformers builds: shapes and layers of the experts, family by family.

transformers is no dependency of ours; where it is installed, it is the independent answer.
"""

import re
import warnings

import pytest

from planner.model import load_model

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")

CONFIGS = [
    ("mixtral", {}),
    ("qwen2_moe", {"decoder_sparse_step": 2}),
    ("qwen3_moe", {"decoder_sparse_step": 2, "mlp_only_layers": [3]}),
    ("qwen3_next", {}),
    ("deepseek_v2", {"num_experts_per_tok": 6, "first_k_dense_replace": 1, "n_group": 8, "topk_group": 3}),
    ("deepseek_v3", {}),
    ("gpt_oss", {}),
    ("olmoe", {}),
    ("glm4_moe", {}),
    ("llama4_text", {"interleave_moe_layer_step": 2}),
    ("minimax_m2", {}),
    ("phimoe", {}),
    ("jamba", {"expert_layer_period": 4, "expert_layer_offset": 2}),
    ("granitemoe", {}),
    ("ernie4_5_moe", {"moe_layer_start_index": 3, "moe_layer_interval": 2, "moe_layer_end_index": 20}),
    ("dots1", {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6}),
    ("mimo_v2_flash", {}),
    ("afmoe", {}),
]
EXPERTS = re.compile(r"layers\.(\d+)\..*experts\.(gate_up_proj|down_proj)$")


@pytest.mark.parametrize(("family", "changes"), CONFIGS, ids=[name for name, _ in CONFIGS])
def test_experts_have_the_sizes_that_transformers_builds(family, changes, tmp_path):
    if family not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.CONFIG_MAPPING[family](**changes)
        config.save_pretrained(tmp_path)
        with torch.device("meta"):
            built = transformers.AutoModelForCausalLM.from_config(config)
    layers: dict[int, int] = {}
    for name, parameter in built.named_parameters():
        if found := EXPERTS.search(name):
            layer = int(found[1])
            layers[layer] = layers.get(layer, 0) + parameter.numel()
    if not layers:
        pytest.skip(f"transformers {transformers.__version__} does not pack the experts of {family}")
    model = load_model(str(tmp_path))
    assert model.moe_layers == tuple(sorted(layers))
    assert set(layers.values()) == {model.experts * model.expert_params}
