"""From a solution to plan.json: slots, shares, predictions, certificate, provenance."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

import numpy as np

from planner.placement import IntArray
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
from planner.predict import Prediction
from planner.solve import Solution
from planner.solve.verify import verify_plan
from planner.timing import TimingProfile
from planner.workload import Workload

GAP_TARGET = 0.05  # relative; a plan with a smaller proven gap is called proven. Load forecasts are noisier than this


def assemble_plan(
    workload: Workload,
    profile: TimingProfile,
    slots: IntArray,
    solution: Solution,
    *,
    seed: int,
    inputs: Mapping[str, str],
    command: str,
) -> Plan:
    """Put a solution together as a plan; every constraint is checked on the way (SolverFault names one that is broken).

    `slots` are those of each rank [R], or of each rank in each layer [L, R], of which the plan notes the most.
    """
    verify_plan(solution.placements, slots, workload.model, workload.layers, workload.cluster)
    return Plan(
        format="epplan.plan",
        version=2,
        model=workload.model,
        cluster=plan_cluster(workload.cluster),
        workload=PlanWorkload(
            tokens_per_rank=workload.tokens_per_rank,
            slots_per_rank=tuple(np.atleast_2d(slots).max(axis=0).tolist()),
            seed=seed,
        ),
        layers=tuple(map(plan_layer, workload.layers, solution.placements)),
        exchange=solution.exchange,
        replica_choice=solution.placements[0].replica_choice,
        predicted=_predicted(solution.predictions[-1], profile),
        certificate=_certificate(workload, solution),
        provenance=Provenance(epplan=version("epplan"), inputs=dict(inputs), command=command),
    )


def _predicted(prediction: Prediction, profile: TimingProfile) -> Predicted:
    return Predicted(
        total_us=prediction.total_us,
        memory_bytes_per_rank=prediction.memory_bytes,
        profile=profile.name,
        profile_status=profile.status,
        overlap=prediction.overlap,
        provenance=prediction.provenance,
        layers=tuple(PredictedLayer(**vars(layer)) for layer in prediction.layers),
    )


def _certificate(workload: Workload, solution: Solution) -> Certificate:
    objective = sum(layer.objective for layer in solution.layers)
    bound = sum(layer.bound for layer in solution.layers)
    in_us = solution.objective == "time"
    gap = finite_gap(objective, bound)
    return Certificate(
        objective=solution.objective,
        objective_us=objective if in_us else None,
        bound_us=bound if in_us else None,
        gap=gap,
        gap_target=GAP_TARGET,
        proven=gap <= GAP_TARGET,
        complete=solution.complete,
        solver=solution.solver,
        seconds=round(solution.seconds, 3),
        layers=tuple(
            LayerCertificate(
                layer=layer, objective=one.objective, bound=one.bound, gap=finite_gap(one.objective, one.bound)
            )
            for layer, one in zip(workload.layers, solution.layers, strict=True)
        ),
    )
