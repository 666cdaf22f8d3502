"""The commands that print what the pages show, and the files that they need beside those of the user."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass

from app.inputs import BUNDLED as BUNDLED_FOLDER
from app.whatif.settings import BUNDLED, POWER_LAW, UPLOAD, Settings
from app.whatif.uploads import Uploads
from app.whatif.work import Planned
from planner import Plan, assemble_plan
from planner.baselines import BASELINES
from planner.synthetic import logical_count_json
from topologies.cluster_file import dump_spec
from topologies.load import resolve
from topologies.without import joined_name

PLAN_FILE, CLUSTER_FILE, ROUTING_FILE = "plan.json", "cluster.yaml", "routing.json"
MODEL_FILE, SPEEDS_FILE = "config.json", "rank_speeds.csv"


@dataclass(frozen=True)
class Reproduction:
    """How to get the same numbers without the app.

    Attributes:
        plan, evaluate: command lines, as argument lists.
        files: name and content of what they read and nobody has yet.
        own: names of the user's own files that they read.
        document: plan.json.

    """

    plan: tuple[str, ...]
    evaluate: tuple[str, ...]
    files: dict[str, str]
    own: tuple[str, ...]
    document: Plan


def reproduce(planned: Planned, uploads: Uploads) -> Reproduction:
    """Return the commands, the files, and plan.json, which holds the numbers that the pages show."""
    settings, case = planned.case.settings, planned.case
    files, own = dict[str, str](), list[str]()
    inputs: list[str] = []
    for option, name in (
        ("--model", _model(planned, uploads, files, own)),
        ("--cluster", _cluster(planned, files)),
        ("--routing", _routing(planned, uploads, files, own)),
    ):
        if name is not None:
            inputs += [option, name]
    profile = _profile(settings, uploads, own)
    evaluate = ["epplan", "evaluate", PLAN_FILE, *BASELINES, *_pairs(inputs, ("--routing", "--cluster")), *profile]
    plan = ["epplan", "plan", *inputs, *_faults(planned, files), *_step(planned), *profile, "-o", PLAN_FILE]
    document = assemble_plan(
        planned.workload, case.profile, case.slots_R(), planned.solution, seed=settings.seed,
        inputs=_sources(planned, uploads, files), command=shlex.join(plan),
    )  # fmt: skip
    return Reproduction(tuple(plan), tuple(evaluate), files, tuple(own), document)


def _model(planned: Planned, uploads: Uploads, files: dict[str, str], own: list[str]) -> str | None:
    settings = planned.case.settings
    if settings.model.startswith(UPLOAD):
        own.append(uploads.get("model", settings.model).name)
        return own[-1]
    if settings.model != BUNDLED:
        return settings.model
    if settings.routing == BUNDLED and settings.power == 1:
        return None
    files[MODEL_FILE] = (BUNDLED_FOLDER / MODEL_FILE).read_text(encoding="utf-8")
    return MODEL_FILE


def _cluster(planned: Planned, files: dict[str, str]) -> str:
    settings, whole = planned.case.settings, planned.case.whole
    if not settings.cluster.startswith(UPLOAD) and resolve(settings.cluster).spec == whole:
        return settings.cluster
    files[CLUSTER_FILE] = dump_spec(whole)
    return CLUSTER_FILE


def _routing(planned: Planned, uploads: Uploads, files: dict[str, str], own: list[str]) -> str | None:
    settings = planned.case.settings
    if settings.routing == POWER_LAW or settings.power != 1:
        files[ROUTING_FILE] = logical_count_json(planned.case.routing, planned.case.model)
        return ROUTING_FILE
    if settings.routing.startswith(UPLOAD):
        own.append(uploads.get("routing", settings.routing).name)
        return own[-1]
    return None


def _profile(settings: Settings, uploads: Uploads, own: list[str]) -> list[str]:
    if settings.profile.startswith(UPLOAD):
        own.append(uploads.get("profile", settings.profile).name)
        return ["--profile", own[-1]]
    return [] if settings.profile == "vendor" else ["--profile", settings.profile]


def _faults(planned: Planned, files: dict[str, str]) -> list[str]:
    """Return the options that name lost parts and slow ranks; plan.json itself tells them to `epplan evaluate`."""
    settings = planned.case.settings
    options = [word for part in settings.lost for word in ("--without", part)]
    if settings.slow_rank is not None:
        files[SPEEDS_FILE] = f"rank,speed\n{settings.slow_rank},{settings.slow_speed:g}\n"
        options += ["--rank-speed", SPEEDS_FILE]
    return options


def _step(planned: Planned) -> list[str]:
    """Return the options of the step and of the search, as far as they are not the defaults."""
    settings, found = planned.case.settings, planned.found
    options = ["--slots-per-rank", str(planned.case.slots_per_rank)]
    if settings.tokens is not None:
        options += ["--tokens-per-rank", f"{settings.tokens:g}"]
    for name, default in (("exchange", "auto"), ("objective", "time"), ("overlap", "none")):
        if getattr(settings, name) != default:
            options += [f"--{name}", getattr(settings, name)]
    if settings.survive:
        options += ["--survive", "host"]
    if settings.seed:
        options += ["--seed", str(settings.seed)]
    limit = 0.0 if found is None else found.time_limit_s
    return options if limit is None else [*options, "--time-limit", f"{limit:g}"]


def _pairs(options: list[str], wanted: tuple[str, ...]) -> list[str]:
    """Return some options with their values, in the order wanted; of clusters only a file needs to be named."""
    found = []
    for name in wanted:
        if name in options:
            value = options[options.index(name) + 1]
            if name != "--cluster" or value == CLUSTER_FILE:
                found += [name, value]
    return found


def _sources(planned: Planned, uploads: Uploads, files: dict[str, str]) -> dict[str, str]:
    """Return what plan.json says of its inputs, as the command line does: known names, and digests of files."""
    settings, case = planned.case.settings, planned.case
    model = settings.model
    if model == BUNDLED:
        model = _digest((BUNDLED_FOLDER / MODEL_FILE).read_bytes())
    elif model.startswith(UPLOAD):
        model = _digest(uploads.get("model", model).path.read_bytes())
    cluster = _digest(files[CLUSTER_FILE].encode()) if CLUSTER_FILE in files else settings.cluster
    return {
        "model": model,
        "cluster": joined_name(cluster, settings.lost),
        "routing": f"sha256:{case.routing.sha256}",
    }


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
