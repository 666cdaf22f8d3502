"""What every rank of `epplan run` does: deploy the plan, run its step under a clock, check it, and predict it.

Shapes: R ranks.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from executor.conformance import Conformance, LayerVerdict
from executor.exchange import make_exchange
from executor.guard import guard_of_group
from executor.layout import plan_layouts
from executor.loads import Loads, loads_of
from executor.machine_model import Machine, Prediction, Way, fit_machine
from executor.measure import PhaseTimes
from executor.moe import MoE
from executor.parallelize import apply_expert_parallel
from executor.probes import make_probes
from executor.run_job import RunJob
from executor.step_ids import step_ids
from executor.transport import Transport
from executor.trial import Setting, keep_experts, make_layer, replay, step, timed


@dataclass(frozen=True, eq=False)
class LayerRun:
    """One layer: what it was asked to do, what it took, what it should have taken, and whether it was the plan."""

    layer: int
    loads: Loads
    times: PhaseTimes
    predicted: dict[Way, Prediction]
    verdict: LayerVerdict


@dataclass(frozen=True, eq=False)
class RunResult:
    """What all ranks found together.

    Attributes:
        layers: one entry for each that was run.
        tokens_R: of each rank in a step.
        hosts: that the ranks ran on.
        cores: that the ranks shared.
        device: name of rank 0's.
        probe_errors: median relative error of the fit of each phase on its own probes.

    """

    layers: list[LayerRun]
    tokens_R: list[int]
    hosts: int
    cores: float
    device: str
    probe_errors: dict[Way, float]


def run_rank(rank: int, world_size: int, job: RunJob) -> RunResult:
    """Run a plan on this rank of the process group that is in place; every rank returns the same result.

    Raises:
        BadInput: the plan does not fit the job, or the routing the plan.
        NotConforming: what was deployed is not the plan.
        GuardError: ranks disagree about a collective.

    """
    logging.getLogger("executor.parallelize").setLevel(logging.ERROR)  # the report tells of a plan for other hosts
    torch.manual_seed(rank)
    device = torch.device("cuda", torch.cuda.current_device()) if job.device == "cuda" else torch.device("cpu")
    setting = Setting(device, getattr(torch, job.dtype), job.steps, job.warmup, job.backward)
    transport = Transport(dist.group.WORLD)
    ids = step_ids(job.plan.model, job.layers, world_size, job.tokens, job.routing)
    layers = _deploy(job, setting, rank, world_size)
    for number, moe in layers.items():
        replay(moe, torch.from_numpy(ids[number][rank]).to(device))
    hosts = transport.gather("hosts", socket.gethostname())
    machine = Machine(job.plan.domain_of_rank, job.plan.rail_of_rank, _cores(job.device, hosts))
    probes = make_probes(job.plan.model, job.exchange, machine, job.tokens, transport, setting)
    trials = layers | {-1 - number: probe.moe for number, probe in enumerate(probes)}
    times = timed(trials, transport, setting, dist.barrier)
    verdicts = _verdicts(layers, job, setting)
    measured = [(probe.loads, times[-1 - number]) for number, probe in enumerate(probes)]
    model = fit_machine(measured, job.exchange, machine, job.plan.model.hidden * setting.dtype.itemsize)
    runs = []
    for number in job.layers:
        index = [entry.layer for entry in job.plan.layers].index(number)
        loads = loads_of(job.plan.placement(index), ids[number], job.exchange, machine.domain_R, machine.rail_R)
        runs.append(LayerRun(number, loads, times[number], model.predict(loads), verdicts[number]))
    return RunResult(
        layers=runs,
        tokens_R=[len(ids_TK) for ids_TK in ids[job.layers[0]]],
        hosts=len(set(hosts)),
        cores=machine.cores,
        device=torch.cuda.get_device_name(device) if job.device == "cuda" else "cpu",
        probe_errors=dict(model.errors),
    )


def _deploy(job: RunJob, setting: Setting, rank: int, world_size: int) -> dict[int, MoE]:
    """Return the layers by their index in the model, each with the experts that the plan gives this rank."""
    model = nn.ModuleDict({str(number): make_layer(job.plan.model, setting) for number in job.layers})
    guard = guard_of_group() if job.guard else None
    if world_size > 1:
        mesh = init_device_mesh(setting.device.type, (world_size,), mesh_dim_names=("ep",))
        apply_expert_parallel(model, mesh, job.plan, exchange=job.exchange, guard=guard)
    layers: dict[int, MoE] = {}
    for number, layout in plan_layouts(job.plan, rank).items():
        if number in job.layers:
            moe = model[str(number)]
            assert isinstance(moe, MoE)
            if world_size == 1:  # which apply_expert_parallel leaves as it is
                keep_experts(moe.experts, layout.my_experts)
                moe.exchange = make_exchange(job.exchange, layout, Transport(guard=guard))
            layers[number] = moe
    return layers


def _verdicts(layers: dict[int, MoE], job: RunJob, setting: Setting) -> dict[int, LayerVerdict]:
    """Run one more step and compare its rows with the planner's."""
    with Conformance({str(number): moe for number, moe in layers.items()}, job.plan) as watched:
        for moe in layers.values():
            step(moe, setting)
    return {verdict.layer: verdict for verdict in watched.verdicts()}


def _cores(device: str, hosts: list[str]) -> float:
    """Return how many ranks can be at work at once: all on GPUs, else as many as the cores have threads for."""
    if device == "cuda":
        return float(len(hosts))
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(here / torch.get_num_threads() * len(set(hosts)), float(len(hosts)))
