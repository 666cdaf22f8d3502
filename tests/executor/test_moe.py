"""The MoE layer on one rank against the dense reference; losses, drops, statistics, and recomputation."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from executor.balancing import balance, bias_step
from executor.capacity import Capacity
from executor.experts import PackedExperts
from executor.losses import router_z_loss, switch_aux_loss
from executor.moe import MoE
from executor.reference import dense_moe
from executor.router import Router, RouterConfig
from executor.shared import SharedExpert
from tests.executor.ranks import on_ranks
from topologies import BadInput

E, K, H, I = 6, 2, 8, 12  # noqa: E741  # the legend's letter


def layer(config=None, shared=False, dtype=torch.float32, **options):
    torch.manual_seed(0)
    config = config or RouterConfig(E, K)
    expert = SharedExpert(H, I, gated=True, dtype=dtype) if shared else None
    experts = PackedExperts(config.num_experts, H, I, dtype=dtype)
    return MoE(Router(config, H, dtype=dtype), experts, expert, **options)


def dense(moe, x):
    """The same layer by its definition."""
    x_TH = x.reshape(-1, H)
    routed = moe.router(x_TH)
    y = dense_moe(x_TH, routed.ids_TK, routed.weights_TK, moe.experts.gate_up, moe.experts.down)
    if moe.shared is not None:
        gate, up = (x_TH @ moe.shared.gate_up.weight.T).chunk(2, -1)
        inner = gate * gate.sigmoid() * up
        y = y + (x_TH @ moe.shared.gate.weight.T).sigmoid() * (inner @ moe.shared.down.weight.T)
    return y.view_as(x)


CASES = {
    "plain": ({"num_experts": E, "top_k": K}, (2, 7, H)),
    "no tokens": ({"num_experts": E, "top_k": K}, (0, H)),
    "one expert": ({"num_experts": 1, "top_k": 1}, (5, H)),
    "all experts": ({"num_experts": E, "top_k": E}, (5, H)),
    "groups": ({"num_experts": E, "top_k": K, "score": "sigmoid", "num_groups": 3, "top_groups": 2}, (9, H)),
}


@pytest.mark.parametrize(("fields", "shape"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_equals_the_dense_layer(fields, shape, shared, dtype, tolerance):
    moe = layer(RouterConfig(**fields), shared, dtype)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    inputs = (x, *moe.parameters())
    grad = torch.randn(shape, dtype=dtype)
    y, expected = moe(x), dense(moe, x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    ours = (y, *torch.autograd.grad(y, inputs, grad))
    theirs = (expected, *torch.autograd.grad(expected, inputs, grad))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert (mine - other).norm() <= tolerance * other.norm()


def test_all_tokens_to_one_expert():
    moe = layer(RouterConfig(E, 1, bias=True), dtype=torch.float64)
    with torch.no_grad():
        moe.router.bias[3] = 100.0
    x = torch.randn(11, H, dtype=torch.float64)
    torch.testing.assert_close(moe(x), dense(moe, x), rtol=1e-12, atol=1e-12)
    assert moe.last.counts_E.tolist() == [0, 0, 0, 11, 0, 0]
    moe(x).sum().backward()
    assert all(parameter.grad is not None for parameter in moe.parameters())


def test_gradcheck():
    moe = layer(dtype=torch.float64, shared=True)
    x = torch.randn(3, H, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(moe, (x,))


def test_bf16_against_the_same_type():
    moe = layer(dtype=torch.bfloat16)
    x = torch.randn(9, H, dtype=torch.bfloat16)
    y = moe(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, dense(moe, x), rtol=2e-2, atol=2e-2)


def test_no_grad_is_the_same():
    moe, x = layer(), torch.randn(5, H)
    with torch.no_grad():
        assert torch.equal(moe(x), moe(x))
        y = moe(x)
    assert torch.equal(y, moe(x))


# ---- capacity, losses, statistics


def test_dropped_pairs_are_left_out_and_counted():
    moe = layer(capacity=Capacity(0.5, "probability"))
    x = torch.randn(12, H)
    y = moe(x)
    routed = moe.router(x)
    kept = moe.capacity.drop(routed.ids_TK, routed.weights_TK, E)
    expected = dense_moe(x, kept.ids_TK, kept.weights_TK, moe.experts.gate_up, moe.experts.down)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    counts = torch.bincount(routed.ids_TK.flatten(), minlength=E)
    assert torch.equal(moe.last.counts_E, counts)
    assert torch.equal(moe.last.dropped_E, (counts - 2).clamp(min=0))
    assert moe.last.dropped_E.sum() > 0


def test_losses_reach_the_router_with_their_weights():
    moe = layer(aux_weight=0.5, z_weight=0.25)
    x = torch.randn(9, H)
    moe(x)
    routed = moe.router(x)
    aux, z = switch_aux_loss(routed.scores_TE, routed.ids_TK), router_z_loss(routed.logits_TE)
    torch.testing.assert_close(moe.last.loss, 0.5 * aux + 0.25 * z)
    torch.testing.assert_close((moe.last.aux_loss, moe.last.z_loss), (aux.detach(), z.detach()))
    (ours,) = torch.autograd.grad(moe.last.loss, moe.router.weight)
    (theirs,) = torch.autograd.grad(0.5 * aux + 0.25 * z, moe.router.weight)
    torch.testing.assert_close(ours, theirs)


def test_no_losses_by_default():
    moe = layer()
    moe(torch.randn(9, H))
    assert (moe.last.aux_loss, moe.last.z_loss, moe.last.loss.item()) == (None, None, 0.0)
    assert moe.last.dropped_E.tolist() == [0] * E


def test_a_layer_can_be_copied_after_a_forward():
    moe = layer(aux_weight=0.1)
    moe(torch.randn(9, H))
    assert copy.deepcopy(moe).last is None
    assert moe.last is not None


class Ids(list):
    def record(self, ids_TK):
        self.append(ids_TK)


def test_activation_checkpointing_changes_nothing_and_counts_once():
    x = torch.randn(9, H)
    results = []
    for recompute in (False, True):
        moe = layer(shared=True, capacity=Capacity(1.0), aux_weight=0.1, z_weight=0.1)
        moe.recorder = Ids()
        for _ in range(2):
            inputs = x.clone().requires_grad_()
            y = checkpoint(moe, inputs, use_reentrant=False) if recompute else moe(inputs)
            loss_of_routing = moe.last.loss
            (y.square().sum() + loss_of_routing).backward()
            assert moe.last.loss is loss_of_routing, "the second forward keeps no statistics"
        assert len(moe.recorder) == 2
        assert moe.load_E.sum() == 2 * 9 * K
        results.append([y, inputs.grad, moe.load_E, *(parameter.grad for parameter in moe.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_only_training_is_counted_for_balancing():
    moe = layer().eval()
    moe(torch.randn(9, H))
    assert moe.load_E is None
    assert moe.last.counts_E.sum() == 9 * K


class Notes(list):
    def note(self, name, *, backward):
        self.append((name, backward))


def test_the_phases_are_marked_forward_and_backward():
    moe = layer(shared=True, aux_weight=0.1)
    moe.clock = Notes()
    (moe(torch.randn(3, H, requires_grad=True)).sum() + moe.last.loss).backward()
    names = ["start", "routed", "dispatched", "computed", "combined"]
    assert moe.clock == [(name, False) for name in names] + [(name, True) for name in reversed(names)]


# ---- balancing


def test_bias_step_by_hand():
    """Counts 5, 1, 3, 3 around a mean of 3: down, up, stay, stay; the sum of steps is zero already."""
    assert bias_step(torch.tensor([5, 1, 3, 3]), 0.1).tolist() == pytest.approx([-0.1, 0.1, 0.0, 0.0])
    assert bias_step(torch.tensor([9, 1, 1, 1]), 0.1).tolist() == pytest.approx([-0.15, 0.05, 0.05, 0.05])


def balanced_layer():
    return layer(RouterConfig(4, 1, score="sigmoid", bias=True, correction_bias=True))


def test_balancing_evens_out_the_loads():
    moe = balanced_layer()
    with torch.no_grad():
        moe.router.bias.copy_(torch.tensor([2.0, 1.0, 0.0, -1.0]))
    x = torch.randn(400, H, generator=torch.Generator().manual_seed(1))
    first = None
    for _ in range(200):
        with torch.no_grad():
            moe(x)
        first = moe.last.counts_E if first is None else first
        balance([moe], coeff=0.01)
    assert first.max() > 250
    assert moe.last.counts_E.max() < 130
    assert moe.load_E is None


def summed_balancing(rank, world_size):
    """Rank r's tokens all go to expert r; a rank that has seen none takes part."""
    import torch.distributed as dist  # noqa: PLC0415  # in the rank only

    moe = balanced_layer()
    if rank < world_size - 1:
        moe.load_E = torch.zeros(4, dtype=torch.int64)
        moe.load_E[rank] = 10 * (rank + 1)
    balance([moe], coeff=0.1, group=dist.group.WORLD)
    return moe.router.correction_bias.tolist()


def test_counts_are_summed_over_the_group():
    """Counts 10, 20, 30 and 0 on ranks 0 to 3: mean 15."""
    biases = on_ranks(4, summed_balancing)
    assert all(bias == biases[0] for bias in biases)
    assert biases[0] == pytest.approx([0.1, -0.1, -0.1, 0.1])


def test_a_router_without_bias_is_named():
    with pytest.raises(BadInput, match="no correction bias: give its RouterConfig correction_bias=True"):
        balance([layer()])
    balance([])
