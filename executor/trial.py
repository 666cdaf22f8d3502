"""A trial: MoE layers of a plan's shape on given routing, step by step, under a clock.

Shapes: T tokens of this rank, K top_k, H hidden, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from executor.experts import PackedExperts
from executor.measure import PhaseClock, PhaseTimes
from executor.moe import MoE
from executor.router import Router, RouterConfig
from executor.transport import Transport
from planner import MoEModel

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Setting:
    """How trials run: where, in which type, how often, and whether backward too."""

    device: torch.device
    dtype: torch.dtype
    steps: int
    warmup: int
    backward: bool


class ReplayRouter(Router):
    """Computes scores as always, and then sends the tokens where a recorded routing says.

    Attributes:
        ids_TK: int64, the experts of the tokens, -1 where masked.

    """

    ids_TK: Tensor

    def _choose(self, choice_TE: Tensor) -> Tensor:
        super()._choose(choice_TE)  # for its time
        return self.ids_TK

    def _weigh(self, logits_TE: Tensor, scores_TE: Tensor, ids_TK: Tensor) -> Tensor:
        return super()._weigh(logits_TE, scores_TE, ids_TK.clamp(min=0))


def make_layer(model: MoEModel, setting: Setting) -> MoE:
    """Return a layer with all experts of the model, which take no memory until some are selected."""
    E, H, one = model.experts, model.hidden, torch.zeros((), device=setting.device, dtype=setting.dtype)
    config = RouterConfig(E, model.top_k, num_groups=model.groups, top_groups=model.top_groups)
    experts = PackedExperts.of(
        nn.Parameter(one.expand(E, 2 * model.intermediate, H)), nn.Parameter(one.expand(E, H, model.intermediate))
    )
    return MoE(ReplayRouter(config, H, device=setting.device, dtype=setting.dtype), experts)


def keep_experts(experts: nn.Module, chosen: Sequence[int]) -> None:
    """Keep some experts of a layer of `make_layer`, with random weights."""
    assert isinstance(experts, PackedExperts)
    experts.select(chosen)
    experts.reset_parameters()


def replay(moe: MoE, ids_TK: Tensor) -> None:
    """Give a layer of `make_layer` the routing of its next steps."""
    assert isinstance(moe.router, ReplayRouter)
    moe.router.ids_TK = ids_TK


def timed(
    layers: Mapping[K, MoE], transport: Transport, setting: Setting, barrier: Callable[[], object]
) -> dict[K, PhaseTimes]:
    """Return the times of every layer on all ranks; all phases are isolated.

    The layers take turns, step by step, so that whatever slows this machine down for a while slows all of them.
    """
    for moe in layers.values():
        moe.clock = PhaseClock(setting.device, barrier)
    for _ in range(setting.warmup + setting.steps):
        for moe in layers.values():
            step(moe, setting)
    times = {}
    for key, moe in layers.items():
        assert moe.clock is not None
        times[key] = moe.clock.times(transport, setting.warmup)
        moe.clock = None
    return times


def step(moe: MoE, setting: Setting) -> None:
    """Run one step of a layer on random tokens, forward and, if set, backward."""
    assert isinstance(moe.router, ReplayRouter)
    shape = (len(moe.router.ids_TK), moe.router.weight.shape[1])
    x_TH = torch.randn(shape, device=setting.device, dtype=setting.dtype, requires_grad=setting.backward)
    with torch.set_grad_enabled(setting.backward):
        y_TH = moe(x_TH)
    if setting.backward:
        y_TH.backward(torch.ones_like(y_TH))
        moe.zero_grad(set_to_none=True)
