"""From a placement file of an engine to a plan: what is in force there, with predicted times."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from planner.assemble import GAP_TARGET
from planner.importers.formats import FORMATS, MAX_BYTES
from planner.importers.match import Imported, match
from planner.model import MoEModel
from planner.plan import (
    Certificate,
    LayerCertificate,
    Plan,
    PlanWorkload,
    Predicted,
    PredictedLayer,
    Provenance,
    finite_gap,
    plan_cluster,
    plan_layer,
)
from planner.predict import Prediction, predict
from planner.timing import EXCHANGES, Exchange, TimingProfile
from planner.workload import Workload
from topologies import Cluster
from topologies.errors import unknown_name
from topologies.files import read_bytes


def read_placement(path: str | Path, fmt: str, model: MoEModel, cluster: Cluster) -> Imported:
    """Read a placement file of a format (a key of `FORMATS`) for a model on a cluster.

    Raises:
        BadInput: an unknown format, or anything wrong with the file or between it, the model and the cluster.

    """
    if fmt not in FORMATS:
        raise unknown_name("import format", fmt, FORMATS)
    source = str(path)
    file = FORMATS[fmt](read_bytes(path, limit_bytes=MAX_BYTES), source)
    return match(file, model, cluster.num_ranks, cluster.num_domains, source)


def import_plan(
    imported: Imported,
    workload: Workload,
    profile: TimingProfile,
    exchange: Exchange | Literal["auto"] = "auto",
    *,
    fmt: str,
    inputs: Mapping[str, str],
    command: str,
) -> Plan:
    """Return the plan of a placement that was read; nothing is proven of it.

    Args:
        imported: its layers are those of the workload.
        workload: what times are predicted for.
        profile: constants of the prediction.
        exchange: the algorithm of the all-to-all; auto takes the one predicted fastest.
        fmt: the format it came from, for the certificate.
        inputs: digests of what went in, for the plan's provenance.
        command: the command line, for the plan's provenance.

    """
    names = EXCHANGES if exchange == "auto" else (exchange,)
    predictions = [predict(fmt, imported.placements, workload, profile, name) for name in names]
    best = min(predictions, key=lambda prediction: prediction.total_us)
    return Plan(
        format="epplan.plan",
        version=2,
        model=workload.model,
        cluster=plan_cluster(workload.cluster),
        workload=PlanWorkload(
            tokens_per_rank=workload.tokens_per_rank,
            slots_per_rank=tuple(np.full(workload.num_ranks, imported.slots_per_rank).tolist()),
            seed=workload.seed,
        ),
        layers=tuple(map(plan_layer, imported.layers, imported.placements)),
        exchange=best.exchange,
        predicted=Predicted(
            total_us=best.total_us,
            memory_bytes_per_rank=best.memory_bytes,
            profile=profile.name,
            profile_status=profile.status,
            provenance=best.provenance,
            layers=tuple(PredictedLayer(**vars(layer)) for layer in best.layers),
        ),
        certificate=_nothing_proven(best, fmt),
        provenance=Provenance(epplan=version("epplan"), inputs=dict(inputs), command=command),
    )


def _nothing_proven(prediction: Prediction, fmt: str) -> Certificate:
    """Return a certificate with the trivial bound: a placement that comes from elsewhere was not searched for."""
    layers = [(layer.layer, layer.layer_us) for layer in prediction.layers]
    return Certificate(
        objective="time",
        objective_us=prediction.total_us,
        bound_us=0.0,
        gap=finite_gap(prediction.total_us, 0.0),
        gap_target=GAP_TARGET,
        proven=False,
        complete=True,
        solver=f"none: imported from {fmt}",
        seconds=0.0,
        layers=tuple(
            LayerCertificate(layer=layer, objective=us, bound=0.0, gap=finite_gap(us, 0.0)) for layer, us in layers
        ),
    )
