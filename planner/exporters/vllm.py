"""vLLM: the files of proposals that are under discussion; no released vLLM loads a placement (as of v0.32).

| target | proposal | file |
|---|---|---|
| vllm-49572 | vllm-project/vllm #49572, `initial_expert_map_path` | JSON `[[expert of each slot], ...]`, by MoE layer |
| vllm-34811 | #34811, `--expert-placement-file` | JSON `{"expert_to_ep_rank": [rank of each expert]}`, for all layers |
| vllm-14544 | #14544, `--expert-map-path` | torch int32 [MoE layers, ranks, experts]: slot on the rank, or -1 |
| vllm-hygon | HYGON-AI/vllm-plugin-das, `expert_map_path` | JSON, `physical_to_logical_map` by model class, version 2 |

In all of them slot p lies on rank p // (P / ranks). The file of #53022 is not written: its keys are not documented.
"""

from __future__ import annotations

import json

import numpy as np

from planner.exporters.target import Deployment, Limits, Target
from planner.exporters.torch_file import torch_file


def _rows(deployment: Deployment) -> str:
    return ",\n".join(json.dumps(row, separators=(",", ":")) for row in deployment.phy2log_LP().tolist())


def _write_49572(deployment: Deployment) -> bytes:
    return f"[\n{_rows(deployment)}\n]\n".encode()


def _write_34811(deployment: Deployment) -> bytes:
    placement = deployment.placements[0]
    rank_E = np.empty(deployment.model.experts, dtype=np.int64)
    rank_E[placement.expert_S] = placement.rank_S
    return (json.dumps({"expert_to_ep_rank": rank_E.tolist()}) + "\n").encode()


def _write_14544(deployment: Deployment) -> bytes:
    shape = (len(deployment.placements), deployment.num_ranks, deployment.model.experts)
    slot_LRE = np.full(shape, -1, dtype=np.int32)
    for row, placement in enumerate(deployment.placements):
        first_R = np.cumsum(placement.slots_R) - placement.slots_R
        local_S = np.arange(len(placement.rank_S)) - first_R[placement.rank_S]
        slot_LRE[row, placement.rank_S, placement.expert_S] = local_S
    return torch_file(slot_LRE)


def _write_hygon(deployment: Deployment) -> bytes:
    model, redundant = deployment.model, deployment.redundant()
    entry = {
        "record_kind": "proposal",
        "model_name": model.name,
        "model_class": model.name,
        "num_moe_layers": len(deployment.placements),
        "num_logical_experts": model.experts,
        "num_physical_experts": model.experts + redundant,
        "num_redundant_experts": redundant,
        "physical_to_logical_map": deployment.phy2log_LP().tolist(),
    }
    document = {
        "version": 2,
        "format": "vllm_offline_eplb_physical_to_logical_by_model",
        "model_maps": {model.name: entry},
    }
    return (json.dumps(document) + "\n").encode()


def _eplb(deployment: Deployment, **fields: str) -> str:
    config = fields | {"num_redundant_experts": deployment.redundant()}
    return f"--enable-expert-parallel --enable-eplb --eplb-config '{json.dumps(config)}'"


TARGETS = {
    "vllm-49572": Target(
        "vLLM proposal #49572 initial_expert_map_path (JSON)",
        Limits(),
        _write_49572,
        lambda deployment, file: _eplb(deployment, initial_expert_map_path=file) + " (with the branch of #49572)",
    ),
    "vllm-34811": Target(
        "vLLM proposal #34811 --expert-placement-file (JSON)",
        Limits(replicas=False, uneven_slots=True, one_map=True),
        _write_34811,
        lambda _, file: f"--enable-expert-parallel --expert-placement-file {file} (with the branch of #34811)",
    ),
    "vllm-14544": Target(
        "vLLM proposal #14544 --expert-map-path (.pth)",
        Limits(),
        _write_14544,
        lambda _, file: f"--enable-expert-parallel --expert-map-path {file} (with the branch of #14544)",
    ),
    "vllm-hygon": Target(
        "vLLM with HYGON's plugin, eplb_config.expert_map_path (JSON, version 2)",
        Limits(),
        _write_hygon,
        lambda deployment, file: (
            _eplb(deployment, expert_map_path=file)
            + "; rename the key of model_maps to the model's class, such as DeepseekV3ForCausalLM"
        ),
    ),
}
