"""Probes: steps on this machine that are not the plan's, from which the plan's steps are predicted.

A probe is a step of evenly random routing on the contiguous layout, with the same shapes, exchange and ranks as the
plan but none of its placement or routing; probes differ in their tokens and in how many experts of a rank are used.

Shapes: R ranks, T tokens, K top_k, E experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from executor.exchange import make_exchange
from executor.layout import LayerLayout, contiguous_layout
from executor.loads import Loads, loads_of
from executor.machine_model import Machine
from executor.moe import MoE
from executor.transport import Transport
from executor.trial import Setting, keep_experts, make_layer, replay
from planner import MoEModel, Placement
from planner.placement import IntArray
from planner.sampling import sample_tokens
from planner.timing import Exchange

SIZES = ((0.5, 1.0), (0.75, 1.0), (1.0, 1.0), (1.5, 1.0), (2.0, 1.0), (0.75, 0.5), (1.5, 0.5), (1.0, 0.25))
"""Tokens of a rank as a part of the plan's step, and the part of a rank's experts that are used.

Near the plan's own size: on a CPU a row takes longer the more rows there are (caches, fresh pages).
"""
MIN_TOKENS = 8
SEED = 11


@dataclass(frozen=True, eq=False)
class Probe:
    """A layer that is ready for the steps of one probe, and what these ask of the ranks; probes share their weights."""

    moe: MoE
    loads: Loads


def make_probes(
    model: MoEModel, exchange: Exchange, machine: Machine, tokens: int, transport: Transport, setting: Setting
) -> list[Probe]:
    """Return this rank's side of the probes.

    Args:
        model: shapes of the experts.
        exchange: that carries the rows.
        machine: of the ranks.
        tokens: of a rank in the step that is to be predicted.
        transport: of the ranks, without a guard.
        setting: of the steps.

    """
    R, E = transport.size, model.experts
    slots = contiguous_layout(E, R, transport.rank).placement.slots()
    placement = Placement.equal_shares(slots, E, int(machine.domain_R.max()) + 1)
    layout = LayerLayout(placement, machine.domain_R, machine.rail_R, transport.rank)
    experts = make_layer(model, setting).experts
    keep_experts(experts, layout.my_experts)
    probes = []
    for number, (part, used) in enumerate(SIZES):
        allowed = [expert for row in slots for expert in row[: math.ceil(used * len(row))]]
        if len(allowed) < model.top_k:
            continue
        ids = _even_ids(allowed, model, R, max(round(part * tokens), MIN_TOKENS), SEED + number)
        moe = make_layer(model, setting)
        moe.experts, moe.exchange = experts, make_exchange(exchange, layout, transport)
        replay(moe, torch.from_numpy(ids[transport.rank]).to(setting.device))
        probes.append(Probe(moe, loads_of(placement, ids, exchange, machine.domain_R, machine.rail_R)))
    return probes


def _even_ids(allowed: list[int], model: MoEModel, num_ranks: int, tokens: int, seed: int) -> list[IntArray]:
    """Return ids [T, K] for each rank: distinct experts of a token, the allowed ones equally likely."""
    p_E = np.zeros(model.experts)
    p_E[allowed] = 1.0
    ids_TK = sample_tokens(p_E[None], model.top_k, 1, 1, num_ranks * tokens, seed)[0]
    return np.split(ids_TK.astype(np.int64), num_ranks)
