"""Train a tiny Mixture-of-Experts language model on the CPU, and record where its router sends every token.

    python examples/train_tiny_moe.py --balance 0 -o skewed.npz --config config.json

The model (tiny_moe/model.py, a Qwen3-MoE in small) learns, in minutes, from the source text of the modules that lie
directly in the folder of Python's standard library (tiny_moe/text.py); a few of them are held out for the validation
loss and for the trace. One thread, and every random number drawn from the seed: on one machine, with one Python and
one torch, the same command writes the same bytes.

The trace is an `.npz` that `epplan plan --routing` reads: `topk_ids` [L, N, K] (heaviest expert first), `layers` [L]
(the indices of the MoE layers in the model) and `experts`, their number.

Shapes, as suffixes: B sequences, T positions, N = B * T tokens, C hidden, H heads, D head width, V vocabulary,
                     E experts, K experts per token, P = N * K token-expert pairs, F expert width,
                     L MoE layers.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from tiny_moe.model import Config, TinyMoE
from tiny_moe.text import HELD_OUT, Tokens, count_baselines, encode, learn_vocabulary, read_modules
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def crops(tokens: Tokens, *, batch: int, context: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random crops [B, T] of the text, and the same crops one token later."""
    stream, generator = torch.from_numpy(tokens), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        start = torch.randint(len(stream) - context, (batch, 1), generator=generator)
        crop = stream[start + torch.arange(context + 1)]
        yield crop[:, :-1], crop[:, 1:]


def make_optimizer(model: TinyMoE) -> torch.optim.Optimizer:
    """Adam with three rates: the embeddings' is high (few tokens touch a row), the routers' is low.

    At the common rate and with no balancing loss, routers send nearly all tokens to the same K experts and stay there
    (max/mean load 7.6 of at most 8 after 500 steps); at a tenth of it they come back from that (2.8).
    """
    groups: dict[float, list[nn.Parameter]] = {3e-3: [], 1e-1: [], 3e-4: []}
    for name, weight in model.named_parameters():
        groups[1e-1 if "embed" in name else 3e-4 if "router" in name else 3e-3].append(weight)
    return torch.optim.Adam(
        [{"params": weights, "lr": rate} for rate, weights in groups.items()], betas=(0.9, 0.95), fused=True
    )


def train(model: TinyMoE, batches: Iterator[tuple[Tensor, Tensor]], *, steps: int, balance: float) -> None:
    """Minimise the loss of the next token + balance x balancing loss; rates warm up, then fall along a cosine."""
    optimizer, started = make_optimizer(model), time.perf_counter()
    twentieth = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / twentieth) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
    )
    for step, (x_BT, y_BT) in enumerate(batches, start=1):
        logits_NV, routings = model(x_BT)
        loss = cross_entropy(logits_NV, y_BT.flatten())
        unevenness = torch.stack([routing.balance_loss for routing in routings]).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss + balance * unevenness)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step == 1 or step % twentieth == 0:
            skew = np.median([imbalance(routing.ids.numpy(), model.config.num_experts) for routing in routings])
            spent = f"{time.perf_counter() - started:4.0f} s"
            click.echo(f"step {step:4d}/{steps}  {loss:.3f} nats/token  max/mean load {skew:.2f}  {spent}", err=True)


def imbalance(ids: NDArray[np.integer], experts: int) -> float:
    """Return the tokens of the fullest expert over the mean of all experts."""
    load_E = np.bincount(ids.ravel(), minlength=experts)
    return float(load_E.max() / load_E.mean())


@torch.no_grad()
def read_through(model: TinyMoE, tokens: Tokens, *, context: int) -> tuple[float, NDArray[np.uint8]]:
    """Return the loss (nats per token) over the text, window after window, and each token's experts [L, N, K]."""
    stream, nats, ids_LNK = torch.from_numpy(tokens), 0.0, []
    for start in range(0, len(stream) - 1, context):
        window = stream[start : start + context + 1]
        logits_NV, routings = model(window[None, :-1])
        nats += float(cross_entropy(logits_NV, window[1:], reduction="sum"))
        ids_LNK.append(torch.stack([routing.ids for routing in routings]))
    return nats / (len(stream) - 1), torch.cat(ids_LNK, dim=1).numpy().astype(np.uint8)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    temporary.replace(path)


def pack_trace(ids_LNK: NDArray[np.uint8], experts: int) -> bytes:
    """Return the trace as `.npz`; numpy dates its members 1980-01-01, so equal routing gives equal bytes."""
    buffer = io.BytesIO()
    layers = np.arange(1, 1 + len(ids_LNK))  # layer 0 is dense
    np.savez_compressed(buffer, topk_ids=ids_LNK, layers=layers, experts=np.int64(experts))
    return buffer.getvalue()


def print_report(losses: dict[str, float], ids_LNK: NDArray[np.uint8], *, tokens_per_byte: float, experts: int) -> None:
    """Print each loss (nats per token) per byte, and the load of the fullest expert in each MoE layer."""
    for name, nats in losses.items():
        per_byte = nats * tokens_per_byte
        print(f"{name:<22}{per_byte:.4f} nats/byte  {per_byte / math.log(2):.4f} bits/byte")
    skews = [imbalance(ids_NK, experts) for ids_NK in ids_LNK]
    print(f"{'max/mean expert load':<22}" + "  ".join(f"layer {at}: {skew:.3f}" for at, skew in enumerate(skews, 1)))
    highest = experts / ids_LNK.shape[-1]
    print(f"{'':<22}median {np.median(skews):.3f}, worst {max(skews):.3f}; 1 is even, {highest:g} the highest possible")


FILE = click.Path(dir_okay=False, path_type=Path)
COUNT = click.IntRange(1)


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("-o", "--output", type=FILE, required=True, help="The trace to write (.npz).")
@click.option("--config", "config_path", type=FILE, help="Write the model's config.json here, too.")
@click.option("--balance", type=click.FloatRange(0), default=0.0, help="Weight of the balancing loss; 0.01 evens out.")
@click.option("--steps", type=COUNT, default=500, help="Training steps.")
@click.option("--batch", type=COUNT, default=8, help="Sequences a step.")
@click.option("--tokens", type=COUNT, default=8192, help="Tokens of held-out text to record.")
@click.option("--seed", type=int, default=0, help="Seed of the weights and of the order of the text.")
@click.option("--context", "max_position_embeddings", type=COUNT, default=256, help="Tokens a sequence.")
@click.option("--vocab", "vocab_size", type=click.IntRange(256), default=1024, help="Size of the byte-pair vocabulary.")
@click.option("--hidden", "hidden_size", type=COUNT, default=128, help="Width of the residual stream.")
@click.option("--heads", "num_attention_heads", type=COUNT, default=4, help="Attention heads.")
@click.option("--layers", "num_hidden_layers", type=click.IntRange(2), default=6, help="Layers; all but one are MoE.")
@click.option("--experts", "num_experts", type=click.IntRange(1, 256), default=32, help="Experts of a MoE layer.")
@click.option("--top-k", "num_experts_per_tok", type=COUNT, default=4, help="Experts that a token visits.")
@click.option("--width", "moe_intermediate_size", type=COUNT, default=64, help="Inner width of an expert.")
def main(
    *,
    output: Path,
    config_path: Path | None,
    balance: float,
    steps: int,
    batch: int,
    tokens: int,
    seed: int,
    **dims: int,
) -> None:
    """Train a tiny Mixture-of-Experts language model on Python's standard library and record its router.

    The defaults take a few minutes on one core. The routing as the router learns it, and an even one:

    \b
        train_tiny_moe.py --balance 0    -o skewed.npz --config config.json
        train_tiny_moe.py --balance 0.01 -o balanced.npz
    """  # noqa: D301 (click wants the character itself: it keeps the lines that follow as they are)
    started, config = time.perf_counter(), Config(**dims)
    for path in (output, config_path or output):
        if not path.parent.is_dir():
            raise click.UsageError(f"{path}: no such folder: {path.parent}")
    torch.set_num_threads(1)  # the order of additions, and with it the trace, depends on the number of threads
    torch.manual_seed(seed)
    text = read_modules(held_out=True)
    stream, merges = learn_vocabulary(read_modules(held_out=False), config.vocab_size)
    held_out = encode(text, merges)
    click.echo(f"{len(stream)} tokens to learn from, {len(held_out)} held out: {', '.join(HELD_OUT)}", err=True)
    if tokens >= len(held_out):
        raise click.UsageError(f"--tokens ({tokens}) >= tokens of the held-out text ({len(held_out)})")

    model, context = TinyMoE(config), config.max_position_embeddings
    train(model, crops(stream, batch=batch, context=context, steps=steps, seed=seed), steps=steps, balance=balance)
    loss, ids_LNK = read_through(model, held_out, context=context)
    trace = ids_LNK[:, :tokens]
    write_whole(output, pack_trace(trace, config.num_experts))
    if config_path:
        write_whole(config_path, config.to_json().encode())

    unigram, bigram = count_baselines(stream, held_out, config.vocab_size)
    losses = {"unigram": unigram, "bigram": bigram, "this model": loss}
    print_report(losses, trace, tokens_per_byte=len(held_out) / len(text), experts=config.num_experts)
    print(f"{output}: {output.stat().st_size} bytes, after {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
