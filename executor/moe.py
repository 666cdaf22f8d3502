"""MoE: one Mixture-of-Experts layer, on one rank or on many.

Which ranks hold which experts is the affair of `MoE.exchange`; the layer is the same with any.

Shapes: T tokens of this rank, K top_k, E experts, H hidden, N rows at this rank's experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from executor.capacity import Capacity, Kept, count_ids
from executor.deployment import Recorder, through_experts
from executor.exchange import Exchange, local_exchange
from executor.experts import ListedExperts, PackedExperts
from executor.held import Held
from executor.held_forms import held_by
from executor.layout import LayerLayout
from executor.losses import router_z_loss, switch_aux_loss
from executor.measure import PhaseClock, mark
from executor.recompute import in_backward
from executor.router import Routed, Router


@dataclass(frozen=True, eq=False)
class Statistics:
    """What one forward pass of a layer did, on this rank.

    Attributes:
        counts_E: int64, pairs that the router gave each expert, before drops.
        dropped_E: int64, those over the expert's capacity.
        aux_loss, z_loss: unweighted, detached; None where their weight is zero.
        loss: weighted sum of both, with its gradient: add it to the training loss.

    """

    counts_E: Tensor
    dropped_E: Tensor
    aux_loss: Tensor | None
    z_loss: Tensor | None
    loss: Tensor


class MoE(nn.Module):
    """Router, routed experts and shared expert: (..., H) to (..., H).

    Under activation checkpointing (`use_reentrant=False`) the second forward chooses the same experts as the first,
    and is neither recorded nor counted.

    Attributes:
        router: chooses experts.
        experts: those of this rank; all E of them until `apply_expert_parallel`.
        shared: added for every token, or None.
        capacity: limit on the pairs of an expert, or None.
        aux_weight, z_weight: factors of the losses in `last.loss`; a loss of weight 0 is not computed.
        exchange: brings tokens to their experts and back; without communication until `apply_expert_parallel`.
        last: of the latest forward pass, None before the first.
        load_E: int64, pairs of each expert in training since `executor.balancing.balance`, None before the first.
        recorder: told of every routing, or None.
        clock: times the phases, or None.

    """

    def __init__(
        self,
        router: Router,
        experts: PackedExperts | ListedExperts,
        shared: nn.Module | None = None,
        *,
        capacity: Capacity | None = None,
        aux_weight: float = 0.0,
        z_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.router, self.experts, self.shared = router, experts, shared
        self.capacity, self.aux_weight, self.z_weight = capacity, aux_weight, z_weight
        self.exchange: Exchange = local_exchange(router.config.num_experts)
        self.last: Statistics | None = None
        self.load_E: Tensor | None = None
        self.recorder: Recorder | None = None
        self.clock: PhaseClock | None = None

    @property
    def ep_layout(self) -> LayerLayout:
        """Where the experts are."""
        return self.exchange.layout

    @property
    def num_experts(self) -> int:
        """E."""
        return self.router.config.num_experts

    @property
    def top_k(self) -> int:
        """K."""
        return self.router.config.top_k

    @property
    def held(self) -> Held:
        """The experts of this rank, slot by slot."""
        return held_by(self)

    @property
    def misfit(self) -> str:
        """Nothing stands against expert parallelism (`executor.moe_layers.MoELayer`)."""
        return ""

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, in the shape and type of `x`."""
        x_TH = mark(self.clock, x.reshape(-1, x.shape[-1]), "start")
        routed = self.router(x_TH)
        kept = self._drop(routed)
        self._note(routed, kept)
        y_TH = through_experts(self, self.experts, x_TH, kept.weights_TK, kept.ids_TK)
        if self.shared is not None:
            y_TH = y_TH + self.shared(x_TH)
        y: Tensor = y_TH.to(x.dtype).view_as(x)
        return y

    def _drop(self, routed: Routed) -> Kept:
        E = self.router.config.num_experts
        if self.capacity is None:
            return Kept(routed.ids_TK, routed.weights_TK, routed.ids_TK.new_zeros(E))
        return self.capacity.drop(routed.ids_TK, routed.weights_TK, E)

    def _note(self, routed: Routed, kept: Kept) -> None:
        """Keep the statistics; a recomputed forward computes the same and keeps nothing."""
        aux_loss = switch_aux_loss(routed.scores_TE, routed.ids_TK) if self.aux_weight else None
        z_loss = router_z_loss(routed.logits_TE) if self.z_weight else None
        loss = routed.logits_TE.new_zeros(())
        if aux_loss is not None:
            loss, aux_loss = loss + self.aux_weight * aux_loss, aux_loss.detach()
        if z_loss is not None:
            loss, z_loss = loss + self.z_weight * z_loss, z_loss.detach()
        if in_backward():
            return
        count_E = count_ids(routed.ids_TK, self.router.config.num_experts)
        self.last = Statistics(count_E, kept.dropped_E, aux_loss, z_loss, loss)
        if self.training:
            self.load_E = count_E if self.load_E is None else self.load_E + count_E
        if self.recorder is not None:
            self.recorder.record(routed.ids_TK)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the latest statistics out of copies: torch refuses to copy a loss that is part of a graph."""
        return self.__dict__ | {"last": None}
