"""The job on this rank: its device and process group, the model, the text, and one training step.

Shapes: B sequences, T positions.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tiny_moe.text import read_modules
from torch import Tensor, nn

from executor import clip_grad_norm_, find_moe_layers, sum_replica_gradients
from topologies import BadInput
from topologies.files import read_text

TIMEOUT_S = 300
BYTES = 256  # the vocabulary: a token is a byte of text
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "model_type": "qwen3_moe", "vocab_size": BYTES, "hidden_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_experts": 16,
        "num_experts_per_tok": 2, "moe_intermediate_size": 512, "intermediate_size": 512, "mlp_only_layers": [],
        "decoder_sparse_step": 1, "norm_topk_prob": True, "max_position_embeddings": 512, "dtype": "float32",
    },
    "real": {  # the shape of Qwen3-30B-A3B, with 4 of its 48 layers
        "model_type": "qwen3_moe", "vocab_size": BYTES, "hidden_size": 2048, "num_hidden_layers": 4,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768, "intermediate_size": 6144, "mlp_only_layers": [],
        "decoder_sparse_step": 1, "norm_topk_prob": True, "max_position_embeddings": 4096, "dtype": "bfloat16",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among the ranks that torchrun has started."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls) -> Ranks:
        """Join the process group: NCCL where there are GPUs, gloo elsewhere."""
        if "RANK" not in os.environ:
            raise BadInput("train_moe.py runs under torchrun: torchrun --nproc-per-node 2 examples/train_moe.py")
        local = int(os.environ["LOCAL_RANK"])
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        else:
            torch.set_num_threads(1)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=TIMEOUT_S))
        return cls(dist.get_rank(), dist.get_world_size(), device)


def read_dimensions(size: str) -> dict[str, Any]:
    """Return the config.json of a size by its name, or of a file; any MoE that transformers knows will do."""
    if size in SIZES:
        return SIZES[size]
    fields: dict[str, Any] = json.loads(read_text(size, limit_bytes=2**20))
    if fields.get("vocab_size", 0) < BYTES or "model_type" not in fields:
        raise BadInput(f"{size}: needs a model_type, and a vocab_size of at least {BYTES}: tokens are bytes")
    return fields


def build_model(dimensions: dict[str, Any], ranks: Ranks) -> nn.Module:
    """Return the Hugging Face model with random weights, the same on every rank."""
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 - takes seconds

    fields = dict(dimensions)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model.to(ranks.device)


class Text:
    """Python's standard library, byte by byte, in random crops that the step and the rank decide."""

    def __init__(self, ranks: Ranks, batch: int, context: int) -> None:
        self.ranks, self.batch, self.context = ranks, batch, context
        self.stream = torch.from_numpy(np.frombuffer(read_modules(held_out=False), np.uint8).astype(np.int64))

    def crops(self, step: int) -> Tensor:
        """Return token ids [B, T]."""
        g = torch.Generator().manual_seed(step * self.ranks.size + self.ranks.rank)
        start = torch.randint(len(self.stream) - self.context, (self.batch, 1), generator=g)
        return self.stream[start + torch.arange(self.context)].to(self.ranks.device)


def train_step(model: Any, optimizer: torch.optim.Optimizer, ids_BT: Tensor, size: int) -> Tensor:
    """Train on this rank's tokens beside the others; return this rank's part of their mean loss, nats per token."""
    loss = model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss / size
    optimizer.zero_grad()
    loss.backward()
    sum_dense_gradients(model)
    sum_replica_gradients(model)
    clip_grad_norm_(model, 1.0)
    optimizer.step()
    part: Tensor = loss.detach()
    return part


def sum_dense_gradients(model: nn.Module) -> None:
    """Sum the gradients of all that is no expert over the ranks; experts have theirs from the exchange."""
    layers = find_moe_layers(model).values()
    of_experts = {id(param) for layer in layers for param in layer.held.parameters()}
    grads = [param.grad for param in model.parameters() if id(param) not in of_experts and param.grad is not None]
    transport = next(iter(layers)).exchange.transport
    total = transport.sum_over_ranks("dense gradients", torch.cat([grad.reshape(-1) for grad in grads]))
    for grad, values in zip(grads, total.split_with_sizes([grad.numel() for grad in grads]), strict=True):
        grad.copy_(values.view_as(grad))


def latest_checkpoint(folder: Path) -> int:
    """Return the step of the last whole checkpoint; 0 where there is none."""
    steps = [int(path.name.removeprefix("step-")) for path in folder.glob("step-*") if path.suffix != ".partial"]
    return max(steps, default=0)
