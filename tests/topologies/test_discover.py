"""Live discovery, with programs that print what real ones print."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from tests.topologies.samples import MATRIX
from topologies import BadInput
from topologies.discover import discover
from topologies.importing import Knowledge


@pytest.fixture
def fake_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder on the PATH with an nvidia-smi, and port rates in place of the kernel's."""
    (tmp_path / "matrix").write_text(MATRIX)
    program = tmp_path / "nvidia-smi"
    names = "\\n".join(["NVIDIA H100 80GB HBM3"] * 4)
    program.write_text(f'#!/bin/sh\nif [ "$1" = topo ]; then cat {tmp_path}/matrix; else printf "{names}\\n"; fi\n')
    program.chmod(0o755)
    for device in ("mlx5_0", "mlx5_1"):
        port = tmp_path / "ports" / device / "ports" / "1"
        port.mkdir(parents=True)
        (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("topologies.discover.PORTS", tmp_path / "ports")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    return tmp_path


def test_models_rates_and_matrix(fake_machine: Path) -> None:  # noqa: ARG001 - sets the PATH
    reading = discover(Knowledge())
    (host,) = reading.hosts
    assert {host.nodes[i].model for i in host.of_kind("gpu")} == {"h100-80gb"}
    assert [host.nodes[i].gbps for i in host.of_kind("nic")] == [50.0, 50.0, None]
    assert any("NVML is not asked" in note for note in reading.notes)


def test_nvml_counts_links_that_are_up(fake_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    class NVMLError(Exception):
        pass

    nvml = types.SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 4,
        nvmlDeviceGetHandleByIndex=lambda gpu: gpu,
        nvmlDeviceGetNvLinkState=lambda gpu, link: int(gpu != 2 or link < 16),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    (host,) = discover(Knowledge()).hosts
    assert [host.nodes[i].lanes for i in host.of_kind("gpu")] == [18, 18, 16, 18]


def test_what_a_machine_lacks(fake_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fake_machine / "nvidia-smi").write_text("#!/bin/sh\necho driver not loaded >&2\nexit 9\n")
    with pytest.raises(BadInput, match="failed with exit code 9: driver not loaded"):
        discover(Knowledge())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BadInput, match="nvidia-smi is not on the PATH"):
        discover(Knowledge())
