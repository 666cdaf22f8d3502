"""A plan made to fit a target, step by step; every step that loses something says so, or is refused.

Shapes: L layers, E experts, D domains, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from planner.even import filled
from planner.exporters.reshape import in_whole_groups, trivial, with_common_shares, without_replicas
from planner.exporters.target import Deployment, Limits
from planner.placement import FloatArray, IntArray, Placement
from planner.plan import Plan
from topologies.errors import BadInput

EQUAL = 1e-9  # shares that differ by less are the same


@dataclass
class Adaptation:
    """The placements of a plan on their way to a target.

    Attributes:
        plan: where they come from.
        target: its name, for messages.
        limits: what it can hold.
        load_LE: token-expert pairs of each expert of the plan's layers, for the choice of copies; None refuses losses.
        placements: of the plan's layers, so far.
        losses: what was lost, one sentence each.

    """

    plan: Plan
    target: str
    limits: Limits
    load_LE: FloatArray | None
    placements: list[Placement]
    losses: list[str] = field(default_factory=list)

    def run(self) -> Deployment:
        """Return what the target can hold; raise BadInput at the first loss where none is allowed."""
        if not self.limits.replicas:
            self._drop_replicas()
        if self.limits.one_map:
            self._join_layers()
        if self.limits.whole_groups and self.plan.model.groups > 1:
            self._keep_groups()
        if not self.limits.uneven_slots:
            self._fill_slots()
        self._drop_cover()
        self._set_shares()
        return Deployment(self.plan.model, self._complete())

    def _lose(self, layers: list[int], what: str, instead: str, remedy: str) -> None:
        """Note a loss, or refuse it; `layers` are indices into the plan's."""
        first = self.plan.layers[layers[0]].layer
        place = f"layer {first}" + (f" and {len(layers) - 1} more" if len(layers) > 1 else "")
        if self.load_LE is None:
            raise BadInput(f"{self.target} cannot hold {what} ({place}); {remedy}, or --lossy: {instead}")
        self.losses.append(f"{what} ({place}): {instead}")

    def _where(self, condition: Callable[[Placement], object]) -> list[int]:
        return [index for index, placement in enumerate(self.placements) if condition(placement)]

    def _drop_replicas(self) -> None:
        experts, ranks = self.plan.model.experts, self.plan.num_ranks
        even = not self.limits.uneven_slots
        if even and experts % ranks:
            raise BadInput(
                f"{self.target}: {experts} experts do not divide by {ranks} ranks, and it holds each expert once, as "
                "many on every rank; plan for another number of ranks"
            )
        layers = self._where(lambda p: len(p.expert_S) > experts or (even and p.slots_R.max() != p.slots_R.min()))
        if not layers:
            return
        remedy = (
            f"plan for a number of ranks that divides {experts}"  # with any other, some slot is left for a replica
            if experts % ranks
            else f"plan with --slots-per-rank {experts // ranks}"
        )
        self._lose(
            layers, "replicas, or more experts on one rank than on another" if even else "replicas",
            "one copy of each expert is kept", remedy,
        )  # fmt: skip
        for index in layers:
            placement = self.placements[index]
            room_R = np.full(ranks, experts // ranks) if even else placement.slots_R
            self.placements[index] = without_replicas(_weights(placement), room_R, placement.num_domains)

    def _join_layers(self) -> None:
        weights = [_weights(placement) for placement in self.placements]
        layers = [index for index, weight_ER in enumerate(weights) if not np.array_equal(weight_ER > 0, weights[0] > 0)]
        if not layers:
            return
        self._lose(
            layers, "a placement of its own for every layer", "all layers get the one nearest to all",
            "vllm-49572 and vllm-14544 hold one for each",
        )  # fmt: skip
        room_R = np.max([placement.slots_R for placement in self.placements], axis=0)
        weight_ER = np.mean(weights, axis=0)
        self.placements[:] = [without_replicas(weight_ER, room_R, self.plan.num_domains)] * len(self.placements)

    def _keep_groups(self) -> None:
        groups = self.plan.model.groups
        whole = [in_whole_groups(placement, groups) for placement in self.placements]
        moved_L = [int(np.sum(_ranks_E(a) != _ranks_E(b))) for a, b in zip(self.placements, whole, strict=True)]
        layers = [index for index, moved in enumerate(moved_L) if moved]
        if layers:
            self._lose(
                layers, f"routing groups ({groups}) that are spread over ranks",
                f"{sum(moved_L)} experts of {len(layers)} layers move so that groups stay whole",
                "an engine that renames slots, not experts, can (sglang, trtllm)",
            )  # fmt: skip
        self.placements[:] = whole

    def _fill_slots(self) -> None:
        slots = max(int(placement.slots_R.max()) for placement in self.placements)
        layers = self._where(lambda p: p.slots_R.min() < slots)
        if not layers:
            return
        empty = sum(self.plan.num_ranks * slots - len(self.placements[i].expert_S) for i in layers)
        if self.limits.shares == "engine":
            self._lose(
                layers, f"ranks with fewer than {slots} slots",
                f"{empty} empty slots are filled with further copies of the busiest experts",
                "plan with --engine-compatible; omni holds them, lp-shares fills slots without using them",
            )  # fmt: skip
        for index in layers:
            load_E = np.ones(self.plan.model.experts) if self.load_LE is None else self.load_LE[index]
            self.placements[index] = filled(self.placements[index], slots, load_E)

    def _drop_cover(self) -> None:
        layers = self._where(lambda p: p.replica_choice == "cover" and len(p.expert_S) > p.num_experts)
        if layers:
            self._lose(
                layers, "the replica choice cover", "copies are chosen by shares",
                "plan with --replica-choice shares",
            )  # fmt: skip
        self.placements[:] = [replace(placement, replica_choice="shares") for placement in self.placements]

    def _set_shares(self) -> None:
        if self.limits.shares == "engine":
            equal = [placement.with_equal_shares() for placement in self.placements]
            what, instead = "unequal shares of copies", "the engine chooses between copies; predicted as equal shares"
            remedy = "plan with --engine-compatible; --to lp-shares writes them for SGLang"
        else:
            weight_D = np.bincount([entry.domain for entry in self.plan.cluster.ranks]).astype(float)
            equal = [with_common_shares(placement, weight_D) for placement in self.placements]
            what, instead = "shares that differ between source domains", "all domains use their mean"
            remedy = "none of the engines takes them yet"
        layers = [i for i, p in enumerate(self.placements) if np.abs(p.share_DS - equal[i].share_DS).max() > EQUAL]
        if layers:
            self._lose(layers, what, instead, remedy)
        self.placements[:] = equal

    def _complete(self) -> tuple[Placement, ...]:
        """Return a placement for every MoE layer; those that the plan lacks get the trivial one."""
        known = {entry.layer: placement for entry, placement in zip(self.plan.layers, self.placements, strict=True)}
        missing = [layer for layer in self.plan.model.moe_layers if layer not in known]
        if missing and self.load_LE is None:
            raise BadInput(
                f"the plan has no layer {missing[0]} ({len(missing)} of {len(self.plan.model.moe_layers)} MoE layers "
                f"of {self.plan.model.name} missing); plan with statistics of all layers, or --lossy: the missing ones "
                "get the linear placement"
            )
        if missing:
            self.losses.append(f"{len(missing)} MoE layers that the plan lacks: placed linearly, cost not predicted")
        slots_R = self.placements[0].slots_R
        linear = trivial(self.plan.model.experts, slots_R, self.plan.num_domains)
        return tuple(known.get(layer, linear) for layer in self.plan.model.moe_layers)


def _weights(placement: Placement) -> FloatArray:
    """Return what the copy of an expert on a rank serves [E, R], the mean over domains; above 0 where there is one."""
    weight_ER = np.zeros((placement.num_experts, placement.num_ranks))
    weight_ER[placement.expert_S, placement.rank_S] = placement.share_DS.mean(axis=0) + 1e-6
    return weight_ER


def _ranks_E(placement: Placement) -> IntArray:
    """Return the rank of every expert, where each has one slot."""
    rank_E = np.empty(placement.num_experts, dtype=np.int64)
    rank_E[placement.expert_S] = placement.rank_S
    return rank_E
