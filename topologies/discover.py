"""The machine that this runs on: what nvidia-smi, NVML and the kernel say about its GPUs and NICs."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from topologies.errors import BadInput
from topologies.importing import Knowledge, parse_topology
from topologies.reading import Reading, gpu_by_name
from topologies.spec import Host

PORTS = Path("/sys/class/infiniband")
TIMEOUT_SECONDS = 60


def discover(knowledge: Knowledge) -> Reading:
    """Return this host, read from `nvidia-smi topo -m`; BadInput says what the machine lacks."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise BadInput(
            "nvidia-smi is not on the PATH: this machine has no NVIDIA driver, so it has no topology to discover; "
            "copy a NCCL dump (NCCL_TOPO_DUMP_FILE) or the output of `nvidia-smi topo -m` here and import that"
        )
    matrix = _run([program, "topo", "-m"])
    models = _run([program, "--query-gpu=name", "--format=csv,noheader"]).splitlines()
    reading = parse_topology(matrix.encode(), "nvidia-smi topo -m", knowledge)
    host = reading.hosts[0]
    notes = list(reading.notes)
    host, said = _with_models(host, [model.strip() for model in models if model.strip()])
    notes += said
    host, said = _with_port_rates(host)
    notes += said
    host, said = _with_nvml(host)
    return replace(reading, hosts=(host,), notes=(*notes, *said))


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInput(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise BadInput(
            f"{' '.join(command)} failed with exit code {done.returncode}: {said[0] if said else 'no message'}"
        )
    return done.stdout


def _with_models(host: Host, models: list[str]) -> tuple[Host, list[str]]:
    """Set the GPU models by the names that nvidia-smi prints."""
    gpus = iter(models)
    nodes, notes = [], []
    for node in host.nodes:
        if node.kind != "gpu" or node.model is not None:
            nodes.append(node)
            continue
        product = next(gpus, "")
        key = gpu_by_name(product)
        nodes.append(node.model_copy(update={"model": key}))
        notes.append(f"GPU model {product!r} " + ("is not in the catalog" if key is None else f"taken as {key}"))
    return host.model_copy(update={"nodes": tuple(nodes)}), list(dict.fromkeys(notes))


def _with_port_rates(host: Host) -> tuple[Host, list[str]]:
    """Set the speed of NICs from the kernel's port rates (/sys/class/infiniband/NAME/ports/1/rate, in Gb/s)."""
    nodes, notes = [], []
    for node in host.nodes:
        rate = _port_gbps(node.model) if node.kind == "nic" and node.gbps is None and node.model else None
        nodes.append(node if rate is None else node.model_copy(update={"gbps": rate}))
        if rate is not None:
            notes.append(f"{node.name} ({node.model}): {rate:g} GB/s, as the kernel reports its port")
    return host.model_copy(update={"nodes": tuple(nodes)}), notes


def _port_gbps(device: str) -> float | None:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", device):
        return None
    rates = []
    for port in sorted((PORTS / device / "ports").glob("*/rate")):
        try:
            found = re.match(r"([0-9.]+) Gb", port.read_text())
        except OSError:
            continue
        if found:
            rates.append(float(found[1]) / 8)
    return max(rates, default=None)


def _with_nvml(host: Host) -> tuple[Host, list[str]]:
    """Count the NVLinks that are up through NVML, where its Python module is installed."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return host, ["NVML is not asked: the Python module nvidia-ml-py is not installed"]
    try:
        nvml.nvmlInit()
        lanes = [_lanes_up(nvml, gpu) for gpu in range(int(nvml.nvmlDeviceGetCount()))]
    except nvml.NVMLError as error:
        return host, [f"NVML: {error}"]
    counts = iter(lanes)
    nodes = tuple(
        node.model_copy(update={"lanes": next(counts, node.lanes)}) if node.kind == "gpu" else node
        for node in host.nodes
    )
    return host.model_copy(update={"nodes": nodes}), [f"NVML: NVLinks up on each GPU: {', '.join(map(str, lanes))}"]


def _lanes_up(nvml: object, gpu: int) -> int:
    """Return how many NVLinks of a GPU are up; asking past the last link raises."""
    handle = nvml.nvmlDeviceGetHandleByIndex(gpu)  # type: ignore[attr-defined]  # the module is optional and untyped
    up = 0
    for link in range(18):
        try:
            up += int(nvml.nvmlDeviceGetNvLinkState(handle, link)) == 1  # type: ignore[attr-defined]  # as above
        except nvml.NVMLError:  # type: ignore[attr-defined]  # as above
            break
    return up
