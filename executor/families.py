"""Families: which parts of a Hugging Face model tensor parallelism splits, and how; pattern of module names -> style.

A block is attention, a dense MLP, or a MoE block. Every rank of the tp dimension computes its part of it from all
tokens, and the parts are summed where the block ends.

| style        | module                                                                                          |
|--------------|-------------------------------------------------------------------------------------------------|
| `vocabulary` | embedding, its rows split                                                                       |
| `entry`      | first decoder layer: from here on, with sequence parallelism, each rank has a part of the tokens |
| `norm`       | between blocks, on the tokens of this rank                                                      |
| `last norm`  | the same; all tokens come together behind it                                                    |
| `block`      | takes all tokens, gives a part of the sum; its own `sinks`, one for each head, are split        |
| `columns`    | first linear layers of a block: outputs split                                                   |
| `rows`       | last linear layers of a block: inputs split                                                     |
| `inside`     | in a block, whole on every rank, for the part of this rank                                      |
| `router`     | the same; what it records of its logits counts once                                             |
| `experts`    | packed experts: each rank sends its share of the tokens to them, or has a slice of each         |
| `head`       | linear layer to a split vocabulary                                                              |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from topologies.errors import BadInput


@dataclass(frozen=True)
class Family:
    """How the models of one family are split.

    Attributes:
        styles: from patterns of module names (`fnmatch`) to styles; every module fits one at most.
        divisible: fields of the config that the number of tp ranks must divide.

    """

    styles: Mapping[str, str]
    divisible: tuple[str, ...] = ("num_attention_heads", "num_key_value_heads", "vocab_size")


_DECODER = {
    "model.embed_tokens": "vocabulary",
    "model.layers.0": "entry",
    "model.layers.*.input_layernorm": "norm",
    "model.layers.*.self_attn": "block",
    "model.layers.*.self_attn.o_proj": "rows",
    "model.layers.*.post_attention_layernorm": "norm",
    "model.layers.*.mlp": "block",
    "model.layers.*.mlp.gate": "router",
    "model.layers.*.mlp.experts": "experts",
    "model.norm": "last norm",
    "lm_head": "head",
}
_HEADS = {"model.layers.*.self_attn.[qkv]_proj": "columns"}
_DENSE_MLP = {
    "model.layers.*.mlp.gate_proj": "columns",
    "model.layers.*.mlp.up_proj": "columns",
    "model.layers.*.mlp.down_proj": "rows",
}
_SHARED_EXPERTS = {
    "model.layers.*.mlp.shared_experts.gate_proj": "columns",
    "model.layers.*.mlp.shared_experts.up_proj": "columns",
    "model.layers.*.mlp.shared_experts.down_proj": "rows",
}
_LATENT_ATTENTION = {
    "model.layers.*.self_attn.q_proj": "columns",
    "model.layers.*.self_attn.q_a_proj": "inside",
    "model.layers.*.self_attn.q_a_layernorm": "inside",
    "model.layers.*.self_attn.q_b_proj": "columns",
    "model.layers.*.self_attn.kv_a_proj_with_mqa": "inside",
    "model.layers.*.self_attn.kv_a_layernorm": "inside",
    "model.layers.*.self_attn.kv_b_proj": "columns",
}

FAMILIES: dict[str, Family] = {
    "mixtral": Family(_DECODER | _HEADS),
    "qwen3_moe": Family(_DECODER | _HEADS | _DENSE_MLP | {"model.layers.*.self_attn.[qk]_norm": "inside"}),
    "gpt_oss": Family(_DECODER | _HEADS | {"model.layers.*.mlp.router": "router"}),
    "deepseek_v3": Family(_DECODER | _LATENT_ATTENTION | _DENSE_MLP | _SHARED_EXPERTS),
}
"""By `config.model_type`."""


def family_of(model: nn.Module) -> Family:
    """Return the family of a Hugging Face model; raises BadInput where its styles are not known."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in FAMILIES:
        raise BadInput(
            f"tensor parallelism knows the families {', '.join(FAMILIES)}, this model is of {kind or 'none'}: give its"
            " styles as family=executor.families.Family({pattern: style})"
        )
    return FAMILIES[kind]
