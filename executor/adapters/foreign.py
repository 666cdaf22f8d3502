"""ForeignLayer: a MoE layer that someone else wrote, with what `MoELayer` asks for.

The layer's own module carries the state (a `Deployment` in its attribute `ep_deployment`), so that handles come and go.
Until something is set, the module is as its author left it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from executor.deployment import Deployment, Recorder
from executor.exchange import Exchange, local_exchange
from executor.held import Held
from executor.held_forms import held_by
from executor.measure import PhaseClock


class ForeignLayer(ABC):
    """See `executor.moe_layers.MoELayer`.

    Attributes:
        module: has the experts, and runs them by its `ep_deployment` once it has one.
        top_k: K, or None where the layer does not say.

    """

    def __init__(self, module: nn.Module, top_k: int | None) -> None:
        self.module, self.top_k = module, top_k

    @abstractmethod
    def install(self, deployment: Deployment) -> None:
        """Make the module run its experts by this deployment, which it carries."""

    @property
    @abstractmethod
    def misfit(self) -> str:
        """Why the layer cannot be spread over ranks; empty where it can."""

    @property
    def deployment(self) -> Deployment | None:
        """What the module runs by; None while it runs as its author wrote it."""
        return vars(self.module).get("ep_deployment")

    @property
    def held(self) -> Held:
        """The experts of this rank, slot by slot."""
        return held_by(self.module)

    @property
    def num_experts(self) -> int:
        """E, logical experts."""
        return self.held.num_slots if self.deployment is None else self.deployment.exchange.layout.num_experts

    @property
    def exchange(self) -> Exchange:
        """Brings tokens to their experts and back."""
        return local_exchange(self.num_experts) if self.deployment is None else self.deployment.exchange

    @exchange.setter
    def exchange(self, exchange: Exchange) -> None:
        self._deployed(exchange).exchange = exchange

    @property
    def recorder(self) -> Recorder | None:
        """Told of every routing, or None."""
        return None if self.deployment is None else self.deployment.recorder

    @recorder.setter
    def recorder(self, recorder: Recorder | None) -> None:
        self._deployed(self.exchange).recorder = recorder

    @property
    def clock(self) -> PhaseClock | None:
        """Times the phases after routing, or None."""
        return None if self.deployment is None else self.deployment.clock

    @clock.setter
    def clock(self, clock: PhaseClock | None) -> None:
        self._deployed(self.exchange).clock = clock

    def _deployed(self, exchange: Exchange) -> Deployment:
        """Return the deployment with this exchange; the first one is installed."""
        deployment = self.deployment or Deployment(exchange)
        deployment.exchange = exchange
        self.module.ep_deployment = deployment  # type: ignore[assignment]  # torch types attributes as tensors or modules
        self.install(deployment)
        return deployment
