"""Routing statistics that nobody recorded: a power law, and recorded ones made more or less skewed.

Both hold whole counts, so that the file written from them reads back as the same statistics.

Shapes: L layers, E experts.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np

from planner.model import MoEModel
from planner.placement import FloatArray
from planner.routing import Routing
from topologies.errors import BadInput

PAIRS = 10_000_000  # token-expert pairs of a layer: rounding to whole counts moves no share by more than 1e-7
MAX_EXPONENT = 4.0


def power_law(model: MoEModel, exponent: float, seed: int = 0) -> Routing:
    """Return statistics in which the expert of rank r gets a share proportional to r ** -exponent.

    Which expert has which rank is drawn anew for every layer; 0 is an even load. Raises BadInput outside 0 to
    `MAX_EXPONENT`.
    """
    _check("exponent of the power law", exponent)
    rng = np.random.default_rng(seed)
    share_E = np.arange(1, model.experts + 1, dtype=np.float64) ** -exponent
    load_LE = np.stack([share_E[rng.permutation(model.experts)] for _ in model.moe_layers])
    return _routing(model, model.moe_layers, load_LE, f"power law {exponent:g}, seed {seed}")


def sharpened(routing: Routing, model: MoEModel, power: float) -> Routing:
    """Return statistics whose loads are those of `routing` to a power: 0 even, 1 as they are, above 1 more skewed.

    Only loads have a power: the tokens of a trace, and what is known of their sources, are left out. An expert
    without any load keeps none. Raises BadInput outside 0 to `MAX_EXPONENT`.
    """
    _check("power of the loads", power)
    if power == 1:
        return routing
    load_LE = routing.expert_counts
    with np.errstate(divide="ignore"):
        raised_LE = np.where(load_LE > 0, (load_LE / load_LE.max(axis=1, keepdims=True)) ** power, 0.0)
    return _routing(model, routing.layers, raised_LE, f"{routing.name}, loads to the power {power:g}")


def logical_count_json(routing: Routing, model: MoEModel) -> str:
    """Return statistics as the `{"logical_count": [layers][experts]}` document that `load_routing` reads."""
    counts = np.zeros((model.num_layers, routing.num_experts), dtype=np.int64)
    counts[list(routing.layers)] = np.rint(routing.expert_counts)
    return json.dumps({"logical_count": counts.tolist()})


def _check(what: str, value: float) -> None:
    if not 0 <= value <= MAX_EXPONENT:
        raise BadInput(f"{what} is {value}, must be between 0 and {MAX_EXPONENT:g}")


def _routing(model: MoEModel, layers: tuple[int, ...], load_LE: FloatArray, name: str) -> Routing:
    """Return the statistics of some loads, scaled to whole counts; their digest is that of the file they make."""
    counts_LE = np.rint(load_LE * (PAIRS / load_LE.sum(axis=1, keepdims=True)))
    counts_LE = np.where((load_LE > 0) & (counts_LE == 0), 1.0, counts_LE)
    routing = Routing(layers=layers, counts=counts_LE[:, None, :], name=name)
    return replace(routing, sha256=hashlib.sha256(logical_count_json(routing, model).encode()).hexdigest())
