"""The model: Qwen3-MoE in small.

RoPE attention with normalised queries and keys, RMSNorm, SwiGLU experts behind a softmax-then-top-k router with
renormalised weights, and a dense first layer.

Shapes, as suffixes: B sequences, T positions, N = B * T tokens, C hidden, H heads, D head width, V vocabulary,
                     E experts, K experts per token, P = N * K token-expert pairs, F expert width.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import NamedTuple

import click
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

ROPE_THETA = 10_000.0
NORM_EPS = 1e-6


@dataclass(frozen=True)
class Config:
    """The model's dimensions, under the names that a Hugging Face config.json of Qwen3-MoE gives them."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    max_position_embeddings: int

    def __post_init__(self) -> None:
        """Refuse dimensions that do not go together."""
        if self.num_experts_per_tok > self.num_experts:
            raise click.UsageError(f"--top-k ({self.num_experts_per_tok}) > --experts ({self.num_experts})")
        if self.hidden_size % (2 * self.num_attention_heads):
            heads = f"2 * --heads ({2 * self.num_attention_heads}), for heads of even width"
            raise click.UsageError(f"--hidden ({self.hidden_size}) is no multiple of {heads}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def intermediate_size(self) -> int:
        """Width of the dense layer: what the experts of one token have together."""
        return self.moe_intermediate_size * self.num_experts_per_tok

    def to_json(self) -> str:
        """Return the config.json; the weights are counted in bfloat16, as such a model would be served."""
        fields = {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            **asdict(self),
            "head_dim": self.head_dim,
            "num_key_value_heads": self.num_attention_heads,
            "intermediate_size": self.intermediate_size,
            "mlp_only_layers": [0],
            "decoder_sparse_step": 1,
            "norm_topk_prob": True,
            "hidden_act": "silu",
            "rope_theta": ROPE_THETA,
            "rms_norm_eps": NORM_EPS,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }
        return json.dumps(fields, indent=2) + "\n"


class Routing(NamedTuple):
    """What the router of one MoE layer decided, and how evenly."""

    ids: Tensor  # [N, K], the heaviest expert first
    balance_loss: Tensor  # E * sum of (share of the pairs x mean probability) over the experts: 1 where all are equal


def swiglu(x_C: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Return down(silu(gate(x)) * up(x)); gate_up is [C, 2F], down is [F, C]."""
    gate, up = (x_C @ gate_up).chunk(2, dim=-1)
    y_C: Tensor = (silu(gate) * up) @ down
    return y_C


class Attention(nn.Module):
    """Causal self-attention with RMS-normalised, rotated queries and keys."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, width = config.num_attention_heads, config.hidden_size
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(config.head_dim, eps=NORM_EPS), nn.RMSNorm(config.head_dim, eps=NORM_EPS)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Mix every position with those before it."""
        q_BHTD, k_BHTD, v_BHTD = self.qkv(x_BTC).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q_BHTD, k_BHTD = rotate(self.q_norm(q_BHTD)), rotate(self.k_norm(k_BHTD))
        mixed_BHTD = scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=True)
        y_BTC: Tensor = self.out(mixed_BHTD.transpose(1, 2).flatten(2))
        return y_BTC


def rotate(x_BHTD: Tensor) -> Tensor:
    """Rotary position embedding: turn the pairs (d, d + D/2) by position x frequency."""
    positions, width = x_BHTD.shape[-2:]
    frequency = ROPE_THETA ** (-torch.arange(0, width, 2) / width)
    angle_TD = torch.outer(torch.arange(positions), frequency).repeat(1, 2)
    first, second = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * angle_TD.cos() + torch.cat([-second, first], dim=-1) * angle_TD.sin()


class Experts(nn.Module):
    """E SwiGLU experts behind a top-k router. One expert, always chosen, is a dense layer."""

    def __init__(self, config: Config, *, experts: int, top_k: int, width: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(config.hidden_size, experts, bias=False)
        self.gate_up_ECF = nn.Parameter(torch.empty(experts, config.hidden_size, 2 * width))
        self.down_EFC = nn.Parameter(torch.empty(experts, width, config.hidden_size))

    def forward(self, x_NC: Tensor) -> tuple[Tensor, Routing]:
        """Send each token to its experts: sort the pairs by expert, run each expert on its rows, add up."""
        scores_NE = self.router(x_NC).softmax(dim=-1)
        weight_NK, ids_NK = scores_NE.topk(self.top_k)
        weight_NK = weight_NK / weight_NK.sum(dim=-1, keepdim=True)

        order_P = ids_NK.flatten().argsort(stable=True)
        token_P = order_P // self.top_k
        load_E = ids_NK.flatten().bincount(minlength=scores_NE.shape[1])
        rows = torch.split(x_NC[token_P], load_E.tolist())
        weights = zip(self.gate_up_ECF.unbind(), self.down_EFC.unbind(), strict=True)
        y_PC = torch.cat([swiglu(x, *weight) for x, weight in zip(rows, weights, strict=True)])
        y_NC = torch.zeros_like(x_NC).index_add(0, token_P, y_PC * weight_NK.flatten()[order_P, None])

        balance = len(load_E) * (load_E / load_E.sum()) @ scores_NE.mean(dim=0)  # Switch Transformer, equation 4
        return y_NC, Routing(ids_NK, balance)


class Block(nn.Module):
    """Attention and experts, each on the normalised residual stream."""

    def __init__(self, config: Config, *, dense: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(config.hidden_size, eps=NORM_EPS) for _ in range(2))
        self.attention = Attention(config)
        if dense:
            self.experts = Experts(config, experts=1, top_k=1, width=config.intermediate_size)
        else:
            k, width = config.num_experts_per_tok, config.moe_intermediate_size
            self.experts = Experts(config, experts=config.num_experts, top_k=k, width=width)

    def forward(self, x_BTC: Tensor) -> tuple[Tensor, Routing]:
        """Return the residual stream after this layer, and where its tokens went."""
        x_BTC = x_BTC + self.attention(self.norms[0](x_BTC))
        y_NC, routing = self.experts(self.norms[1](x_BTC).flatten(0, 1))
        return x_BTC + y_NC.view_as(x_BTC), routing


class TinyMoE(nn.Module):
    """A decoder-only language model whose layers are MoE layers, all but the first."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, dense=layer == 0) for layer in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=NORM_EPS)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.02)
        nn.init.normal_(self.embed.weight, std=1.0)  # tokens far apart from the start: routers can tell them apart
        nn.init.normal_(self.head.weight, std=0.002)

    def forward(self, tokens_BT: Tensor) -> tuple[Tensor, list[Routing]]:
        """Return the logits [N, V] of the next token, and the routing of each MoE layer."""
        x_BTC, routings = self.embed(tokens_BT), []
        for block in self.blocks:
            x_BTC, routing = block(x_BTC)
            routings.append(routing)
        return self.head(self.norm(x_BTC).flatten(0, 1)), routings[1:]
