"""Tensor and sequence parallelism around MoE blocks: as in one process; what does not fit is refused."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from executor.tensor_parallel import apply_tensor_parallel
from executor.vocabulary_loss import causal_loss
from tests.executor.adapters.families import model_of
from tests.executor.adapters.steps import PATIENCE_S
from tests.executor.layers import relative
from tests.executor.parallel_steps import Layout, on_trajectory, one_step, train
from tests.executor.planned import plan_for
from tests.executor.ranks import on_ranks
from topologies import BadInput

pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("mixtral", Layout(tp=2, ep=2)),
        ("mixtral", Layout(tp=2, sequence=True)),
        ("qwen3_moe", Layout(tp=2, ep=2, sequence=True)),
        ("qwen3_moe", Layout(tp=2)),
        ("deepseek_v3", Layout(tp=2, ep=2)),
        ("deepseek_v3", Layout(tp=2, ep=2, sequence=True)),
    ],
)
def test_one_step_equals_the_single_process(family: str, layout: Layout) -> None:
    """Logits, loss (with the router's auxiliary one), recorded router logits, and every gradient."""
    for errors in on_ranks(layout.ranks, one_step, family, layout, plan_for(layout.ep, "ours"), timeout_s=PATIENCE_S):
        assert all(error < 1e-5 for error in errors.values()), errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "layout"),
    [("mixtral", Layout(tp=2, ep=2)), ("deepseek_v3", Layout(tp=2, ep=2, sequence=True, recompute=True))],
)
def test_twenty_steps_stay_on_the_trajectory(family: str, layout: Layout) -> None:
    """Adam with clipping, copies of experts, and recomputation."""
    for most in on_ranks(layout.ranks, train, family, layout, plan_for(layout.ep, "ours"), timeout_s=PATIENCE_S):
        assert on_trajectory(most), most


def refused(_rank: int, size: int) -> list[str]:
    """Return the errors of models that 2 ranks cannot share, and whether they are as they were."""
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("tp",))
    odd_heads = model_of("mixtral", torch.float32, num_key_value_heads=1)
    odd_words = model_of("mixtral", torch.float32, num_key_value_heads=2, vocab_size=33)
    unknown = model_of("olmoe", torch.float32)
    more = model_of("mixtral", torch.float32, num_key_value_heads=2)
    more.model.extra = nn.Linear(2, 2)
    errors = []
    for model in (odd_heads, odd_words, unknown, more):
        before = list(model.parameters())
        try:
            apply_tensor_parallel(model, mesh)
        except BadInput as error:
            errors.append(str(error))
        assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    model = model_of("mixtral", torch.float32, num_key_value_heads=2)
    apply_tensor_parallel(model, mesh, sequence_parallel=True)
    try:
        model(torch.zeros(1, 5, dtype=torch.int64))
    except BadInput as error:
        errors.append(str(error))
    return errors


def test_what_does_not_divide_is_refused_with_both_numbers() -> None:
    wanted = [
        "num_key_value_heads is 1, which 2 tp ranks do not divide",
        "vocab_size is 33, which 2 tp ranks do not divide",
        "tensor parallelism knows the families mixtral, qwen3_moe, gpt_oss, deepseek_v3, this model is of olmoe: give"
        " its styles as family=executor.families.Family({pattern: style})",
        "model.extra.weight: its module has no style; tensor parallelism must know every parameter",
        "sequence parallelism over 2 ranks: a sequence of 5 tokens does not divide; pad it to 6",
    ]
    assert on_ranks(2, refused, timeout_s=PATIENCE_S) == [wanted] * 2


def no_op(_rank: int, size: int) -> bool:
    model = model_of("mixtral", torch.float32)
    before = list(model.parameters())
    apply_tensor_parallel(model, None)
    apply_tensor_parallel(model, init_device_mesh("cpu", (size,), mesh_dim_names=("ep",)))
    apply_tensor_parallel(model, init_device_mesh("cpu", (size, 1), mesh_dim_names=("ep", "tp")))
    return all(a is b for a, b in zip(before, model.parameters(), strict=True))


def test_no_tp_dimension_is_a_no_op() -> None:
    assert all(on_ranks(2, no_op, timeout_s=PATIENCE_S))


def split_loss(rank: int, size: int) -> list[float]:
    """Return the errors of loss and gradients of split logits for every way to count labels."""
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("tp",))
    theirs = import_module("transformers.loss.loss_utils").ForCausalLMLoss
    g, errors = torch.Generator().manual_seed(0), []
    logits, labels = torch.randn(2, 5, 8, generator=g) * 20, torch.randint(0, 8, (2, 5), generator=g)
    labels[0, 2] = -100
    for extra in ({}, {"num_items_in_batch": torch.tensor(7)}, {"shift_labels": labels}, {"ignore_index": 3}):
        whole = logits.clone().requires_grad_()
        part = logits.chunk(size, dim=-1)[rank].clone().requires_grad_()
        wanted = theirs(whole, labels.clamp(min=0) if "ignore_index" in extra else labels, 8, **extra)
        found = causal_loss(
            DTensor.from_local(part, mesh, [Shard(2)]),
            labels.clamp(min=0) if "ignore_index" in extra else labels,
            8,
            **extra,
        )
        wanted.backward()
        found.backward()
        assert whole.grad is not None
        assert part.grad is not None
        errors += [relative(found.detach(), wanted.detach()), relative(part.grad, whole.grad.chunk(size, dim=-1)[rank])]
    return errors


def test_loss_of_a_split_vocabulary_is_that_of_transformers() -> None:
    for errors in on_ranks(2, split_loss, timeout_s=PATIENCE_S):
        assert max(errors) < 1e-6


def tied(_rank: int, size: int) -> bool:
    """Return whether embedding and head are one parameter still, and its gradient that of one process."""
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("tp",))
    dense, model = (model_of("qwen3_moe", torch.float32, num_key_value_heads=2, tie_word_embeddings=True) for _ in "ab")
    apply_tensor_parallel(model, mesh)
    ids = torch.arange(12).view(2, 6)
    for one in (dense, model):
        one(ids, labels=ids).loss.backward()
    found, wanted = (one.model.embed_tokens.weight.grad for one in (model, dense))
    return model.lm_head.weight is model.model.embed_tokens.weight and relative(found.full_tensor(), wanted) < 1e-5


def test_tied_embeddings_stay_one_parameter() -> None:
    assert all(on_ranks(2, tied, timeout_s=PATIENCE_S))
