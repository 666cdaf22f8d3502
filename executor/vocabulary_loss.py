"""The cross-entropy of logits that are split by vocabulary over the tp ranks: three numbers a token cross, no logits.

Shapes: B sequences, S tokens, V words of the vocabulary, P of this rank, N = B * S tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional


def causal_loss(
    logits: DTensor,
    labels: Tensor,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """Return the loss of a causal language model, as the `ForCausalLMLoss` of transformers defines it.

    Computed in fp32, or in fp64 from fp64. The logits of token n are compared with label n + 1; the mean is over labels
    other than `ignore_index`, or the sum is divided by `num_items_in_batch`.

    Args:
        logits: [B, S, V], split over one dimension of ranks along V.
        labels: [B, S], the same on all those ranks.
        vocab_size: V.
        num_items_in_batch: divisor of the sum.
        ignore_index: label that does not count.
        shift_labels: [B, S], labels that are shifted already.

    """
    if shift_labels is None:
        shift_labels = functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    mesh, local_BSP = logits.device_mesh, logits.to_local()
    first = mesh.get_local_rank() * vocab_size // mesh.size()
    labels_N = shift_labels.reshape(-1).to(local_BSP.device)
    wanted_N = labels_N != ignore_index
    wide = torch.promote_types(local_BSP.dtype, torch.float32)
    local_NP = local_BSP.reshape(-1, local_BSP.shape[-1]).to(wide)
    losses_N = _SplitCrossEntropy.apply(local_NP, labels_N - first, mesh.get_group())  # type: ignore[no-untyped-call]  # torch leaves it untyped
    total: Tensor = losses_N.masked_fill(~wanted_N, 0.0).sum()
    return total / (wanted_N.sum() if num_items_in_batch is None else num_items_in_batch)


class _SplitCrossEntropy(torch.autograd.Function):
    """log(sum(exp(logits))) - logits[label], of each token, from all ranks' logits."""

    @staticmethod
    def forward(ctx: Any, logits_NP: Tensor, label_N: Tensor, group: dist.ProcessGroup) -> Tensor:
        most_N = logits_NP.amax(dim=1)
        dist.all_reduce(most_N, dist.ReduceOp.MAX, group=group)
        exp_NP = (logits_NP - most_N[:, None]).exp()
        here_N = (label_N >= 0) & (label_N < logits_NP.shape[1])
        label_N = label_N.masked_fill(~here_N, 0)
        mine_N = logits_NP.gather(1, label_N[:, None])[:, 0].masked_fill(~here_N, 0.0)
        sums = torch.stack([exp_NP.sum(dim=1), mine_N])
        dist.all_reduce(sums, group=group)
        ctx.save_for_backward(exp_NP / sums[0][:, None], label_N, here_N)
        losses_N: Tensor = sums[0].log() + most_N - sums[1]
        return losses_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        chance_NP, label_N, here_N = ctx.saved_tensors
        grad_NP = chance_NP.clone()
        grad_NP.scatter_add_(1, label_N[:, None], -here_N[:, None].to(grad_NP.dtype))
        return grad_NP * grads[0][:, None], None, None
