"""vllm-ascend: `expert_map_path` (vllm-project/vllm-ascend, tests/ut/eplb/core/a2/expert_map.json).

`{"moe_layer_count": L, "layer_list": [{"layer_id": 0.., "device_count": R, "device_list": [{"device_id": r,
"device_expert": [expert of each local slot]}]}]}`. `layer_id` counts MoE layers; the lists become one tensor, so every
device has equally many experts in every layer.
"""

from __future__ import annotations

import json

from planner.exporters.target import Deployment, Limits, Target


def write(deployment: Deployment) -> bytes:
    """Return the JSON file, one line a layer."""
    layers = []
    for number, placement in enumerate(deployment.placements):
        devices = [{"device_id": rank, "device_expert": row} for rank, row in enumerate(placement.slots())]
        layers.append(json.dumps({"layer_id": number, "device_count": len(devices), "device_list": devices}))
    body = ",\n".join(layers)
    return f'{{"moe_layer_count": {len(layers)}, "layer_list": [\n{body}\n]}}\n'.encode()


def hint(deployment: Deployment, file: str) -> str:
    """Return the option of vllm serve."""
    config = {"eplb_config": {"expert_map_path": file, "num_redundant_experts": deployment.redundant()}}
    return f"--enable-expert-parallel --additional-config '{json.dumps(config)}'"


TARGET = Target("vllm-ascend eplb_config.expert_map_path (JSON)", Limits(), write, hint)
