"""Megatron-LM, DeepSpeed and all trainers in which rank r owns experts r*n to (r+1)*n - 1: a permutation of ids.

Such trainers take no placement (megatron/core/transformer/moe/moe_layer.py slices the ids), so the checkpoint is
renumbered: in each layer new expert j is old expert `new_to_old[j]`, and rows of the router and its bias move along
(`planner.permute` does it to a Hugging Face checkpoint). With group-limited routing the groups are blocks of
consecutive ids, so a permutation must map whole groups to whole groups, or routing itself would change. The file is
JSON of our own: `{"format": "epplan.expert-permutation", "version": 1, "model", "experts", "groups", "ranks", "layers":
[{"layer": 3, "new_to_old": [...]}]}`, MoE layers only.
"""

from __future__ import annotations

import json

from planner.exporters.target import Deployment, Limits, Target

FORMAT = "epplan.expert-permutation"
VERSION = 1


def write(deployment: Deployment) -> bytes:
    """Return the JSON file, one line a layer."""
    model = deployment.model
    head = {
        "format": FORMAT, "version": VERSION, "model": model.name, "experts": model.experts, "groups": model.groups,
        "ranks": deployment.num_ranks,
    }  # fmt: skip
    rows = deployment.phy2log_LP().tolist()
    layers = [json.dumps({"layer": n, "new_to_old": row}) for n, row in zip(model.moe_layers, rows, strict=True)]
    body = ",\n".join(layers)
    return f'{json.dumps(head)[:-1]}, "layers": [\n{body}\n]}}\n'.encode()


def hint(deployment: Deployment, file: str) -> str:
    """Return what to do with the file."""
    return (
        f"epplan permute CHECKPOINT --by {file} -o NEW_CHECKPOINT, then convert and train the new checkpoint with "
        f"--expert-model-parallel-size {deployment.num_ranks}"
    )


TARGET = Target(
    "Megatron-LM, DeepSpeed: a permutation of expert ids (JSON)",
    Limits(replicas=False, whole_groups=True),
    write,
    hint,
)
