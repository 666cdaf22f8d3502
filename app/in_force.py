"""The plan in force: its placements on the ranks of the cluster as it is now, and how many may move from there."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from planner import Cluster, Plan, Workload, load_plan
from planner.migrate import InForce, MoveLimit
from planner.placement import IntArray, Placement
from planner.timing import plain
from topologies import BadInput
from topologies.build import build_cluster
from topologies.groups import in_groups
from topologies.without import split_without, without


@dataclass(frozen=True, eq=False)
class PlanInForce:
    """The plan named by --from, on the ranks that there are now."""

    plan: InForce
    slots_per_rank: int
    sha256: str

    @classmethod
    def load(cls, path: str, workload: Workload) -> PlanInForce:
        """Read it; BadInput where it is for other experts, layers or ranks."""
        loaded = load_plan(path)
        held = in_force(loaded, path, workload.cluster, workload.layers, workload.num_experts)
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return cls(held, max(loaded.workload.slots_per_rank), f"sha256:{digest}")


def in_force(plan: Plan, name: str, cluster: Cluster, layers: tuple[int, ...], experts: int) -> InForce:
    """Return what a plan holds on the ranks of `cluster`, which may have lost some since, or got some back.

    Searches compare plans by their shares, a replica choice `cover` is left out. Raises BadInput where the plan is for
    other experts, layers or ranks; `name` is its file.
    """
    if plan.model.experts != experts:
        raise BadInput(f"{name}: a plan for {plan.model.experts} experts of {plan.model.name}, not for {experts}")
    index_of = {entry.layer: index for index, entry in enumerate(plan.layers)}
    missing = [layer for layer in layers if layer not in index_of]
    if missing:
        raise BadInput(f"{name}: has no layer {missing[0]} ({len(missing)} of {len(layers)} layers are not in it)")
    placements = [replace(plan.placement(index_of[layer]), replica_choice="shares") for layer in layers]
    return InForce(on_ranks(placements, _rank_before(plan, cluster), cluster.num_domains), plain(plan.exchange))


def same_gpus(before: Cluster, cluster: Cluster) -> IntArray:
    """Return the rank in `before` of each rank of the cluster, by the GPU that it runs on; -1 where it had none."""
    rank_of_node = {rank.node: rank.rank for rank in before.ranks}
    return np.array([rank_of_node.get(rank.node, -1) for rank in cluster.ranks], dtype=np.int64)


def on_ranks(placements: list[Placement], old_R: IntArray, num_domains: int) -> list[Placement]:
    """Return what ranks hold that were `old_R` before; experts of lost ranks are lacking then."""
    if np.array_equal(old_R, np.arange(placements[0].num_ranks)):
        return placements
    return [_on_ranks(placement, old_R, num_domains) for placement in placements]


def _rank_before(plan: Plan, cluster: Cluster) -> IntArray:
    """Return the plan's rank of each rank of the cluster, by the GPU it runs on; -1 where the plan has none there."""
    base, lost = split_without(plan.cluster.name)
    if base != split_without(cluster.name)[0]:
        plan.check_cluster(cluster)
        return np.arange(cluster.num_ranks)
    before = without(replace(build_cluster(cluster.spec), name=base), lost)
    before = in_groups(before, plan.cluster.ep_groups, plan.cluster.ep_stride)
    plan.check_cluster(before)
    return same_gpus(before, cluster)


def _on_ranks(placement: Placement, old_R: IntArray, num_domains: int) -> Placement:
    rows = placement.slots()
    held = [rows[old] if old >= 0 else [] for old in old_R.tolist()]
    return Placement.equal_shares(held, placement.num_experts, num_domains)


def move_limit(max_moves: str | None, move_cost: float | None, slots: int) -> MoveLimit:
    """Read the limits of `epplan plan`: a number of moves or a part of all `slots`, and a price in microseconds."""
    if move_cost is not None and not math.isfinite(move_cost):
        raise BadInput(f"--move-cost is {move_cost}, must be a finite number of microseconds")
    return MoveLimit(None if max_moves is None else _count(max_moves, slots), move_cost or 0.0)


def _count(text: str, slots: int) -> int:
    match = re.fullmatch(r"([0-9]{1,9})|([0-9]{1,3}(?:\.[0-9]{1,6})?)%", text.strip(), re.ASCII)
    if match is None or (match[2] is not None and float(match[2]) > 100):
        raise BadInput(f"--max-moves is {text[:40]!r}, must be a whole number, or a part of all slots such as 10%")
    return int(match[1]) if match[1] is not None else int(float(match[2]) * slots / 100)
