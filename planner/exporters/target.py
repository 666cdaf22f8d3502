"""What a target of `epplan export` is: what its format can hold, how it is written, and how an engine is told of it.

Shapes: L MoE layers of the model, P slots of a layer over all ranks, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from planner.model import MoEModel
from planner.placement import IntArray, Placement


@dataclass(frozen=True)
class Limits:
    """What a format can hold.

    Attributes:
        replicas: an expert may have several slots.
        uneven_slots: ranks, and layers, may differ in their number of slots.
        shares: "engine": which copy a token uses is the engine's own rule, about equal shares; "copy": one share for
            each copy, the same for all sources.
        one_map: one placement for all layers.
        whole_groups: routing groups of the model must stay whole, in blocks of consecutive ids.

    """

    replicas: bool = True
    uneven_slots: bool = False
    shares: Literal["engine", "copy"] = "engine"
    one_map: bool = False
    whole_groups: bool = False


@dataclass(frozen=True, eq=False)
class Deployment:
    """The placements of all MoE layers of a model, as a target can hold them.

    Attributes:
        model: all of its MoE layers are there, in order.
        placements: [L].

    """

    model: MoEModel
    placements: tuple[Placement, ...]

    @property
    def num_ranks(self) -> int:
        """R."""
        return self.placements[0].num_ranks

    def phy2log_LP(self) -> IntArray:
        """Return the expert in every slot; slot p lies on rank p // (P / R). Every rank has equally many slots."""
        return np.stack([placement.expert_S for placement in self.placements])

    def redundant(self) -> int:
        """Return the slots of a layer beyond one for each expert."""
        return len(self.placements[0].expert_S) - self.model.experts


@dataclass(frozen=True)
class Target:
    """A format that an engine loads.

    Attributes:
        summary: what loads it, in one line.
        limits: what it can hold.
        write: returns the content of the file.
        hint: returns how the engine is started with the file of the given name.
        beside: a second file that the engine wants with it: its suffix, and what returns its content.

    """

    summary: str
    limits: Limits
    write: Callable[[Deployment], bytes]
    hint: Callable[[Deployment, str], str]
    beside: tuple[str, Callable[[Deployment], bytes]] | None = None
