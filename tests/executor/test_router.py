"""Routers by hand, and against those of transformers where it is installed."""

import copy

import pytest
import torch

from executor.router import Router, RouterConfig
from topologies import BadInput


def route(logits, config, correction_bias=None):
    """Route tokens whose logits are given: H = E, and the weight is the identity."""
    router = Router(config, config.num_experts)
    torch.nn.init.eye_(router.weight)
    if correction_bias is not None:
        router.correction_bias.copy_(torch.tensor(correction_bias))
    return router(torch.as_tensor(logits, dtype=torch.float32))


def logs(*parts):
    """Logits whose softmax is proportional to `parts`."""
    return torch.tensor([parts], dtype=torch.float64).log().tolist()


def test_softmax_top_k_normalised_or_not():
    logits = logs(1, 4, 3, 2)
    routed = route(logits, RouterConfig(4, 2))
    assert routed.ids_TK.tolist() == [[1, 2]]
    assert routed.ids_TK.dtype == torch.int64
    assert routed.weights_TK[0].tolist() == pytest.approx([4 / 7, 3 / 7])
    assert routed.scores_TE[0].tolist() == pytest.approx([0.1, 0.4, 0.3, 0.2])
    plain = route(logits, RouterConfig(4, 2, normalise=False, scale=10.0))
    assert plain.weights_TK[0].tolist() == pytest.approx([4.0, 3.0])


def test_softmax_after_top_k_is_the_normalised_one():
    logits = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    before, after = route(logits, RouterConfig(8, 3)), route(logits, RouterConfig(8, 3, softmax_after_top_k=True))
    assert torch.equal(before.ids_TK, after.ids_TK)
    torch.testing.assert_close(before.weights_TK, after.weights_TK)


def test_correction_bias_chooses_but_does_not_weigh():
    """Sigmoids 0.8, 0.5, 0.2; the bias lifts the last one to 1.2 for the choice."""
    logits = [[x.item() for x in torch.tensor([0.8, 0.5, 0.2], dtype=torch.float64).logit()]]
    config = RouterConfig(3, 2, score="sigmoid", correction_bias=True)
    routed = route(logits, config, [0.0, 0.0, 1.0])
    assert routed.ids_TK.tolist() == [[2, 0]]
    assert routed.weights_TK[0].tolist() == pytest.approx([0.2, 0.8])


GROUPS = logs(10, 1, 1, 7, 6, 5)
"""Three groups of two: (10, 1), (1, 7), (6, 5): best ones 10, 7, 6; sums 11, 8, 11."""


@pytest.mark.parametrize(
    ("group_score", "top_groups", "ids"),
    [("max", 1, [0, 1]), ("max", 2, [0, 3]), ("top2", 2, [0, 4]), ("top2", 3, [0, 3])],
)
def test_group_limited(group_score, top_groups, ids):
    config = RouterConfig(6, 2, num_groups=3, top_groups=top_groups, group_score=group_score)
    assert route(GROUPS, config).ids_TK.tolist() == [ids]


def test_group_limit_by_brute_force():
    torch.manual_seed(0)
    config = RouterConfig(12, 3, num_groups=4, top_groups=2, group_score="top2")
    routed = route(torch.randn(50, 12), config)
    for scores_E, ids_K in zip(routed.scores_TE.tolist(), routed.ids_TK.tolist(), strict=True):
        best = sorted(range(4), key=lambda g: -sum(sorted(scores_E[3 * g : 3 * g + 3])[-2:]))[:2]  # used at once
        allowed = [e for e in range(12) if e // 3 in best]
        assert ids_K == sorted(allowed, key=lambda e: -scores_E[e])[:3]  # used at once


def test_every_expert_and_only_one():
    routed = route(logs(1, 2, 3), RouterConfig(3, 3))
    assert routed.ids_TK.tolist() == [[2, 1, 0]]
    one = route([[5.0], [-5.0]], RouterConfig(1, 1))
    assert one.ids_TK.tolist() == [[0], [0]]
    assert one.weights_TK.tolist() == [[1.0], [1.0]]


def test_no_tokens():
    config = RouterConfig(4, 2, score="sigmoid", num_groups=2, top_groups=1, group_score="top2", correction_bias=True)
    routed = route(torch.zeros(0, 4), config)
    assert routed.ids_TK.shape == routed.weights_TK.shape == (0, 2)


def test_sigmoids_that_underflow_give_no_nan():
    routed = route([[-200.0, -200.0, -200.0]], RouterConfig(3, 2, score="sigmoid"))
    assert routed.weights_TK.isfinite().all()


def test_fp32_inside_also_for_small_types_and_under_autocast():
    torch.manual_seed(0)
    router = Router(RouterConfig(8, 2), 16)
    x = torch.randn(5, 16)
    small = copy.deepcopy(router).bfloat16()
    routed = small(x.bfloat16())
    exact = torch.nn.functional.linear(x.bfloat16().float(), small.weight.float())
    assert torch.equal(routed.logits_TE, exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(router(x).logits_TE, router.forward(x).logits_TE)
        assert router(x).logits_TE.dtype == torch.float32
    assert router.double()(x.double()).weights_TK.dtype == torch.float64


def test_correction_bias_stays_fp32_and_follows_the_module():
    router = Router(RouterConfig(4, 2, correction_bias=True), 8)
    router.correction_bias.copy_(torch.tensor([0.001, 0.5, -0.001, 0.0]))
    before = router.correction_bias.clone()
    router.bfloat16()
    assert router.weight.dtype == torch.bfloat16
    assert torch.equal(router.correction_bias, before)
    assert "correction_bias" in router.state_dict()
    assert router.to("meta").correction_bias.device.type == "meta"


def test_weights_carry_gradients_to_the_router():
    router = Router(RouterConfig(4, 2, bias=True), 8).double()
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: router(x).weights_TK, (x,))
    router(x).weights_TK[:, 0].sum().backward()
    assert router.weight.grad.abs().sum() > 0
    assert router.bias.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_groups": 3}, r"num_groups \(3\) does not divide num_experts \(8\)"),
        ({"num_groups": 4, "top_groups": 5}, r"top_groups \(5\) is not in 1..num_groups \(4\)"),
        ({"num_groups": 8, "top_groups": 1}, r"top_k \(2\) is not in 1..1"),
        ({"top_k": 9}, r"top_k \(9\) is not in 1..8"),
        ({"score": "relu"}, "score is 'relu'; known: sigmoid, softmax"),
        ({"group_score": "min"}, "group_score is 'min'; known: max, top2"),
        ({"num_groups": 8, "top_groups": 4, "group_score": "top2"}, "needs two experts in a group"),
        ({"score": "sigmoid", "softmax_after_top_k": True}, "softmax_after_top_k goes with score 'softmax'"),
    ],
)
def test_bad_configurations_are_named(fields, message):
    with pytest.raises(BadInput, match=message):
        RouterConfig(**{"num_experts": 8, "top_k": 2} | fields)
