"""What a profile says of one step: start-up and link efficiencies of an exchange, and what experts cost on each rank.

Everything is chosen from the workload, never from a placement, so that no plan gains by hopping over an edge between
two ranges. Every answer carries a label (see `planner.provenance`) and, where it is not the profile's best, the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.exchange_model import ExchangeModel
from planner.expert_model import ExpertModel
from planner.placement import FloatArray
from planner.provenance import Provenance
from planner.timing import Exchange, TimingProfile, alpha_us
from planner.workload import Workload
from topologies import BadInput, Cluster
from topologies.graph import Gpu

MESSAGE_SLACK = 2.0  # a mean message this many times outside the measured sizes still counts as measured
SCALE_UP_KINDS = ("nvlink", "xgmi")


@dataclass(frozen=True)
class ExchangePrices:
    """Start-up time and efficiency of every kind of link for one phase of one step.

    Attributes:
        alpha_us: everything that does not depend on which links carry the bytes.
        efficiency: part of the rated speed that each kind of link reaches.
        label, reasons: provenance, and why it is not `fitted`.

    """

    alpha_us: float
    efficiency: dict[str, float]
    label: Provenance
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ExpertPrices:
    """Time of a rank's experts: launch + slot_us_R * active slots + row_us_R * rows."""

    launch_us: float
    slot_us_R: FloatArray
    row_us_R: FloatArray
    label: Provenance
    reasons: tuple[str, ...] = ()


def exchange_prices(
    profile: TimingProfile,
    cluster: Cluster,
    exchange: Exchange,
    op: str,
    *,
    dtype: str,
    tokens: float,
    message_bytes: float,
) -> ExchangePrices:
    """Return the prices of one phase (`op` is dispatch or combine) with a mean message of so many bytes to a peer."""
    base = profile.regime(message_bytes)
    default = ExchangePrices(
        alpha_us(base, exchange, cluster.num_domains),
        dict(base.efficiency),
        "vendor" if profile.status == "uncalibrated" else "extrapolated",
        () if profile.status == "uncalibrated" else (f"{profile.name} has no measurements of the {exchange} {op}",),
    )
    model = _exchange_model(profile, cluster, exchange, op, dtype)
    if model is None:
        return default
    regime = model.regime(message_bytes)
    fixed_us = model.fixed_us(
        regime, ranks=cluster.num_ranks, hosts=cluster.num_hosts, tokens=tokens, message_bytes=message_bytes
    )
    if op == "dispatch":
        fixed_us += _prepare_us(profile, model, cluster, tokens)
    reasons = _doubts(model, cluster, message_bytes)
    efficiency = dict(base.efficiency)
    inside = model.wire_gbps(regime, inter=cluster.num_hosts > 1 and model.inter_kind in SCALE_UP_KINDS)
    for kind in SCALE_UP_KINDS:
        if inside is None and regime.us.get("message", 0.0) > 0:
            efficiency[kind] = 1.0  # what bytes cost is in the message term
        elif inside is not None and model.link_gbps is not None:
            efficiency[kind] = min(inside / model.link_gbps, 1.0)
    if cluster.num_domains > 1:
        if model.measures_inter() and model.inter_kind == "nic":
            outside = model.wire_gbps(regime, inter=True)
            if outside is not None and model.inter_link_gbps is not None:
                efficiency["nic"] = efficiency["fabric"] = min(outside / model.inter_link_gbps, 1.0)
        else:
            fixed_us = max(fixed_us, default.alpha_us)
    return ExchangePrices(fixed_us, efficiency, "extrapolated" if reasons else "fitted", tuple(reasons))


def _exchange_model(
    profile: TimingProfile, cluster: Cluster, exchange: Exchange, op: str, dtype: str
) -> ExchangeModel | None:
    """Return the model that describes this phase best: its GPU, its kernel before a plain all-to-all, its row type."""
    candidates = [
        model for model in profile.exchanges if model.exchange in (exchange, None) and model.op in (op, "alltoall")
    ]
    return max(
        candidates,
        key=lambda model: (
            _is_gpu(model.system, cluster.gpus[0]),
            cluster.num_domains == 1 or model.measures_inter(),
            model.exchange == exchange,
            model.dtype == dtype,
        ),
        default=None,
    )


def _prepare_us(profile: TimingProfile, model: ExchangeModel, cluster: Cluster, tokens: float) -> float:
    """Return the time of the kernel's exchange of counts before its dispatch, where it has one."""
    for other in profile.exchanges:
        if (other.kernel, other.system, other.op) == (model.kernel, model.system, "prepare"):
            size = 8.0 * tokens
            return other.fixed_us(
                other.regime(size), ranks=cluster.num_ranks, hosts=cluster.num_hosts, tokens=tokens, message_bytes=size
            )
    return 0.0


def _is_gpu(system: str, gpu: Gpu) -> bool:
    """Return whether a table's system (h200_sxm) is made of this GPU (H200 SXM 141 GB)."""
    token = system.lower().replace("-", "_").split("_", maxsplit=1)[0]
    return token in gpu.name.lower().replace("-", " ").split()


def _doubts(model: ExchangeModel, cluster: Cluster, message_bytes: float) -> list[str]:
    """Return why a model's answer for this step goes beyond what it was fitted on."""
    what = f"{model.kernel} {model.op}"
    asked = {"ranks": float(cluster.num_ranks), "hosts": float(cluster.num_hosts), "message_bytes": message_bytes}
    reasons = (
        []
        if _is_gpu(model.system, cluster.gpus[0])
        else [f"{what} was measured on {model.system}, not on {cluster.gpus[0].name}"]
    )
    for name, value in asked.items():
        span = model.spans.get(name)
        if span is not None and not span.holds(value, MESSAGE_SLACK if name == "message_bytes" else 1.0):
            reasons.append(
                f"{what}: {name.replace('_', ' ')} {value:,.0f} outside the measured "
                f"{span.low:,.0f} to {span.high:,.0f}"
            )
    return reasons


def expert_prices(workload: Workload, profile: TimingProfile, share: float = 1.0) -> ExpertPrices:
    """Return what experts cost on every rank, straightened at the step's mean rows per active expert.

    `share` is the part of the step's rows that run at once (a micro-batch).

    A fitted roofline is convex in the rows of an expert; the straight line touches it at the mean, so it is exact for
    an even load and a lower estimate for experts far above or below it. `epplan accuracy` uses the whole curve.
    """
    active = 1.0 - np.exp(-workload.load_LE)
    mean_rows = float(share * workload.load_LE.sum() / max(active.sum(), 1e-9))
    model = _expert_model(profile, workload)
    slot_us, row_us = [], []
    for gpu, rank in zip(workload.cluster.gpus, workload.cluster.ranks, strict=True):
        weight_us, one_row_us = rated_us(workload, gpu)
        slot, row = (
            _straightened(model, workload, mean_rows, weight_us, one_row_us)
            if model is not None
            else _vendor_line(profile, weight_us, one_row_us)
        )
        slot_us.append(slot / rank.speed)
        row_us.append(row / rank.speed)
    label: Provenance
    if model is None:
        launch_us, reasons = profile.compute.launch_us, []
        if profile.status == "calibrated":
            reasons = [f"{profile.name} has no measurements of {workload.model.dispatch_dtype} experts"]
        label = "extrapolated" if reasons else "vendor"
    else:
        launch_us, reasons = model.launch_us, _expert_doubts(model, workload, mean_rows)
        label = "extrapolated" if reasons else "fitted"
    return ExpertPrices(launch_us, np.array(slot_us), np.array(row_us), label, tuple(reasons))


def rated_us(workload: Workload, gpu: Gpu) -> tuple[float, float]:
    """Return (us to read one expert's weights, us to compute one row of it) at a GPU's rated speeds."""
    model = workload.model
    peak = gpu.peak_tflops.get(model.dispatch_dtype, gpu.peak_tflops.get("bf16"))
    if peak is None:
        raise BadInput(f"GPU {gpu.name}: no peak TFLOP/s for {model.dispatch_dtype}; it has {sorted(gpu.peak_tflops)}")
    return model.expert_bytes / (gpu.hbm_gbps * 1e3), model.flops_per_row / (peak * 1e6)


def _expert_model(profile: TimingProfile, workload: Workload) -> ExpertModel | None:
    dtype, gpu = workload.model.dispatch_dtype, workload.cluster.gpus[0]
    candidates = [model for model in profile.experts if model.dtype == dtype]
    return max(candidates, key=lambda model: _is_gpu(model.system, gpu), default=None)


def _vendor_line(profile: TimingProfile, weight_us: float, row_us: float) -> tuple[float, float]:
    constants = profile.compute
    computed_us = row_us / constants.flop_efficiency
    return weight_us / constants.hbm_efficiency + constants.half_rows * computed_us, computed_us


def _straightened(
    model: ExpertModel, workload: Workload, mean_rows: float, weight_us: float, row_us: float
) -> tuple[float, float]:
    """Return (us a slot, us a row) of the tangent of the roofline at the mean."""
    step = 1e-3
    rows_X = mean_rows * np.array([1 - step, 1.0, 1 + step])
    mean_X, weight_X, row_X = (np.full(3, value) for value in (mean_rows, weight_us, row_us))
    below, here, above = model.expert_us(rows_X, mean_X, weight_X, row_X)
    slope = max((above - below) / (2 * step * mean_rows), 1e-9)
    gather_us = model.gather_us_per_byte() * 2 * workload.model.hidden
    return max(here - slope * mean_rows, 0.0) + model.slot_us, slope + gather_us


def _expert_doubts(model: ExpertModel, workload: Workload, mean_rows: float) -> list[str]:
    gpu = workload.cluster.gpus[0]
    what = f"{model.kernel} {model.dtype} experts"
    reasons = [] if _is_gpu(model.system, gpu) else [f"{what} were measured on {model.system}, not on {gpu.name}"]
    for name, value in (("tokens_per_expert", mean_rows), ("hidden", float(workload.model.hidden))):
        span = model.spans.get(name)
        if span is not None and not span.holds(value, 2.0):
            reasons.append(
                f"{what}: {name.replace('_', ' ')} {value:,.0f} outside the measured "
                f"{span.low:,.2g} to {span.high:,.0f}"
            )
    return reasons


def shared_expert_us(workload: Workload, profile: TimingProfile) -> float:
    """Return the time of the shared experts on a rank's own tokens, on the fastest GPU: it hides the dispatch least."""
    model, constants = workload.model, profile.compute
    part = model.shared_intermediate / model.intermediate
    times = []
    for gpu, rank in zip(workload.cluster.gpus, workload.cluster.ranks, strict=True):
        weight_us, row_us = rated_us(workload, gpu)
        read_us = part * weight_us / constants.hbm_efficiency
        full_us = part * row_us * workload.tokens_per_rank / constants.flop_efficiency
        times.append(max(read_us, full_us) / rank.speed)
    return min(times)
