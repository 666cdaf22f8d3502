"""NCCL's and RCCL's own link speeds, in GB/s per direction: what they take a link that a topology file names to carry.

Sources: NVIDIA/nccl v2.30.7 src/graph/topo.h and topo.cc; ROCm/rccl src/graph/topo.h. They are about 80 % of the
signalling rate, so a cluster read from a dump is a little slower than the same system in the catalog, which holds
vendor figures.
"""

from __future__ import annotations

BOARD_GBPS = 5000.0  # LOC_BW: parts of one board
MAX_NVLINKS = 18  # of one GPU, up to Blackwell

# compute capability -> one NVLink
_NVLINK = {60: 18.0, 70: 20.0, 80: 20.0, 86: 12.0, 90: 20.6, 100: 40.1}
# GCN architecture -> one xGMI link; older dumps print 910 for gfx90a and drop the gfx
_XGMI = {"90a": 36.0, "910": 36.0, "94": 48.0, "95": 48.0}
_XGMI_OLDER = 24.0

# GT/s -> 100 Mb/s of payload on one lane; what is not listed counts as generation 3
_PCIE_LANE = {2.5: 15, 5.0: 30, 8.0: 60, 16.0: 120, 32.0: 240, 64.0: 480}
PCIE_DEFAULT_GTS = 8.0
PCIE_DEFAULT_WIDTH = 16
NET_DEFAULT_MBPS = 10_000

# first model id of family 6 -> between two Intel CPUs
_INTEL = ((0xCF, 40.0), (0x8F, 22.0), (0x55, 10.0), (0, 6.0))
_AMD, _ARM, _POWER, _ZHAOXIN = 16.0, 6.0, 32.0, 6.0


def nvlink_gbps(compute_capability: int) -> float:
    """Return the speed of one NVLink of a GPU, by compute capability times ten (90 for Hopper)."""
    if compute_capability in (86, 89):
        return _NVLINK[86]
    known = [sm for sm in _NVLINK if sm <= compute_capability and sm != 86]
    return _NVLINK[max(known)] if known else _NVLINK[80]


def xgmi_gbps(gcn: str) -> float:
    """Return the speed of one xGMI link, by GCN architecture (gfx942 for MI300X)."""
    chip = gcn.lower().removeprefix("gfx")
    return next((gbps for prefix, gbps in _XGMI.items() if chip.startswith(prefix)), _XGMI_OLDER)


def pcie_gbps(gts: float, width: int) -> float:
    """Return the speed of a PCIe link of `width` lanes at `gts` GT/s.

    >>> pcie_gbps(32.0, 16), pcie_gbps(16.0, 16), pcie_gbps(8.0, 8)
    (48.0, 24.0, 6.0)
    """
    return width * _PCIE_LANE.get(gts, _PCIE_LANE[PCIE_DEFAULT_GTS]) / 80


def pcie_speed_known(gts: float) -> bool:
    """Return whether a PCIe signalling rate is one of the standard's."""
    return gts in _PCIE_LANE


def net_gbps(mbps: int) -> float:
    """Return the speed of a network port that reports Mb/s; one that reports none counts as 10 Gb/s."""
    return (mbps if mbps > 0 else NET_DEFAULT_MBPS) / 8000


def cpu_link_gbps(arch: str, vendor: str, family: int, model: int) -> float:
    """Return the speed between two CPUs of a host."""
    if arch == "arm64":
        return _ARM
    if arch == "ppc64":
        return _POWER
    if vendor == "AuthenticAMD":
        return _AMD
    if vendor.strip() in ("Shanghai", "CentaurHauls"):
        return _ZHAOXIN
    return next(gbps for first, gbps in _INTEL if family != 6 or max(model, 0) >= first)
