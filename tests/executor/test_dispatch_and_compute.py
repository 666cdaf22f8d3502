"""ep_dispatch_and_compute on real ranks against the dense layer, for every form in which a module may hold experts."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from executor.dispatch_and_compute import ep_dispatch_and_compute
from executor.experts import ListedExperts, PackedExperts
from executor.layout import contiguous_layout
from executor.reference import dense_moe
from tests.executor.layers import Case, dense_answers, layout_of, relative, step_of
from tests.executor.ranks import on_ranks
from topologies import BadInput

# ---- the forms: from gate_up (S, 2I, H) and down (S, H, I), and their gradients back in these shapes


class Mlp(nn.Module):
    """A SwiGLU expert of three linear layers."""

    def __init__(self, gate_up, down):
        super().__init__()
        gate, up = gate_up.chunk(2)
        self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(*w.shape[::-1], bias=False) for w in (gate, up, down))
        for linear, weight in ((self.gate_proj, gate), (self.up_proj, up), (self.down_proj, down)):
            linear.weight = nn.Parameter(weight.clone())

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


def packed(gate_up, down):
    experts = PackedExperts.of(nn.Parameter(gate_up), nn.Parameter(down))
    return SimpleNamespace(experts=experts), lambda: (experts.gate_up.grad, experts.down.grad)


def listed(gate_up, down, wrap=nn.ModuleList):
    modules = [Mlp(*pair) for pair in zip(gate_up, down, strict=True)]

    def grads():
        firsts = [torch.cat([one.gate_proj.weight.grad, one.up_proj.weight.grad]) for one in modules]
        seconds = [one.down_proj.weight.grad for one in modules]
        return (torch.stack(firsts), torch.stack(seconds)) if modules else (gate_up, down)

    return SimpleNamespace(experts=wrap(modules)), grads


def three_matrices(gate_up, down):
    gate, up = gate_up.chunk(2, dim=1)
    matrices = [nn.Parameter(w.transpose(1, 2).contiguous()) for w in (gate, up, down)]
    moe = SimpleNamespace(gate_w=matrices[0], up_w=matrices[1], down_w=matrices[2])

    def grads():
        d_gate, d_up, d_down = (w.grad.transpose(1, 2) for w in matrices)
        return torch.cat([d_gate, d_up], dim=1), d_down

    return moe, grads


def hugging_face(gate_up, down):
    experts = SimpleNamespace(gate_up_proj=nn.Parameter(gate_up), down_proj=nn.Parameter(down), act_fn=nn.SiLU())
    return SimpleNamespace(experts=experts), lambda: (experts.gate_up_proj.grad, experts.down_proj.grad)


FORMS = {
    "packed": packed,
    "module list": listed,
    "listed experts": lambda gate_up, down: listed(gate_up, down, ListedExperts),
    "three matrices": three_matrices,
    "hugging face": hugging_face,
}

# ---- cases: tokens of each rank


CASES = {
    "one rank": Case(tokens=(9,), experts=6, contiguous=True),
    "two ranks": Case(tokens=(5, 9), experts=6, contiguous=True),
    "four ranks, two without tokens": Case(tokens=(7, 0, 4, 0), experts=8, contiguous=True),
    "no tokens at all": Case(tokens=(0, 0), experts=6, contiguous=True),
    "all to one expert": Case(tokens=(3, 4), experts=6, routing="one", contiguous=True),
    "top_k = E": Case(tokens=(3, 4), experts=6, routing="all", contiguous=True),
    "a plan with replicas": Case(tokens=(5, 9), experts=7),
}


def gradient_scale_of(step, experts):
    """Mean count over count, of the pairs of all ranks."""
    ids = torch.cat([one.flatten() for one in step.ids])
    counts = torch.bincount(ids[ids >= 0], minlength=experts).double()
    return counts.mean() / counts.clamp(min=1)


def run_forms(rank, world_size, case, gradient_scale):
    """Return what is wrong on this rank: form, tensor, relative error."""
    step = step_of(case, torch.float64)
    wanted = dense_answers(step)[rank]
    scale = gradient_scale_of(step, case.experts) if gradient_scale else torch.ones(case.experts).double()
    layout = contiguous_layout(case.experts, world_size, rank) if case.contiguous else layout_of(case, rank)
    mine = torch.tensor(layout.my_experts, dtype=torch.int64)
    wrong = []
    for name, form in FORMS.items():
        moe, grads = form(step.gate_up[mine].clone(), step.down[mine].clone())
        if not case.contiguous:
            moe.ep_layout = layout
        x, weights = step.x[rank].clone().requires_grad_(), step.weights[rank].clone().requires_grad_()
        group = dist.group.WORLD if world_size > 1 else None
        start = rank * len(mine)
        y = ep_dispatch_and_compute(
            x, weights, step.ids[rank], moe, group, start, len(mine), world_size, gradient_scale=gradient_scale
        )
        y.backward(step.grad[rank])
        found = {"y": y, "x": x.grad, "weights": weights.grad}
        expected = {"y": wanted.y, "x": wanted.x, "weights": wanted.weights}
        for what, gradient, dense in zip(("gate_up", "down"), grads(), (wanted.gate_up, wanted.down), strict=True):
            total = torch.zeros_like(dense).index_add_(0, mine, gradient)
            dist.all_reduce(total)  # replicas add up
            found[what], expected[what] = total, dense * scale[:, None, None]
        errors = {what: relative(found[what], expected[what]) for what in found}
        wrong += [(name, what, error) for what, error in errors.items() if not error < 1e-12]
    return wrong


@pytest.mark.parametrize("gradient_scale", [False, True])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_dense_layer(case, gradient_scale):
    assert on_ranks(len(case.tokens), run_forms, case, gradient_scale) == [[]] * len(case.tokens)


# ---- what needs no ranks


def call(moe, start=0, local=4, ranks=1, T=3, dtype=torch.float32):
    x, ids = torch.randn(T, 8, dtype=dtype), torch.randint(4, (T, 2))
    return ep_dispatch_and_compute(x, torch.ones(T, 2), ids, moe, None, start, local, ranks), x, ids


def test_fp32_and_bf16():
    gate_up, down = torch.randn(4, 24, 8), torch.randn(4, 8, 12)
    y, x, ids = call(packed(gate_up, down)[0])
    torch.testing.assert_close(y, dense_moe(x, ids, torch.ones(3, 2), gate_up, down), rtol=1e-6, atol=1e-5)
    small = [w.bfloat16() for w in (gate_up, down)]
    y, x, ids = call(three_matrices(*small)[0], dtype=torch.bfloat16)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, dense_moe(x, ids, torch.ones(3, 2), *small), rtol=2e-2, atol=2e-1)


def moe_of(**fields):
    return SimpleNamespace(**fields)


WEIGHTS = {"gate_up_proj": torch.zeros(4, 24, 8), "down_proj": torch.zeros(4, 8, 12)}


@pytest.mark.parametrize(
    ("moe", "arguments", "message"),
    [
        (moe_of(**WEIGHTS), {"ranks": 2}, "ep_world_size is 2, but ep_group has 1 ranks"),
        (moe_of(**WEIGHTS), {"start": 4}, "local_expert_start is 4; rank 0 with 4 experts a rank starts at 0"),
        (moe_of(gate_up_proj=torch.zeros(4, 24, 8)), {}, "SimpleNamespace has no experts of a known form"),
        (moe_of(**WEIGHTS), {"local": 8}, "divided among 8 slots, but this rank holds 4 experts"),
        (moe_of(experts=nn.ModuleList([nn.Identity()])), {}, "divided among 4 slots, but this rank holds 1 experts"),
        (nn.Linear(1, 1), {}, "Linear has no experts of a known form"),
        (
            moe_of(**WEIGHTS, ep_layout=contiguous_layout(6, 1, 0)),
            {},
            "moe.ep_layout has 1 ranks and 6 experts on this one, but ep_world_size is 1 and num_local_experts 4",
        ),
    ],
)
def test_contradictions_are_named(moe, arguments, message):
    with pytest.raises(BadInput, match=message):
        call(moe, **arguments)
