"""What the verbs share: loading model, cluster and routing by name or file, with the bundled default."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from planner import (
    Cluster,
    MoEModel,
    Plan,
    Routing,
    Workload,
    build_workload,
    load_cluster,
    load_model,
    load_routing,
)
from planner.rank_speeds import RankSpeeds
from topologies import BadInput
from topologies.files import what_is_there
from topologies.groups import in_groups
from topologies.without import joined_name, split_without, without

BUNDLED = Path(str(resources.files("planner"))) / "bundled" / "tiny_moe"
BUNDLED_CLUSTER = "hgx-h100:2"


@dataclass(frozen=True)
class Inputs:
    """Model, cluster and routing of one command, with what plan.json says of where they came from."""

    model: MoEModel
    cluster: Cluster
    routing: Routing
    sources: dict[str, str]


def load_inputs(
    model: str | None,
    cluster: str | None,
    routing: str | None,
    *,
    lost: Sequence[str] = (),
    rank_speeds: RankSpeeds | None = None,
    ep_groups: int = 1,
    ep_stride: int = 1,
) -> Inputs:
    """Load what the user named; with nothing named, the bundled model, trace and cluster.

    `lost` parts are taken out of the cluster, what is left is divided into EP groups, and the ranks of a group get
    their speeds. Raises BadInput where only a part is named, since a bundled part would not belong to the user's.
    """
    named = {"--model": model, "--routing": routing}
    missing = [option for option, value in named.items() if value is None]
    if len(missing) == 1:
        raise BadInput(f"{missing[0]} is missing (give --model and --routing, or neither for the bundled example)")
    if model is None or routing is None:
        model, routing = str(BUNDLED / "config.json"), str(BUNDLED / "skewed.npz")
        cluster = BUNDLED_CLUSTER if cluster is None else cluster
    if cluster is None:
        raise BadInput("--cluster is missing; a name such as hgx-h100:4, or a file (see: epplan topology show --help)")
    machine = in_groups(without(load_cluster(cluster), lost), ep_groups, ep_stride)
    if rank_speeds is not None:
        machine = rank_speeds.applied(machine)
    loaded_model = load_model(model)
    loaded_routing = load_routing(routing, loaded_model)
    base, parts = split_without(cluster)
    sources = {
        "model": _source(model),
        "cluster": joined_name(_source(base), (*parts, *lost)),
        "routing": f"sha256:{loaded_routing.sha256}",
    }
    return Inputs(loaded_model, machine, loaded_routing, sources)


def workload_of_plan(
    plan: Plan,
    layers: Sequence[int],
    *,
    routing: str | None = None,
    cluster: str | None = None,
    tokens_per_rank: float | None = None,
) -> Workload:
    """Build the workload of some layers of a plan; what the user does not name comes from the plan.

    Raises BadInput where the cluster is not the plan's, or the statistics lack one of the layers.
    """
    machine = cluster_of_plan(plan, cluster)
    statistics = load_routing(_routing_of_plan(plan) if routing is None else routing, plan.model)
    missing = sorted(set(layers) - set(statistics.layers))
    if missing:
        raise BadInput(
            f"{statistics.name}: no statistics for layer {missing[0]} of the plan ({len(missing)} of {len(layers)} "
            f"layers missing; it has layers {statistics.layers[0]} to {statistics.layers[-1]})"
        )
    tokens = plan.workload.tokens_per_rank if tokens_per_rank is None else tokens_per_rank
    return build_workload(plan.model, machine, statistics.select(layers), tokens, plan.workload.seed)


def cluster_of_plan(plan: Plan, cluster: str | None) -> Cluster:
    """Load the cluster of a plan, without the parts that it lacks and with the speeds of its ranks.

    It is that of the plan's name in the catalog, or a file; BadInput where it is not the plan's.
    """
    try:
        name = plan.cluster.name if cluster is None else cluster
        lost = () if split_without(name)[1] else split_without(plan.cluster.name)[1]
        machine = in_groups(without(load_cluster(name), lost), plan.cluster.ep_groups, plan.cluster.ep_stride)
    except BadInput as error:
        if cluster is not None:
            raise
        raise BadInput(
            f"the plan's cluster {plan.cluster.name!r} is not in the catalog; name its file with --cluster"
        ) from error
    plan.check_cluster(machine)
    return machine.with_speeds(entry.speed for entry in plan.cluster.ranks)


def knows_its_routing(plan: Plan) -> bool:
    """Return whether a plan was made on the bundled trace, so that its statistics need not be named."""
    return plan.provenance.inputs.get("routing") == _source(str(BUNDLED / "skewed.npz"))


def _routing_of_plan(plan: Plan) -> str:
    """Return the bundled trace, for a plan that was made on it."""
    if not knows_its_routing(plan):
        raise BadInput("--routing is missing: the plan was not made on the bundled trace; name its statistics")
    return str(BUNDLED / "skewed.npz")


def _source(name: str) -> str:
    """Return a name as it is, and a file as its digest: a plan says nothing of anybody's folders."""
    path = Path(name)
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" if what_is_there(path) == "file" else name
