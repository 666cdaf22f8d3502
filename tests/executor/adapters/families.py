"""Tiny models of Hugging Face's MoE families, the same on every rank; plans of `tests.executor.models` fit them."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from tests.executor.models import HIDDEN, INTERMEDIATE, LAYERS

EXPERTS, TOP_K, VOCABULARY = 8, 2, 32
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": TOP_K,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MLA = {
    "n_routed_experts": EXPERTS,
    "moe_intermediate_size": INTERMEDIATE,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "num_key_value_heads": 2,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": EXPERTS, "intermediate_size": INTERMEDIATE}),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": EXPERTS, "moe_intermediate_size": INTERMEDIATE, "head_dim": 4}),
    "deepseek_v3": ("DeepseekV3", MLA | {"first_k_dense_replace": 1, "num_hidden_layers": LAYERS + 1}),
    "gpt_oss": (
        "GptOss",
        {"num_local_experts": EXPERTS, "intermediate_size": INTERMEDIATE, "head_dim": 4, "sliding_window": 4},
    ),
    "olmoe": ("Olmoe", {"num_experts": EXPERTS, "intermediate_size": INTERMEDIATE, "num_key_value_heads": 2}),
    "qwen2_moe": (
        "Qwen2Moe",
        {"num_experts": EXPERTS, "moe_intermediate_size": INTERMEDIATE, "shared_expert_intermediate_size": 8},
    ),
    "glm4_moe": (
        "Glm4Moe",
        {
            "n_routed_experts": EXPERTS,
            "moe_intermediate_size": INTERMEDIATE,
            "first_k_dense_replace": 0,
            "n_group": 2,
            "topk_group": 1,
            "head_dim": 4,
        },
    ),
}
"""Prefix of the classes, and what the config has beside COMMON."""

EXPOSES_LOGITS = ("mixtral", "qwen3_moe", "gpt_oss", "olmoe", "qwen2_moe")


def model_of(family: str, dtype: torch.dtype, seed: int = 0, **fields: Any) -> nn.Module:
    """Return the model with random weights; experts run in a loop of theirs, which any type can."""
    prefix, own = FAMILIES[family]
    library = importlib.import_module("transformers")
    config = getattr(library, f"{prefix}Config")(**(COMMON | own | fields))
    config._experts_implementation = "eager"
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model: nn.Module = getattr(library, f"{prefix}ForCausalLM")(config).to(dtype)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" not in name and "norm" not in name:
                tensor.copy_(torch.randn(tensor.shape, dtype=torch.float64) * 0.3)
    return model


def batches(size: int, step: int) -> list[Tensor]:
    """Return the token ids (1, S) of every rank; S differs from rank to rank and from step to step."""
    g = torch.Generator().manual_seed(1000 + step)
    return [torch.randint(3, VOCABULARY, (1, 2 + (5 * rank + 3 * step) % 7), generator=g) for rank in range(size)]


def forward(model: nn.Module, family: str, ids: Tensor) -> Any:
    """Return what the model makes of token ids, with their loss, and router logits where it exposes them."""
    extra = {"output_router_logits": True} if family in EXPOSES_LOGITS else {}
    return model(input_ids=ids, labels=ids, **extra)
