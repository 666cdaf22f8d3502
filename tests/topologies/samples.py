"""Small hand-written inputs, and the shared data files where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA = (
    Path(os.environ.get("EPPLAN_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data").resolve() / "topologies"
)


def data_file(name: str) -> Path:
    """Return a shared topology file; skip the test where the data is not there."""
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"no shared data at {DATA} (set EPPLAN_DATA)")
    return path


def gpu(index: int, inner: str = "", *, busid: str | None = None, device: str = "0x2330") -> str:
    """Return a <pci> with a GPU in it."""
    return (
        f'<pci busid="{busid or f"0000:1{index}:00.0"}" class="0x030200" vendor="0x10de" device="{device}" '
        f'link_speed="32.0 GT/s PCIe" link_width="16"><gpu dev="{index}" sm="90" rank="{index}" gdr="1">{inner}</gpu>'
        "</pci>"
    )


def nic(index: int, mbps: int = 400_000, *, ports: int = 1, width: int = 16) -> str:
    """Return a <pci> with a NIC of one or more ports in it."""
    nets = "".join(
        f'<net name="mlx5_{index}_{port}" dev="{index * ports + port}" speed="{mbps}" port="{port + 1}" latency="1.5" '
        f'guid="0x{index}{port}" maxconn="131072" gdr="1"/>'
        for port in range(ports)
    )
    return (
        f'<pci busid="0000:2{index}:00.0" class="0x020700" vendor="0x15b3" device="0x1021" '
        f'link_speed="32.0 GT/s PCIe" link_width="{width}"><nic>{nets}</nic></pci>'
    )


def bridge(index: int, inner: str) -> str:
    """Return a PCIe switch around devices."""
    return f'<pci busid="0000:0{index}:00.0" class="0x060400" link_speed="32.0 GT/s PCIe" link_width="16">{inner}</pci>'


def cpu(numa: int, inner: str, *, host: str = "0xa") -> str:
    """Return a <cpu> of one host."""
    return (
        f'<cpu host_hash="{host}" numaid="{numa}" affinity="f" arch="x86_64" vendor="GenuineIntel" familyid="6" '
        f'modelid="143">{inner}</cpu>'
    )


def system(*cpus: str) -> bytes:
    """Return a topology file."""
    return f'<system version="1">{"".join(cpus)}</system>'.encode()


SWITCHES = "".join(f'<nvlink target="0000:c{i}:00.0" count="9" tclass="0x068000"/>' for i in (3, 4))
HIDDEN = '<nvlink target="fffffff:ff:ff.0" count="18" tclass="0x068000"/>'


def two_sockets(links: str = SWITCHES, **nic_fields: int) -> bytes:
    """Return a host of four GPUs, each beside its NIC under a switch, two on either CPU."""
    pairs = [bridge(i, gpu(i, links) + nic(i, **nic_fields)) for i in range(4)]
    return system(cpu(0, pairs[0] + pairs[1]), cpu(1, pairs[2] + pairs[3]))


MATRIX = """\
\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tNIC1\tNIC2\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tNV18\tNV18\tPIX\tNODE\tSYS\t0-31\t0\t\tN/A
GPU1\tNV18\t X \tNV18\tNV18\tNODE\tPXB\tSYS\t0-31\t0\t\tN/A
GPU2\tNV18\tNV18\t X \tNV18\tSYS\tSYS\tPHB\t32-63\t1\t\tN/A
GPU3\tNV18\tNV18\tNV18\t X \tSYS\tSYS\tNODE\t32-63\t1\t\tN/A
NIC0\tPIX\tNODE\tSYS\tSYS\t X \tNODE\tSYS
NIC1\tNODE\tPXB\tSYS\tSYS\tNODE\t X \tSYS
NIC2\tSYS\tSYS\tPHB\tNODE\tSYS\tSYS\t X

Legend:

  X    = Self
  NV#  = Connection traversing a bonded set of # NVLinks

NIC Legend:

  NIC0: mlx5_0
  NIC1: mlx5_1
  NIC2: mlx5_bond_0
"""
