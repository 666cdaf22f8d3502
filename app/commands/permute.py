"""`epplan permute`: renumber the experts of a Hugging Face checkpoint for trainers that take no placement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from app.console import byte_progress, results
from planner.importers.formats import MAX_BYTES, read_megatron
from planner.permute import permute_checkpoint
from topologies.errors import BadInput
from topologies.files import read_bytes

TOKENS = 64
TOLERANCE = 1e-6  # relative; routers of transformers add up their softmax in float32, in the order of the ids


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--by", "permutation", required=True, help="The permutation: `epplan export PLAN --to megatron -o FILE`.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="New folder for the copy.")
@click.option("--prove", is_flag=True, help="Load both in float64 with transformers and compare logits.")
def permute(checkpoint: Path, *, permutation: str, output: Path, prove: bool) -> None:
    """Write a copy of CHECKPOINT (a folder of safetensors) whose experts are renumbered as a plan places them.

    Megatron-LM and DeepSpeed give rank r the experts r*n to (r+1)*n - 1; in the copy these are the plan's experts of
    rank r. Router rows and biases move along, so that the model computes the same: --prove shows it (it needs torch and
    transformers, and memory for the model in float64).

    \b
    epplan export plan.json --to megatron -o permutation.json
    epplan permute ./Qwen3-30B-A3B --by permutation.json -o ./Qwen3-30B-A3B-placed
    """
    file = read_megatron(read_bytes(permutation, limit_bytes=MAX_BYTES), permutation)
    with byte_progress("writing") as listen:
        changed = permute_checkpoint(checkpoint, dict(zip(file.layers, file.experts, strict=True)), output, listen)
    results().print(f"wrote {output}: {changed} tensors renumbered in {len(file.layers)} layers", markup=False)
    if prove:
        difference = logit_difference(checkpoint, output)
        if not difference <= TOLERANCE:
            raise BadInput(
                f"{output}: logits differ from those of {checkpoint} by {difference:.2e} (relative, float64)"
            )
        results().print(f"proved: logits of {TOKENS} random tokens differ by {difference:.1e} (measured, float64)")


def logit_difference(a: Path, b: Path) -> float:
    """Return the largest difference between the logits of two checkpoints on random tokens, over the largest logit.

    Raises BadInput where torch or transformers is not installed.
    """
    try:
        import torch  # noqa: PLC0415 - optional packages, and seconds of imports
        from transformers import AutoModelForCausalLM  # noqa: PLC0415
    except ImportError as error:
        raise BadInput(f"--prove needs torch and transformers (pip install torch transformers): {error}") from error

    def logits(folder: Path) -> Any:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        model.eval()
        if hasattr(model, "set_experts_implementation"):  # from transformers 5 on; grouped kernels know no float64
            model.set_experts_implementation("eager")
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, model.config.vocab_size, (1, TOKENS), generator=generator)
        with torch.no_grad():
            return model(ids).logits

    first, second = logits(a), logits(b)
    return float((first - second).abs().max() / first.abs().max())
