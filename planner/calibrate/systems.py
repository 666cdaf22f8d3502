"""What the catalog knows of the machine behind a table's `system` column (h200_sxm, gb200, H800, ...)."""

from __future__ import annotations

from dataclasses import dataclass

from topologies.catalog import catalog_names, gpu_entries, load_system

ROW_TYPES = {"bfloat16": "bf16", "float16": "bf16", "half": "bf16", "fp8_block": "fp8", "float8": "fp8"}
WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0 + 4 / 128**2, "nvfp4": 0.5 + 1 / 16, "fp32": 4.0}


@dataclass(frozen=True)
class SystemFigures:
    """Rated speeds of one rank, GB/s and TFLOP/s; None where the catalog does not know the system.

    Attributes:
        host_ranks: ranks in a host; 8 where not known.
        link_gbps, inter_link_gbps: its port inside and out of the host.
        inter_kind: nic, or nvlink where the scale-up domain spans hosts.

    """

    host_ranks: int = 8
    link_gbps: float | None = None
    inter_link_gbps: float | None = None
    inter_kind: str = "nic"
    hbm_gbps: float | None = None
    peak_tflops: tuple[tuple[str, float], ...] = ()


def system_figures(system: str) -> SystemFigures:
    """Return the figures of a system by the name that a table gives it; empty ones where the catalog has none such."""
    token = system.lower().replace("-", "_").split("_", maxsplit=1)[0]
    names = [name for name in catalog_names() if token in name.split("-")]
    if not names:
        return SystemFigures()
    entry = load_system(names[0])
    gpu = gpu_entries()[entry.gpu].figures
    scale_up = entry.scale_up
    peers = 1 if scale_up.layout == "switch" else entry.gpus_per_host - 1
    link_gbps = scale_up.lanes * scale_up.lane_gbps * peers
    nic_gbps = entry.nics.gbps * entry.nics.per_host / entry.gpus_per_host
    rack = entry.domain_hosts > 1
    return SystemFigures(
        host_ranks=entry.gpus_per_host,
        link_gbps=link_gbps,
        inter_link_gbps=link_gbps if rack else nic_gbps,
        inter_kind=scale_up.kind if rack else "nic",
        hbm_gbps=gpu.hbm_gbps,
        peak_tflops=tuple(sorted(gpu.peak_tflops.items())),
    )


def row_type(dtype: str) -> str:
    """Return our name (bf16, fp8, nvfp4) of a type as benchmark tables write it."""
    return ROW_TYPES.get(dtype.lower(), dtype.lower())


def peak_tflops(figures: SystemFigures, dtype: str) -> float | None:
    """Return the rated peak of a weight type: exact, else that of fp8 for smaller types, else of bf16."""
    peaks = dict(figures.peak_tflops)
    return peaks.get(row_type(dtype)) or peaks.get("bf16")
