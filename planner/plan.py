"""plan.json: the contract between the planner and the jobs that train and serve.

    {"format": "epplan.plan", "version": 2, "sha256": "...",
     "model": {...}, "workload": {...},
     "cluster": {"name", "ep_groups", "ep_stride", "ranks": [{"rank", "host", "gpu", "domain"}, ...]},
     "layers": [{"layer": 3, "slots": [[12, 5, 7], ...], "shares": {"12": [{"rank": 0, "share": [0.9, 0.1]}, ...]}}],
     "exchange": "two-level", "replica_choice": "shares", "predicted": {...}, "certificate": {...}, "provenance": {...}}

`slots[rank]` lists logical experts in slot order; `shares` lists experts with unequal copies, one number per source
domain; an expert that is not listed is shared equally over its copies. `replica_choice` is `cover` where a token uses
copies on ranks and in domains that it visits anyway (`planner.cover_choice`); without it, `shares`.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from planner.model import MoEModel
from planner.placement import IntArray, Placement, ReplicaChoice, check_placement, shares_of
from planner.plan_version import digest, upgraded
from planner.provenance import Provenance as Origin
from planner.timing import Overlap, PlanExchange
from topologies import BadInput, Cluster
from topologies.files import read_text, write_text
from topologies.json_text import parse_json

FORMAT = "epplan.plan"
MAX_PLAN_BYTES = 128 * 2**20
MAX_RANKS = 100_000
MAX_SHARES = 20_000_000  # source domains x slots of a layer: what its shares take in memory
SCHEMA_FILE = Path(__file__).with_name("plan.schema.json")

Count = Annotated[int, Field(ge=0)]
Microseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlanRank(_Strict):
    """Where a rank sits, and its speed as a part of what its GPU's figures say.

    `rail` is -1 without a NIC, and taken as the GPU's number where a plan names none.
    """

    rank: Count
    host: Count
    gpu: Count
    domain: Count
    rail: int | None = Field(default=None, ge=-1)
    speed: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class PlanCluster(_Strict):
    """The cluster that the plan is for.

    Where several EP groups run on it, `ranks` are those of the first, `ep_stride` apart in the whole cluster; the plan
    serves them all (`topologies.groups`).
    """

    name: str
    ep_groups: int = Field(default=1, ge=1, le=MAX_RANKS)
    ep_stride: int = Field(default=1, ge=1, le=MAX_RANKS)
    ranks: tuple[PlanRank, ...] = Field(min_length=1, max_length=MAX_RANKS, fail_fast=True)


class PlanWorkload(_Strict):
    """The step that the plan is made for."""

    tokens_per_rank: float = Field(gt=0, allow_inf_nan=False)
    slots_per_rank: tuple[Count, ...] = Field(min_length=1, fail_fast=True)
    seed: int


class Copy(_Strict):
    """One copy of a replicated expert: its rank, and the share that it serves of each source domain."""

    rank: Count
    share: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(min_length=1, fail_fast=True)


class PlanLayer(_Strict):
    """Slots and shares of one layer; `layer` is its index in the model."""

    layer: Count
    slots: tuple[Annotated[tuple[Count, ...], Field(fail_fast=True)], ...] = Field(max_length=MAX_RANKS, fail_fast=True)
    shares: dict[str, tuple[Copy, ...]] = {}


class PredictedLayer(_Strict):
    """Predicted cost of one layer."""

    layer: Count
    imbalance: float = Field(ge=1 - 1e-9, allow_inf_nan=False)
    dispatch_us: Microseconds
    compute_us: Microseconds
    combine_us: Microseconds
    layer_us: Microseconds
    bottleneck: str


class Predicted(_Strict):
    """Predicted cost of the plan, and the profile that it was predicted with.

    `overlap` is how the phases of a layer share the time; with `two-batches` the phases are those of one of the two
    micro-batches. `provenance` says whether the numbers are vendor figures, fitted, or beyond what was fitted.
    """

    total_us: Microseconds
    memory_bytes_per_rank: Count
    profile: str
    profile_status: Literal["uncalibrated", "calibrated"]
    overlap: Overlap = "none"
    provenance: Origin = "vendor"
    layers: tuple[PredictedLayer, ...] = Field(fail_fast=True)


class LayerCertificate(_Strict):
    """Objective and proven lower bound of one layer, in microseconds (`time`) or as imbalance (`balance`)."""

    layer: Count
    objective: float = Field(ge=0, allow_inf_nan=False)
    bound: float = Field(ge=0, allow_inf_nan=False)
    gap: float = Field(ge=0, allow_inf_nan=False)


class Certificate(_Strict):
    """How good the plan is proven to be.

    `gap` is objective / bound - 1 over the sum of layers. `proven` is true where the gap is at most `gap_target`; a
    larger gap is still a valid statement about the bound, but does not prove the plan good. `objective_us` and
    `bound_us` are null for the objective `balance`, whose layers carry imbalances.
    """

    objective: Literal["time", "balance"]
    objective_us: Microseconds | None
    bound_us: Microseconds | None
    gap: float = Field(ge=0, allow_inf_nan=False)
    gap_target: float = Field(ge=0, allow_inf_nan=False)
    proven: bool
    complete: bool
    solver: str
    seconds: float = Field(ge=0, allow_inf_nan=False)
    layers: tuple[LayerCertificate, ...] = Field(fail_fast=True)


class Provenance(_Strict):
    """What made the plan: version, digests of the inputs, command line."""

    epplan: str
    inputs: dict[str, str]
    command: str


class Plan(_Strict):
    """The whole of plan.json; build one by hand, or with `load_plan`.

    `sha256` is of a file's content (`planner.plan_version.digest`); `to_json` writes it anew, and in memory it is None.
    """

    format: Literal["epplan.plan"]
    version: Literal[2]
    model: MoEModel
    cluster: PlanCluster
    workload: PlanWorkload
    layers: tuple[PlanLayer, ...] = Field(min_length=1, fail_fast=True)
    exchange: PlanExchange
    replica_choice: ReplicaChoice = "shares"
    predicted: Predicted
    certificate: Certificate
    provenance: Provenance
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Check what no field can check alone; the message names the field."""
        ranks = [entry.rank for entry in self.cluster.ranks]
        if ranks != list(range(len(ranks))):
            raise ValueError(f"cluster.ranks: ranks are numbered {ranks[:4]}..., not 0 to {len(ranks) - 1} in order")
        domains = sorted({entry.domain for entry in self.cluster.ranks})
        if domains != list(range(len(domains))):
            raise ValueError(f"cluster.ranks: domains are numbered {domains[:4]}..., not 0 to {len(domains) - 1}")
        if len(self.workload.slots_per_rank) != len(ranks):
            raise ValueError(
                f"workload.slots_per_rank: {len(self.workload.slots_per_rank)} entries for {len(ranks)} ranks"
            )
        numbers = [layer.layer for layer in self.layers]
        if sorted(set(numbers)) != numbers:
            raise ValueError(f"layers: layer numbers are not ascending or repeat: {numbers[:6]}")
        if numbers[-1] >= self.model.num_layers:
            raise ValueError(f"layers: layer {numbers[-1]} in a model of {self.model.num_layers} layers")
        widest = max(self.model.experts, *(sum(map(len, layer.slots)) for layer in self.layers))
        if len(domains) * widest > MAX_SHARES:
            raise ValueError(f"layers: {len(domains)} domains x {widest} slots, over the limit of {MAX_SHARES} shares")
        slots_R = np.array(self.workload.slots_per_rank)
        for index in range(len(self.layers)):
            check_placement(self.placement(index), slots_R, where=f"layers.{index}")
        return self

    @property
    def num_ranks(self) -> int:
        """R."""
        return len(self.cluster.ranks)

    @property
    def num_domains(self) -> int:
        """Domains that the ranks sit in."""
        return max(entry.domain for entry in self.cluster.ranks) + 1

    @property
    def domain_of_rank(self) -> IntArray:
        """[R] domain of every rank."""
        return np.array([entry.domain for entry in self.cluster.ranks], dtype=np.int64)

    @property
    def rail_of_rank(self) -> IntArray:
        """[R] rail of every rank; -1 without a NIC."""
        rails = (entry.gpu if entry.rail is None else entry.rail for entry in self.cluster.ranks)
        return np.array(list(rails), dtype=np.int64)

    def placement(self, index: int) -> Placement:
        """Return the placement of `layers[index]`; raises BadInput where its shape is wrong."""
        entry, where = self.layers[index], f"layers.{index}"
        if len(entry.slots) != self.num_ranks:
            raise BadInput(f"{where}.slots: {len(entry.slots)} ranks, but cluster.ranks has {self.num_ranks}")
        flat = [expert for row in entry.slots for expert in row]
        if not flat or max(flat) >= self.model.experts:
            raise BadInput(f"{where}.slots: expert {max(flat, default=-1)} is not in 0..{self.model.experts - 1}")
        equal = Placement.equal_shares(entry.slots, self.model.experts, self.num_domains)
        if self.replica_choice != equal.replica_choice:
            equal = replace(equal, replica_choice=self.replica_choice)
        if not entry.shares:
            return equal
        share_DS = equal.share_DS.copy()
        slot_on: dict[int, dict[int, int]] = {int(expert): {} for expert in entry.shares if expert.isdecimal()}
        for slot, (held, rank) in enumerate(zip(equal.expert_S.tolist(), equal.rank_S.tolist(), strict=True)):
            if held in slot_on:
                slot_on[held][rank] = slot
        for expert, copies in entry.shares.items():
            if not expert.isdecimal() or {copy.rank for copy in copies} != slot_on[int(expert)].keys():
                raise BadInput(f"{where}.shares: the ranks of expert {expert[:20]!r} are not those of its slots")
            for copy in copies:
                if len(copy.share) != self.num_domains:
                    raise BadInput(f"{where}.shares.{expert}: {len(copy.share)} shares for {self.num_domains} domains")
                share_DS[:, slot_on[int(expert)][copy.rank]] = copy.share
        return equal.with_shares(share_DS)

    def placements(self) -> list[Placement]:
        """Return the placement of every layer."""
        return [self.placement(index) for index in range(len(self.layers))]

    def check_cluster(self, cluster: Cluster) -> None:
        """Refuse a cluster whose ranks do not sit where the plan's do."""
        theirs = [(rank.host, rank.gpu, rank.domain) for rank in cluster.ranks]
        ours = [(entry.host, entry.gpu, entry.domain) for entry in self.cluster.ranks]
        if theirs != ours:
            raise BadInput(
                f"the plan is for {self.cluster.name} ({len(ours)} ranks), which does not match {cluster.name} "
                f"({len(theirs)} ranks in {cluster.num_domains} domains)"
            )
        if (cluster.groups.count, cluster.groups.stride) != (self.cluster.ep_groups, self.cluster.ep_stride):
            raise BadInput(
                f"the plan is for {self.cluster.ep_groups} EP groups, ranks {self.cluster.ep_stride} apart, not for "
                f"{cluster.groups.count}, ranks {cluster.groups.stride} apart"
            )

    def to_json(self) -> str:
        """Return the text of plan.json: a line for each layer, and one for its digest; numbers in full precision."""
        document = self.model_dump(mode="json", exclude={"sha256"})
        head = {"format": self.format, "version": self.version, "sha256": digest(document)}
        document = head | document
        lines = [f"  {json.dumps(key)}: {_block(value)}" for key, value in document.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def save(self, path: str | Path) -> None:
        """Write plan.json whole or not at all."""
        write_text(path, self.to_json())


def _block(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n    " + ",\n    ".join(_compact(item) for item in value) + "\n  ]"
    if isinstance(value, dict) and any(isinstance(item, list) for item in value.values()):
        inner = (f"    {json.dumps(key)}: {_nested(item)}" for key, item in value.items())
        return "{\n" + ",\n".join(inner) + "\n  }"
    return _compact(value)


def _nested(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n      " + ",\n      ".join(_compact(item) for item in value) + "\n    ]"
    return _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(", ", ": "))


def plan_layer(layer: int, placement: Placement) -> PlanLayer:
    """Return the entry of one layer; shares that are equal anyway are left out."""
    uneven_S = np.abs(placement.share_DS - 1.0 / placement.copies_E[placement.expert_S]).max(axis=0) > 1e-12
    uneven = set(placement.expert_S[uneven_S].tolist())
    shares = {
        str(expert): tuple(Copy(rank=rank, share=tuple(share_D.tolist())) for rank, share_D in copies)
        for expert, copies in (shares_of(placement) if uneven else {}).items()
        if expert in uneven
    }
    return PlanLayer(layer=layer, slots=tuple(tuple(row) for row in placement.slots()), shares=shares)


def plan_cluster(cluster: Cluster) -> PlanCluster:
    """Return what plan.json says of a cluster."""
    ranks = (
        PlanRank(rank=r.rank, host=r.host, gpu=r.gpu, domain=r.domain, rail=r.rail, speed=r.speed)
        for r in cluster.ranks
    )
    groups = cluster.groups
    return PlanCluster(name=cluster.name, ep_groups=groups.count, ep_stride=groups.stride, ranks=tuple(ranks))


def load_plan(path: str | Path) -> Plan:
    """Read and check plan.json; raise BadInput that names the file, the field and what is wrong with it."""
    return parse_plan(read_text(path, limit_bytes=MAX_PLAN_BYTES), str(path))


def parse_plan(text: str, where: str) -> Plan:
    """Read and check the text of a plan; raise BadInput that starts with `where`.

    Files of older versions are upgraded. A file whose `sha256` is not that of its content is refused; one without is
    taken as it is, so whoever edits a plan deletes that line.
    """
    document = parse_json(text, where, constants=False)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise BadInput(f"{where}: format: not a plan (expected {FORMAT!r}, found {str(found)[:80]!r})")
    document = upgraded(document, where)
    try:
        return Plan.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        got = "" if isinstance(first["input"], dict) else f" (got {str(first['input'])[:80]!r})"
        message = first["msg"].removeprefix("Value error, ")
        raise BadInput(f"{where}: {field + ': ' if field else ''}{message}{got if field else ''}") from error
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error


def schema_text() -> str:
    """Return the JSON Schema of plan.json, as committed in plan.schema.json."""
    return json.dumps(Plan.model_json_schema(), indent=2) + "\n"


def finite_gap(objective: float, bound: float) -> float:
    """Return objective / bound - 1, at least 0; a bound of zero proves nothing and counts as 1e9."""
    return max(objective / bound - 1.0, 0.0) if bound > 0 and math.isfinite(objective) else 1e9
