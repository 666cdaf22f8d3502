"""omni-infer: `placement_pattern*.npy` (omni-ai-npu/omni-infer, omni_placement).

An int32 cube [devices, MoE layers, experts] of 0 and 1: whether the device holds the expert. Devices and layers may
differ in how many they hold. The order of a device's slots is not stored (it is that of the ids).
"""

from __future__ import annotations

import io

import numpy as np

from planner.exporters.target import Deployment, Limits, Target


def write(deployment: Deployment) -> bytes:
    """Return the .npy file."""
    cube = np.zeros((deployment.num_ranks, len(deployment.placements), deployment.model.experts), dtype=np.int32)
    for row, placement in enumerate(deployment.placements):
        cube[placement.rank_S, row, placement.expert_S] = 1
    stream = io.BytesIO()
    np.save(stream, cube, allow_pickle=False)
    return stream.getvalue()


def hint(deployment: Deployment, file: str) -> str:
    """Return the setting of omni_placement."""
    return f"pattern_path: {file} in the omni_placement config, on {deployment.num_ranks} devices"


TARGET = Target("omni-infer placement pattern (.npy)", Limits(uneven_slots=True), write, hint)
