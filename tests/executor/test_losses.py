"""Balancing loss and z-loss, by hand and against transformers' load_balancing_loss_func."""

import math

import pytest
import torch

from executor.losses import router_z_loss, switch_aux_loss


def test_one_where_all_experts_get_the_same():
    scores = torch.full((4, 4), 0.25)
    assert switch_aux_loss(scores, torch.tensor([[0, 1], [2, 3], [1, 0], [3, 2]])).item() == pytest.approx(1.0)


def test_aux_loss_by_hand():
    """Two experts: pairs 3 and 1 of 4, mean scores 0.7 and 0.3; 2 * (3/4 * 0.7 + 1/4 * 0.3) = 1.2."""
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.5, 0.5]])
    ids = torch.tensor([[0], [0], [0], [1]])
    assert switch_aux_loss(scores, ids).item() == pytest.approx(1.2)
    assert switch_aux_loss(scores * 0.1, ids).item() == pytest.approx(1.2), "sigmoids are normalised by token"
    masked = torch.cat([ids, torch.full_like(ids, -1)], dim=1)
    assert switch_aux_loss(scores, masked).item() == pytest.approx(1.2), "a masked entry is no pair"


def test_z_loss_by_hand():
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    assert router_z_loss(logits).item() == pytest.approx((math.log(2) ** 2 + math.log(4) ** 2) / 2)


def test_no_tokens_give_zero_and_a_gradient():
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = switch_aux_loss(logits.softmax(-1), torch.zeros(0, 2, dtype=torch.int64)) + router_z_loss(logits)
    assert loss.item() == 0.0
    loss.backward()
    assert logits.grad.shape == (0, 4)


def test_gradients():
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(4, (5, 2))
    assert torch.autograd.gradcheck(lambda x: switch_aux_loss(x.sigmoid(), ids), (logits,))
    assert torch.autograd.gradcheck(router_z_loss, (logits,))


def test_aux_loss_against_transformers():
    """theirs counts f_e in tokens, so that it is K times ours."""
    mixtral = pytest.importorskip(
        "transformers.models.mixtral.modeling_mixtral", reason="transformers is not installed"
    )
    torch.manual_seed(0)
    logits = torch.randn(50, 8)
    theirs = mixtral.load_balancing_loss_func((logits,), num_experts=8, top_k=3)
    scores = logits.softmax(-1)
    torch.testing.assert_close(switch_aux_loss(scores, scores.topk(3).indices) * 3, theirs)
