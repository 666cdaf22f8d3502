"""PackedExperts and ListedExperts against the dense reference, with each row one token of one expert."""

import copy

import pytest
import torch
from torch import nn

from executor.activations import ACTIVATIONS
from executor.experts import ListedExperts, PackedExperts, SlotRows
from executor.reference import dense_moe
from topologies import BadInput

COUNTS = [(3, 0, 5, 1), (0, 9, 0, 0), (0, 0, 0, 0), (2, 2, 2, 2)]


def packed(activation="swiglu", dtype=torch.float32, bias=False, H=8, I=12, slots=4):  # noqa: E741  # the legend's letter
    torch.manual_seed(0)
    experts = PackedExperts(slots, H, I, activation, bias, dtype=dtype)
    if bias:
        nn.init.normal_(experts.gate_up_bias)
        nn.init.normal_(experts.down_bias)
    return experts


def rows_of(counts, experts):
    x = torch.randn(sum(counts), experts.down.shape[1], dtype=experts.down.dtype, requires_grad=True)
    return x, SlotRows.of(counts)


def reference(x, counts, experts):
    """The dense layer: row n is a token that visits the expert of its slot, with weight 1."""
    ids = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))[:, None]
    return dense_moe(
        x,
        ids,
        torch.ones_like(ids, dtype=x.dtype),
        experts.gate_up,
        experts.down,
        experts.activation,
        experts.gate_up_bias,
        experts.down_bias,
    )


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_packed_equals_dense(counts, bias, activation, dtype, tolerance):
    experts = packed(activation, dtype, bias)
    x, rows = rows_of(counts, experts)
    inputs = (x, *experts.parameters())
    y, expected = experts(x, rows), reference(x, counts, experts)
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    grad = torch.randn_like(y)
    ours, theirs = torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, inputs, grad, allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        other = torch.zeros_like(mine) if other is None else other  # noqa: PLW2901  # no rows at all
        assert mine.shape == other.shape
        assert (mine - other).norm() <= tolerance * other.norm()


def test_bf16_against_a_reference_of_the_same_type():
    experts = packed(dtype=torch.bfloat16, H=16, I=32)
    x, rows = rows_of((3, 0, 5, 1), experts)
    torch.testing.assert_close(experts(x, rows), reference(x, (3, 0, 5, 1), experts), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation):
    experts = packed(activation, torch.float64, bias=True, H=2, I=3, slots=3)
    x, rows = rows_of((2, 0, 1), experts)
    names = [name for name, _ in experts.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(experts, dict(zip(names, values, strict=True)), (x, rows))

    assert torch.autograd.gradcheck(run, (x, *experts.parameters()))


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (0, 9, 0, 0)])
def test_every_parameter_gets_a_gradient(counts):
    experts = packed(bias=True)
    x, rows = rows_of(counts, experts)
    experts(x, rows).sum().backward()
    assert x.grad.shape == x.shape
    for parameter in experts.parameters():
        for slot in (slot for slot, count in enumerate(counts) if not count):
            assert (parameter.grad[slot] == 0).all()


def test_a_rank_without_slots():
    experts = packed(bias=True)
    experts.select([])
    x, rows = rows_of((), experts)
    y = experts(x, rows)
    assert y.shape == (0, 8)
    y.sum().backward()
    assert all(parameter.grad.shape == parameter.shape for parameter in experts.parameters())
    assert len(list(experts.parameters())) == 4


def test_autocast_computes_in_its_type():
    experts = packed()
    x, rows = rows_of((3, 0, 5, 1), experts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = experts(x, rows)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert experts.down.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), experts(x, rows), rtol=3e-2, atol=3e-2)


def expert_module(experts, slot):
    """The same expert as a module of two linear layers."""

    class Expert(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Parameter(experts.gate_up[slot].detach().clone())
            self.second = nn.Parameter(experts.down[slot].detach().clone())

        def forward(self, x):
            gate, up = (x @ self.first.T).chunk(2, -1)
            return (nn.functional.silu(gate) * up) @ self.second.T

    return Expert()


@pytest.mark.parametrize("counts", COUNTS)
def test_listed_equals_packed(counts):
    experts = packed()
    listed = ListedExperts(expert_module(experts, slot) for slot in range(4))
    x, rows = rows_of(counts, experts)
    y, expected = listed(x, rows), experts(x, rows)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
    y.square().sum().backward()
    expected.square().sum().backward()
    for slot in range(4):
        torch.testing.assert_close(listed.experts[slot].first.grad, experts.gate_up.grad[slot], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(listed.experts[slot].second.grad, experts.down.grad[slot], rtol=1e-5, atol=1e-6)


def test_listed_without_slots():
    listed = ListedExperts([])
    x = torch.zeros(0, 8, requires_grad=True)
    listed(x, SlotRows.of(())).sum().backward()
    assert x.grad.shape == (0, 8)


@pytest.mark.parametrize("slots", [[2, 0], [3], [], [0, 1, 2, 3]])
def test_select_keeps_the_named_experts_in_order(slots):
    experts = packed(bias=True, dtype=torch.float64)
    experts.down.requires_grad_(False)
    listed = ListedExperts(expert_module(experts, slot) for slot in range(4))
    whole, modules = copy.deepcopy(experts), list(listed.experts)
    experts.select(slots)
    listed.select(slots)
    assert experts.num_slots == listed.num_slots == len(slots)
    assert [name for name, _ in experts.named_parameters()] == [name for name, _ in whole.named_parameters()]
    for name, parameter in experts.named_parameters():
        old = whole.get_parameter(name)
        assert isinstance(parameter, nn.Parameter)
        assert (parameter.dtype, parameter.requires_grad) == (old.dtype, old.requires_grad)
        assert torch.equal(parameter, torch.stack([old[s] for s in slots]) if slots else old[:0])
    assert list(listed.experts) == [modules[s] for s in slots]


def test_select_on_the_meta_device():
    experts = PackedExperts(4, 8, 12, device="meta")
    experts.select([1, 3])
    assert (experts.gate_up.shape, experts.gate_up.device.type) == ((2, 24, 8), "meta")


@pytest.mark.parametrize("make", [packed, lambda: ListedExperts(nn.Identity() for _ in range(4))])
def test_bad_input_is_named(make):
    experts = make()
    with pytest.raises(BadInput, match=r"expert 4 is not in 0\.\.3"):
        experts.select([0, 4])
    with pytest.raises(BadInput, match="expert 1 is named more than once"):
        experts.select([1, 0, 1])
    with pytest.raises(BadInput, match="divided among 3 slots, but this rank holds 4 experts"):
        experts(torch.zeros(3, 8), SlotRows.of((1, 1, 1)))
    with pytest.raises(BadInput, match="slots sum to 4, but 3 rows are here"):
        experts(torch.zeros(3, 8), SlotRows.of((1, 1, 1, 1)))


def test_packed_from_tensors_shares_parameters():
    old = packed(bias=True)
    new = PackedExperts.of(old.gate_up, old.down.detach(), gate_up_bias=old.gate_up_bias)
    assert new.gate_up is old.gate_up
    assert isinstance(new.down, nn.Parameter)
    assert new.down_bias is None
    assert set(new.state_dict()) == {"gate_up", "down", "gate_up_bias"}
    with pytest.raises(BadInput, match=r"gate_up has shape \(4, 24, 8\).*'gelu' it must be \(4, 12, 8\)"):
        PackedExperts.of(old.gate_up, old.down, "gelu")
    with pytest.raises(BadInput, match="unknown activation 'relu'"):
        PackedExperts(4, 8, 12, "relu")
