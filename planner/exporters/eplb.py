"""The three tensors of deepseek-ai/EPLB's `rebalance_experts`, as .npz for any tool that speaks its vocabulary.

phy2log int64 [layers, P]: expert of each slot, slot p on GPU p // (P / GPUs); log2phy int64 [layers, experts, most
copies]: slots of each expert, padded with -1; logcnt int64 [layers, experts]: how many.
"""

from __future__ import annotations

import io

import numpy as np

from planner.exporters.target import Deployment, Limits, Target
from planner.placement import IntArray


def write(deployment: Deployment) -> bytes:
    """Return the .npz file."""
    phy2log_LP = deployment.phy2log_LP()
    logcnt_LE = np.stack([placement.copies_E for placement in deployment.placements])
    stream = io.BytesIO()
    np.savez_compressed(stream, phy2log=phy2log_LP, log2phy=_log2phy(phy2log_LP, logcnt_LE), logcnt=logcnt_LE)
    return stream.getvalue()


def _log2phy(phy2log_LP: IntArray, logcnt_LE: IntArray) -> IntArray:
    log2phy = np.full((*logcnt_LE.shape, int(logcnt_LE.max())), -1, dtype=np.int64)
    for row, expert_P in enumerate(phy2log_LP):
        order = np.argsort(expert_P, kind="stable")
        first_E = np.cumsum(logcnt_LE[row]) - logcnt_LE[row]
        copy_P = np.arange(len(order)) - first_E[expert_P[order]]
        log2phy[row, expert_P[order], copy_P] = order
    return log2phy


def hint(deployment: Deployment, file: str) -> str:
    """Return how the file is read."""
    return f"numpy.load({file!r}): phy2log, log2phy, logcnt for {deployment.num_ranks} GPUs"


TARGET = Target("deepseek-ai/EPLB phy2log, log2phy, logcnt (.npz)", Limits(), write, hint)
