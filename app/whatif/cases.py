"""From settings to what the planner works on; knows nothing of Streamlit, so that a background process can use it.

A `Case` carries its content, and its keys are digests of that content: who asks a cache for a case's results has the
inputs in hand already, so that no cache can hand one user's upload to another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from app.inputs import BUNDLED as BUNDLED_FOLDER
from app.whatif.settings import BUNDLED, POWER_LAW, UPLOAD, Settings
from app.whatif.uploads import Uploads
from planner import Cluster, MoEModel, Routing, Solution, TimingProfile, Workload, build_workload, slots_of_ranks, solve
from planner.model import load_model, model_names
from planner.placement import IntArray
from planner.request import default_slots_per_rank
from planner.restep import restep
from planner.routing import load_routing
from planner.synthetic import power_law, sharpened
from planner.timing import load_profile, profile_names
from planner.workload import MAX_RANKS as MAX_GROUP
from topologies import BadInput, catalog_names
from topologies.build import build_cluster
from topologies.errors import unknown_name
from topologies.load import resolve, with_fabric
from topologies.spec import ClusterSpec
from topologies.vary import with_hosts, with_nic_gbps, with_scale_up
from topologies.without import without

OnLayer = Callable[[int], None]
MAX_RANKS = 288  # what the app answers while one watches: at 512 one simulated layer takes over half a minute


@dataclass(frozen=True, eq=False)
class Case:
    """One question to the planner, with all of its content.

    Attributes:
        settings: that it was made from.
        whole: the cluster before parts of it were lost.
        cluster, notes: what is left of it, and what was assumed to read its file.
        model, routing, profile: the other inputs.

    """

    settings: Settings
    whole: ClusterSpec
    cluster: Cluster
    notes: tuple[str, ...]
    model: MoEModel
    routing: Routing
    profile: TimingProfile

    @cached_property
    def sample_key(self) -> str:
        """Return a digest of what the sampled tokens depend on."""
        return _digest(self.model.model_dump_json(), self.routing.sha256, self.routing.layers, self.settings.seed)

    @cached_property
    def workload_key(self) -> str:
        """Return a digest of what the workload depends on."""
        return _digest(self.sample_key, self.cluster_key, self.settings.tokens)

    @cached_property
    def cluster_key(self) -> str:
        """Return a digest of the cluster, lost and slow ranks included."""
        return _digest(self.cluster.spec.model_dump_json(), self.cluster.name, self.cluster.ranks)

    @cached_property
    def key(self) -> str:
        """Return a digest of what a plan depends on."""
        chosen = self.settings
        asked = (chosen.exchange, chosen.objective, chosen.overlap, chosen.survive, self.slots_per_rank)
        return _digest(self.workload_key, self.profile.model_dump_json(), *asked)

    @cached_property
    def slots_per_rank(self) -> int:
        """Return the slots of every rank: as named, as many as the memory holds, or one more than the experts need."""
        if self.settings.weights_gb is not None:
            return int(self.settings.weights_gb * 1e9 // (self.routing.num_layers * self.model.expert_bytes))
        return self.settings.slots or default_slots_per_rank(self.model, self.cluster)

    def slots_R(self) -> IntArray:
        """Return the slots of every rank; raises BadInput or Infeasible where they cannot be."""
        if self.settings.weights_gb is not None and not self.slots_per_rank:
            slot_gb = self.routing.num_layers * self.model.expert_bytes / 1e9
            raise BadInput(
                f"{self.settings.weights_gb:g} GB of expert weights per rank hold no slot: one expert in each of "
                f"{self.routing.num_layers} layers takes {slot_gb:.3g} GB; give that times the slots that you want"
            )
        return slots_of_ranks(self.model, self.cluster, self.slots_per_rank, self.routing.num_layers)

    def workload(self, alike: Workload | None = None) -> Workload:
        """Build the workload, from one with the same `sample_key` where there is one."""
        if alike is not None:
            return restep(alike, self.cluster, self.settings.tokens)
        return build_workload(self.model, self.cluster, self.routing, self.settings.tokens, self.settings.seed)

    def fast_plan(self, workload: Workload) -> Solution:
        """Return the best baseline of every layer, duplicate replicas merged: a plan without a search."""
        return self.search(workload, time_limit_s=0.0, workers=1)

    def search(
        self,
        workload: Workload,
        *,
        time_limit_s: float | None,
        workers: int | None = None,
        on_layer: OnLayer | None = None,
    ) -> Solution:
        """Search for a plan; see `planner.solve`, and `survive_host` where experts are to survive."""
        chosen = self.settings
        found = solve(
            workload, self.profile, self.slots_R(), objective=chosen.objective, exchange=chosen.exchange,
            overlap=chosen.overlap, time_limit_s=time_limit_s, seed=chosen.seed, workers=workers,
            on_layer=on_layer or (lambda _: None),
        )  # fmt: skip
        if not chosen.survive:
            return found
        from planner.solve.survivors import survive_host  # noqa: PLC0415 - solvers load only where one searches

        search = time_limit_s != 0
        slots_R = self.slots_R()
        return survive_host(found, workload, self.profile, slots_R, search=search, workers=workers).solution


def make_case(settings: Settings, uploads: Uploads) -> Case:
    """Load what the settings name; raises BadInput in one line where something is wrong or does not fit."""
    spec, notes = described(settings, uploads)
    whole = varied(spec, settings)
    cluster = _left(whole, settings)
    if cluster.num_ranks > MAX_RANKS:
        raise BadInput(
            f"{cluster.name}: {cluster.num_ranks:,} ranks, over the {MAX_RANKS} that the app plans while one watches; "
            f"take fewer hosts, or `epplan plan`, which goes up to {MAX_GROUP:,}"
        )
    model = load_model_of(settings, uploads)
    routing = sharpened(_routing(settings, uploads, model), model, settings.power)
    return Case(settings, whole, cluster, notes, model, routing, _profile(settings, uploads))


def holding_all(case: Case, uploads: Uploads) -> tuple[Case, str]:
    """Return a case whose slots hold every expert once, with what was raised for it, in words; "" where nothing was."""
    need = -(-case.model.experts // case.cluster.num_ranks)
    have = case.slots_per_rank
    if have >= need:
        return case, ""
    raised = make_case(case.settings.but(slots=need, weights_gb=None), uploads)
    return raised, (
        f"{have} slots x {case.cluster.num_ranks} ranks hold fewer than the {case.model.experts} experts: "
        f"taken with {need} slots per rank, the fewest that do"
    )


def _profile(settings: Settings, uploads: Uploads) -> TimingProfile:
    if settings.profile.startswith(UPLOAD):
        return uploads.profile(settings.profile)
    return load_profile(_known("profile", settings.profile, profile_names()))


def load_model_of(settings: Settings, uploads: Uploads) -> MoEModel:
    """Return the model that the settings name."""
    if settings.model == BUNDLED:
        return load_model(str(BUNDLED_FOLDER / "config.json"))
    if settings.model.startswith(UPLOAD):
        return uploads.model(settings.model)
    return load_model(_known("model", settings.model, model_names()))


def _routing(settings: Settings, uploads: Uploads, model: MoEModel) -> Routing:
    if settings.routing.startswith(UPLOAD):
        return uploads.routing(settings.routing, model)
    if settings.routing == POWER_LAW:
        return power_law(model, settings.skew, settings.seed)
    if settings.routing != BUNDLED:
        raise BadInput(f"routing is {settings.routing[:60]!r}; it is {BUNDLED}, {POWER_LAW}, or an uploaded file")
    if settings.model != BUNDLED:
        raise BadInput(
            f"the bundled trace is of the bundled model, not of {model.name}; upload statistics of {model.name} on the "
            "page Inputs, or take a power law"
        )
    return replace(load_routing(BUNDLED_FOLDER / "skewed.npz", model), name="bundled trace")


def described(settings: Settings, uploads: Uploads) -> tuple[ClusterSpec, tuple[str, ...]]:
    """Return the cluster that the settings name, as its description says, and what was assumed."""
    if settings.cluster.startswith(UPLOAD):
        return uploads.spec(settings.cluster, settings.system)
    _known("cluster", settings.cluster.partition(":")[0], catalog_names())
    return resolve(settings.cluster).spec, ()


def varied(spec: ClusterSpec, settings: Settings) -> ClusterSpec:
    """Return the whole cluster as the settings take it: other hosts, other links."""
    if settings.hosts is not None:
        spec = with_hosts(spec, settings.hosts)
    if settings.oversubscription is not None:
        spec = with_fabric(spec, oversubscription=settings.oversubscription)
        spec = spec.model_copy(update={"name": f"{spec.name}, {settings.oversubscription:g}:1 oversubscribed"[:200]})
    if settings.nic_gbps is not None:
        spec = with_nic_gbps(spec, settings.nic_gbps)
    return with_scale_up(spec, settings.scale_up)


def _left(spec: ClusterSpec, settings: Settings) -> Cluster:
    """Build a cluster without the lost parts, one of the ranks that are left perhaps slow."""
    cluster = without(build_cluster(spec), settings.lost)
    slow = settings.slow_rank
    if slow is None:
        return cluster
    if slow >= cluster.num_ranks:
        raise BadInput(f"{cluster.name}: the slow rank is {slow}, but the ranks are 0 to {cluster.num_ranks - 1}")
    return cluster.with_speeds(settings.slow_speed if rank == slow else 1.0 for rank in range(cluster.num_ranks))


def _known(kind: str, name: str, names: Iterable[str]) -> str:
    """Return a name; a link that names a file of the server, or nothing known, is refused."""
    if name not in (known := list(names)):
        raise unknown_name(kind, name, known)
    return name


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()
