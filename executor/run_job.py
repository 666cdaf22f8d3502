"""RunJob: what `epplan run` runs, made of a plan and of what the user asks for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from planner import Plan, Routing, load_routing
from planner.timing import Exchange, plain
from topologies.errors import BadInput

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
MOST_LAYERS = 4  # that are run where the user names none


@dataclass(frozen=True)
class RunJob:
    """What to run; the same on all ranks.

    Attributes:
        plan: with the shapes that are run.
        layers: index in the model of each layer that is run.
        routing: of the tokens, or None for even routing.
        tokens: of each rank in a step.
        exchange: that carries the rows.
        device, dtype: names, as torch has them.
        steps, warmup: counted and not counted.
        backward: whether gradients are computed too.
        guard: whether all collectives of the plan's layers are compared across ranks.

    """

    plan: Plan
    layers: tuple[int, ...]
    routing: Routing | None
    tokens: int
    exchange: Exchange
    device: str
    dtype: str
    steps: int
    warmup: int
    backward: bool
    guard: bool


def make_job(
    plan: Plan,
    world_size: int,
    member: bool,
    *,
    routing: str,
    tokens_per_rank: int | None,
    layers: str | None,
    steps: int,
    warmup: int,
    hidden: int | None,
    intermediate: int | None,
    dtype: str | None,
    device: str,
    exchange: Any,
    forward_only: bool,
    guard: bool,
) -> tuple[RunJob, list[str]]:
    """Return what to run, and what the user must know about it."""
    device = _device(device, 1 if member else world_size)
    shape = {name: size for name, size in (("hidden", hidden), ("intermediate", intermediate)) if size is not None}
    resized = plan.model_copy(update={"model": plan.model.model_copy(update=shape)})
    statistics = None if routing == "random" else load_routing(routing, plan.model)
    job = RunJob(
        plan=resized,
        layers=_layers(plan, layers),
        routing=statistics,
        tokens=max(round(plan.workload.tokens_per_rank), 1) if tokens_per_rank is None else tokens_per_rank,
        exchange=exchange or plain(plan.exchange),
        device=device,
        dtype=dtype or ("bfloat16" if device == "cuda" else "float32"),
        steps=steps,
        warmup=warmup,
        backward=not forward_only,
        guard=guard,
    )
    notes = [
        f"{name} {size} instead of the {getattr(plan.model, name)} of {plan.model.name}: times are not the model's"
        for name, size in shape.items()
    ]
    if statistics is None:
        notes.append("random routing, all experts equally likely: name the plan's statistics with --routing")
    if guard:
        notes.append("--guard compares all collectives across ranks, which takes time in every phase")
    hosts = len({entry.host for entry in plan.cluster.ranks})
    if not member and hosts > 1:
        notes.append(f"the plan's {hosts} hosts are played by this one: rows are real, links between hosts are not")
    if not member and device == "cpu":
        _check_memory(job)
    return job, notes


def _layers(plan: Plan, chosen: str | None) -> tuple[int, ...]:
    numbers = [entry.layer for entry in plan.layers]
    if chosen is None:
        last, most = len(numbers) - 1, min(len(numbers), MOST_LAYERS)
        return tuple(sorted({numbers[round(i * last / max(most - 1, 1))] for i in range(most)}))
    if chosen == "all":
        return tuple(numbers)
    parts = [part.strip() for part in chosen.split(",")]
    for part in parts:
        if not part.isdecimal() or int(part) not in numbers:
            raise BadInput(
                f"--layers {chosen[:60]}: {part[:20]!r} is no layer of the plan ({numbers[0]}..{numbers[-1]})"
            )
    return tuple(sorted({int(part) for part in parts}))


def _device(device: str, ranks_here: int) -> str:
    """Return cpu or cuda: one GPU for each rank, or none."""
    import torch  # noqa: PLC0415 - seconds, which `epplan --help` need not take

    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cuda" and gpus < ranks_here:
        raise BadInput(f"--device cuda: {ranks_here} ranks, {gpus} GPUs here; one for each rank is needed")
    return "cuda" if gpus >= ranks_here else "cpu"


def _check_memory(job: RunJob) -> None:
    """Refuse weights that this machine cannot hold."""
    model = job.plan.model
    one = 3 * model.hidden * model.intermediate * DTYPE_BYTES[job.dtype]
    slots = sum(len(row) for entry in job.plan.layers if entry.layer in job.layers for row in entry.slots)
    need = one * ((2 if job.backward else 1) * slots + 2 * model.experts)  # with gradients; and a layer for the probes
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_PHYS_PAGES" in os.sysconf_names else need
    if need > have:
        raise BadInput(
            f"the experts of {len(job.layers)} layers on {job.plan.num_ranks} ranks take {need / 1e9:.1f} GB, this "
            f"machine has {have / 1e9:.1f} GB: run fewer --layers, or smaller experts with --hidden and --intermediate"
        )
