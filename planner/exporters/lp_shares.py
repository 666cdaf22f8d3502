"""Static replica probabilities: SGLang's experimental `SGLANG_EXPERIMENTAL_LPLB_STATIC_PROBS` (sglang-das #386).

A torch file `{"physical_to_logical_map": int64 [transformer layers, P], "physical_mass": float32 [same]}`. The mass of
a slot is the part of the layer's tokens that it serves; within an expert, masses are in the proportion of its copies'
shares, and only that proportion decides which copy a token uses. Experts are given equal demand here. SGLang refuses
masses whose map is not the placement in force, so that placement is written beside the file, as `--to sglang` writes
it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from planner.exporters import sglang
from planner.exporters.target import Deployment, Limits, Target
from planner.exporters.torch_file import torch_file


def write(deployment: Deployment) -> bytes:
    """Return the torch file."""
    map_LP = sglang.every_layer_map(deployment)
    experts = deployment.model.experts
    copies_LP = np.stack([np.bincount(row, minlength=experts)[row] for row in map_LP])
    mass_LP = 1.0 / (experts * copies_LP)
    for layer, placement in zip(deployment.model.moe_layers, deployment.placements, strict=True):
        mass_LP[layer] = placement.share_DS[0] / experts
    return torch_file({"physical_to_logical_map": map_LP, "physical_mass": mass_LP.astype(np.float32)})


def hint(deployment: Deployment, file: str) -> str:
    """Return the settings."""
    return (
        f"SGLANG_EXPERIMENTAL_LPLB_STATIC_PROBS={file}, and --init-expert-location {Path(file).with_suffix('.json')} "
        f"--ep-dispatch-algorithm lp --ep-size {deployment.num_ranks} "
        f"--ep-num-redundant-experts {deployment.redundant()}"
    )


TARGET = Target(
    "SGLang static replica probabilities (torch .pt, and the map as .json)",
    Limits(shares="copy"),
    write,
    hint,
    beside=(".json", sglang.write),
)
