"""How fast the wires of a lab are, and how they are shaped so that TCP fills them.

Every wire has its graph bandwidth times one factor, so that ratios between tiers stay. Measured with
`benchmarks/lab_links.py` (Linux 6.18, 2 cores shared with other work; three clusters of 8 and 16 ranks, 9:1 between
tiers, NICs of 15 and 30 Mbit/s; share of the time that the busiest link allows, and nothing sent twice):

    one to one, NIC       0.99 to 1.00        all-to-all posted at once, even         0.90 to 0.995
    fan-in, both tiers    0.95 to 1.00        the same, uneven                        0.97 to 0.999
    one to one, scale-up  0.93 to 0.99        in rounds (rank + i), even or uneven    0.46 to 0.67: rounds mix tiers

(One to one on all scale-up wires at once wants the whole machine: 0.78 while other work took most of the cores.)

- Nothing is ever dropped. The queue of a wire holds the full TCP window of every pair of ranks whose bytes cross it, as
  flow control does on InfiniBand; so there is no loss to collapse from.
- Windows are bounded (`WINDOW_BYTES`), so that queues, and with them round trips, stay short.
- Jumbo frames, and no segmentation offload: one packet of the kernel is one frame, headers are under 1 %, and the
  counters count what a wire would carry. 1500 byte frames reach 0.96 instead of 0.99 one to one, and cost more cores.
- A burst of two frames or half a millisecond: a larger one lets short messages through for nothing, a smaller one
  loses rate when the timer is late.
- reno, no slow start after idle, and patience: a retransmission timeout of 10 s, for slow wires have queues of seconds
  (with the usual 0.2 s up to 12 % of the bytes were sent twice).
- Senders take turns where a NIC relays for neighbours (`shaping`).
"""

from __future__ import annotations

import os

from topologies.errors import BadInput
from topologies.graph import Cluster

FRAME_BYTES = 9000  # MTU: what IP may fill of a frame
HEADER_BYTES = 66  # Ethernet 14, IPv4 20, TCP 20 with time stamps 12
SEGMENT_BYTES = FRAME_BYTES + 14 - HEADER_BYTES
WINDOW_BYTES = 256 * 1024
LEAST_PACKET_BYTES = 512  # which a packet takes of a window, however short it is
BURST_US = 500.0
PUSH_BYTES_PER_S_PER_CORE = 150e6
"""What a lab may push in all, per core: a half of what two cores pushed through shaped wires (measured, 5 Gbit/s with
Python sockets), so that the processes keep room to compute."""
MAX_NIC_BYTES_PER_S = 25e6  # 200 Mbit/s: beyond, timers are late and small messages quicker than processes wake up
MIN_BYTES_PER_S = 10_000.0

GBPS = 1e9  # bytes/s in a GB/s


def default_scale(cluster: Cluster, cores: int | None = None) -> float:
    """Return the factor from graph bandwidth to lab bandwidth at which this machine can fill all wires at once.

    All ranks send at full rate on all their wires in the worst case; and NICs get at most 200 Mbit/s.
    """
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    kinds, gbps = cluster.link_kinds, cluster.link_gbps
    used = {rank.node for rank in cluster.ranks}
    names, source = cluster.wiring.node_names, cluster.wiring.source
    scale_up = sum(
        float(gbps[i]) for i, kind in enumerate(kinds) if kind in ("nvlink", "xgmi") and names[int(source[i])] in used
    )
    nics = [float(gbps[i]) for i, kind in enumerate(kinds) if kind == "nic"]
    scale = cores * PUSH_BYTES_PER_S_PER_CORE / max((scale_up + sum(nics) / 2) * GBPS, 1.0)
    return min(scale, MAX_NIC_BYTES_PER_S / (max(nics) * GBPS)) if nics else scale


def scale_for_nic(cluster: Cluster, mbit_per_s: float) -> float:
    """Return the factor at which the fastest NIC has `mbit_per_s`; raise BadInput where the cluster has none."""
    nics = [float(gbps) for gbps, kind in zip(cluster.link_gbps, cluster.link_kinds, strict=True) if kind == "nic"]
    if not nics:
        raise BadInput(f"{cluster.name}: no NIC is cabled, so --nic-mbit means nothing; give --scale")
    return mbit_per_s * 1e6 / 8 / (max(nics) * GBPS)


def burst_bytes(bytes_per_s: float) -> int:
    """Return the bytes that a wire may send at once after a pause: two frames, or half a millisecond."""
    return int(max(2 * (FRAME_BYTES + 14), bytes_per_s * BURST_US * 1e-6))


def queue_packets(pairs: int) -> int:
    """Return the queue of a wire that `pairs` pairs of ranks cross: room for the window of each, so that none drops."""
    return max(2, pairs) * WINDOW_BYTES // LEAST_PACKET_BYTES
