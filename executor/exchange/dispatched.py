"""What every exchange offers, and what it hands from dispatch to combine.

Shapes: T tokens, K top_k, H hidden, N rows at this rank's experts, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from executor.experts import SlotRows
from executor.layout import LayerLayout
from executor.transport import Transport

if TYPE_CHECKING:
    from planner.timing import Exchange as ExchangeName


@dataclass(frozen=True)
class HopRows:
    """Rows of one all-to-all at this rank: to and from every rank, own rank included."""

    sent_R: tuple[int, ...]
    received_R: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Dispatched:
    """Rows that have arrived at their experts.

    Attributes:
        x_NH: the rows, those of one slot together, in order of slots.
        rows: how many there are for each slot.
        hops: rows of each all-to-all that brought them, by name.
        way_back: what `combine` of the same exchange needs.

    """

    x_NH: Tensor
    rows: SlotRows
    hops: dict[str, HopRows]
    way_back: Any


class Exchange(Protocol):
    """A differentiable pair of all-to-alls: tokens to their experts, and expert outputs back to their tokens.

    Attributes:
        name: as in plan.json.
        layout: where the experts are.
        transport: the ranks.

    """

    name: ExchangeName
    layout: LayerLayout
    transport: Transport

    @property
    def last_hops(self) -> dict[str, HopRows] | None:
        """Rows of the latest dispatch, by hop; None before the first."""

    def dispatch(self, x_TH: Tensor, weights_TK: Tensor, ids_TK: Tensor) -> Dispatched:
        """Send tokens to the slots of their experts; -1 masks an entry."""

    def combine(self, y_NH: Tensor, dispatched: Dispatched) -> Tensor:
        """Return [T, H]: the outputs of each token's experts, weighted and summed."""
