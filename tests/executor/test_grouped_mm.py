"""grouped_linear against an einsum over rows, on the grouped path and on the loop."""

import pytest
import torch

from executor import grouped_mm as module
from executor.experts import SlotRows
from executor.grouped_mm import grouped_linear, runs_grouped

COUNTS = {
    "uneven": (3, 0, 5, 1),
    "all to one": (0, 9, 0, 0),
    "first and last empty": (0, 4, 4, 0),
    "no rows": (0, 0, 0, 0),
    "one slot": (6,),
    "no slots": (),
}


def tensors(counts, A, B, dtype):
    torch.manual_seed(0)
    x = torch.randn(sum(counts), A, dtype=dtype, requires_grad=True)
    weight = torch.randn(len(counts), B, A, dtype=dtype, requires_grad=True)
    return x, weight, SlotRows.of(counts)


def expected(x, weight, counts):
    slot_N = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))
    return torch.einsum("na,nba->nb", x, weight[slot_N])


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize(
    ("dtype", "A", "B", "grouped", "tolerance"),
    [
        (torch.float32, 8, 4, True, 1e-6),
        (torch.float32, 7, 5, False, 1e-6),
        (torch.float64, 8, 4, False, 1e-12),
        (torch.bfloat16, 8, 16, True, 2e-2),
        (torch.bfloat16, 4, 16, False, 2e-2),
    ],
)
def test_values_and_gradients(counts, dtype, A, B, grouped, tolerance):
    x, weight, rows = tensors(counts, A, B, dtype)
    assert runs_grouped(x, A, B) == grouped
    y = grouped_linear(x, weight, rows.ends_S, rows.counts)
    reference = expected(x, weight, counts)
    torch.testing.assert_close(y, reference, rtol=tolerance, atol=tolerance)
    grad = torch.randn_like(y)
    ours = torch.autograd.grad(y, (x, weight), grad)
    theirs = torch.autograd.grad(reference, (x, weight), grad)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_an_expanded_gradient_is_taken(counts):
    """The gradient of a plain sum is one number with strides of zero, which F.grouped_mm refuses."""
    x, weight, rows = tensors(counts, 8, 4, torch.float32)
    grouped_linear(x, weight, rows.ends_S, rows.counts).sum().backward()
    for slot, count in enumerate(counts):
        assert (weight.grad[slot] == 0).all() == (count == 0)


def test_grouped_and_loop_are_bitwise_equal(monkeypatch):
    x, weight, rows = tensors((3, 0, 5, 1), 8, 4, torch.float32)
    results = []
    for grouped in (True, False):
        monkeypatch.setattr(module, "runs_grouped", lambda *_, grouped=grouped: grouped)
        y = grouped_linear(x, weight, rows.ends_S, rows.counts)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, weight))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_gradcheck(counts):
    x, weight, rows = tensors(counts, 3, 2, torch.float64)
    assert torch.autograd.gradcheck(lambda x, w: grouped_linear(x, w, rows.ends_S, rows.counts), (x, weight))


def test_transposed_weights_and_strided_rows():
    """Weights stored as (S, A, B), as some models have them, and rows that are a slice of wider ones."""
    x, stored, rows = tensors((2, 3), 8, 8, torch.float32)
    wide = torch.cat([x, x], dim=1).detach()[:, 4:12].requires_grad_()
    y = grouped_linear(wide, stored.transpose(1, 2), rows.ends_S, rows.counts)
    reference = expected(wide, stored.transpose(1, 2), (2, 3))
    torch.testing.assert_close(y, reference, rtol=1e-6, atol=1e-6)
    for mine, other in zip(
        torch.autograd.grad(y.sum(), (wide, stored)), torch.autograd.grad(reference.sum(), (wide, stored)), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


def test_only_the_gradients_asked_for_are_computed():
    x, weight, rows = tensors((2, 3), 8, 4, torch.float32)
    grouped_linear(x, weight.detach(), rows.ends_S, rows.counts).sum().backward()
    assert x.grad is not None
    assert weight.grad is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_cuda(counts, dtype):
    """bf16 by the grouped GEMM, fp32 by the loop; empty slots get gradients of exactly zero."""
    x, weight, rows = (
        one.to("cuda") if isinstance(one, torch.Tensor) else one for one in tensors(counts, 64, 32, dtype)
    )
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = grouped_linear(x, weight, rows.ends_S.cuda(), rows.counts)
    reference = expected(x.detach().double().cpu(), weight.detach().double().cpu(), counts)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(y.double().cpu(), reference, rtol=tolerance, atol=tolerance * 8)
    y.sum().backward()
    assert x.grad.isfinite().all()
    for slot, count in enumerate(counts):
        assert (weight.grad[slot] == 0).all() == (count == 0)
