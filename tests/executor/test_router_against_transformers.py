"""Our router against those that transformers has, family by family: same weights, same tokens, same answer.

transformers is no dependency of ours; where it is installed, it is the independent answer.
"""

import importlib

import pytest
import torch

from executor.router import Router, RouterConfig

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

E, K, H = 16, 4, 32
DEEPSEEK = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
LIMITED = {"num_groups": 4, "top_groups": 2, "scale": 2.5}
SIGMOID = RouterConfig(E, K, "sigmoid", group_score="top2", correction_bias=True, **LIMITED)

FAMILIES = {
    "mixtral": ("MixtralTopKRouter", {"num_local_experts": E}, RouterConfig(E, K)),
    "qwen3_moe": ("Qwen3MoeTopKRouter", {"num_experts": E, "norm_topk_prob": True}, RouterConfig(E, K)),
    "qwen2_moe": (
        "Qwen2MoeTopKRouter",
        {"num_experts": E, "norm_topk_prob": False},
        RouterConfig(E, K, normalise=False),
    ),
    "gpt_oss": ("GptOssTopKRouter", {"num_local_experts": E}, RouterConfig(E, K, softmax_after_top_k=True, bias=True)),
    "deepseek_v2": (
        "DeepseekV2TopkRouter",
        DEEPSEEK | {"n_routed_experts": E, "topk_method": "group_limited_greedy"},
        RouterConfig(E, K, normalise=False, **LIMITED),
    ),
    "deepseek_v3": ("DeepseekV3TopkRouter", DEEPSEEK | {"n_routed_experts": E, "norm_topk_prob": True}, SIGMOID),
    "glm4_moe": ("Glm4MoeTopkRouter", DEEPSEEK | {"n_routed_experts": E, "norm_topk_prob": True}, SIGMOID),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_router_equals(family):
    name, fields, config = FAMILIES[family]
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    settings = next(
        getattr(module, attribute)
        for attribute in dir(module)
        if attribute.lower() == family.replace("_", "") + "config"
    )
    theirs = getattr(module, name)(settings(hidden_size=H, num_experts_per_tok=K, **fields))
    ours = Router(config, H)
    torch.manual_seed(0)
    values = {key: torch.randn_like(value) for key, value in theirs.state_dict().items()}
    theirs.load_state_dict(values)
    ours.load_state_dict({key.replace("e_score_correction_bias", "correction_bias"): v for key, v in values.items()})

    x = torch.randn(200, H)
    logits, weights, ids = theirs(x)
    routed = ours(x)
    torch.testing.assert_close(routed.logits_TE, logits, rtol=1e-6, atol=1e-6)
    assert torch.equal(routed.ids_TK.sort(-1).values, ids.sort(-1).values)
    full = torch.zeros(200, E)
    torch.testing.assert_close(
        full.scatter(1, routed.ids_TK, routed.weights_TK), full.scatter(1, ids, weights), rtol=1e-5, atol=1e-6
    )
