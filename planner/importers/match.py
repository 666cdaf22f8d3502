"""From what a placement file says to placements of a model's layers on a cluster's ranks.

Shapes: S slots of a layer, R ranks, E experts, D domains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.importers.slot_file import SlotFile
from planner.model import MoEModel
from planner.placement import FloatArray, IntArray, Placement, check_placement, sums_by
from topologies.errors import BadInput

MAX_EXTRA_ROWS = 8
"""Rows past the model's layers that are taken for multi-token-prediction layers."""


@dataclass(frozen=True)
class Imported:
    """What a file says of a model.

    Attributes:
        layers: index in the model of each placement, ascending.
        placements: one a layer.
        slots_per_rank: slots that the file has on its fullest rank, second copies on one rank included.
        remarks: what was left out or merged, for the user.

    """

    layers: tuple[int, ...]
    placements: tuple[Placement, ...]
    slots_per_rank: int
    remarks: tuple[str, ...] = ()


def match(file: SlotFile, model: MoEModel, num_ranks: int, num_domains: int, source: str) -> Imported:
    """Match the rows of a file with the layers of a model, and its slots with ranks.

    Raises:
        BadInput: another number of layers, experts or ranks than the model and the cluster have, an expert without a
            slot; the message names `source`, the layer and both values.

    """
    rows, remarks = _rows_of_layers(file, model, source)
    if file.num_ranks not in (None, num_ranks):
        raise BadInput(f"{source}: for {file.num_ranks} ranks; the cluster has {num_ranks}")
    placements, merged, most = [], 0, 0
    for layer, row in rows.items():
        where = f"{source}: layer {layer}"
        expert_S, rank_S = file.experts[row], _ranks(file, row, num_ranks, where)
        whole = _placement(expert_S, rank_S, model, (num_ranks, num_domains), where)
        if file.masses is not None:
            whole = whole.with_shares(_shares(file.masses[row], expert_S, model.experts, num_domains))
        placement = whole.without_duplicates()
        merged += len(expert_S) - len(placement.expert_S)
        most = max(most, int(whole.slots_R.max()))
        check_placement(placement, where=where)
        placements.append(placement)
    if merged:
        remarks += (
            f"{source}: {merged} slots hold a second copy of an expert on the same rank; merged into the first",
        )
    return Imported(tuple(rows), tuple(placements), most, remarks)


def _rows_of_layers(file: SlotFile, model: MoEModel, source: str) -> tuple[dict[int, int], tuple[str, ...]]:
    """Return the row of each layer, ascending, and remarks."""
    found, moe = len(file.experts), model.moe_layers
    if file.rows_are == "every layer":
        return dict.fromkeys(moe, 0), ()
    if file.rows_are == "numbered":
        strange = [layer for layer in file.layers if layer not in moe]
        if strange:
            raise BadInput(f"{source}: layer {strange[0]} is no MoE layer of {model.name} ({moe[0]}..{moe[-1]})")
        missing = len(moe) - found
        said = (
            (f"{source}: {missing} of the {len(moe)} MoE layers of {model.name} are not in the file",)
            if missing
            else ()
        )
        return {layer: row for row, layer in enumerate(file.layers)}, said
    expected = model.num_layers if file.rows_are == "transformer layers" else len(moe)
    if not expected <= found <= expected + MAX_EXTRA_ROWS:
        raise BadInput(
            f"{source}: {found} rows; the format has one for each of the {expected} {file.rows_are} of {model.name}"
        )
    extra = found - expected
    said = (f"{source}: {extra} rows past the last layer are left out (multi-token prediction)",) if extra else ()
    return {layer: layer if file.rows_are == "transformer layers" else row for row, layer in enumerate(moe)}, said


def _ranks(file: SlotFile, row: int, num_ranks: int, where: str) -> IntArray:
    if file.ranks is not None:
        rank_S = file.ranks[row]
        if rank_S.size and int(rank_S.max()) >= num_ranks:
            raise BadInput(
                f"{where}: an expert is on rank {int(rank_S.max())}; the cluster has ranks 0..{num_ranks - 1}"
            )
        return rank_S
    slots = len(file.experts[row])
    if slots % num_ranks:
        raise BadInput(f"{where}: {slots} slots do not divide by the {num_ranks} ranks of the cluster")
    return np.repeat(np.arange(num_ranks), slots // num_ranks)


def _placement(expert_S: IntArray, rank_S: IntArray, model: MoEModel, sizes: tuple[int, int], where: str) -> Placement:
    """Return the slots with equal shares, or raise BadInput for ids out of range and experts without a slot."""
    if int(expert_S.max()) >= model.experts:
        raise BadInput(f"{where}: expert {int(expert_S.max())}; {model.name} has experts 0..{model.experts - 1}")
    missing = np.flatnonzero(np.bincount(expert_S, minlength=model.experts) == 0)
    if missing.size:
        raise BadInput(
            f"{where}: expert {missing[0]} has no slot ({missing.size} of {model.experts} experts have none)"
        )
    return Placement.of_slots(expert_S, rank_S, model.experts, *sizes)


def _shares(mass_S: FloatArray, expert_S: IntArray, experts: int, num_domains: int) -> FloatArray:
    """Return the shares [D, S] that masses stand for; copies of an expert without any mass are used equally."""
    total_E = sums_by(mass_S[None], expert_S, experts)[0]
    copies_E = np.bincount(expert_S, minlength=experts)
    share_S = np.where(total_E[expert_S] > 0, mass_S / np.maximum(total_E[expert_S], 1e-300), 1 / copies_E[expert_S])
    return np.tile(share_S, (num_domains, 1))
