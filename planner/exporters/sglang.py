"""SGLang: `--init-expert-location FILE.json` (sgl-project/sglang, srt/eplb/expert_location.py).

The file is `{"physical_to_logical_map": [[expert, ...P], ...]}` and nothing else: other keys become keyword arguments
of `init_by_mapping` and raise TypeError. There is a row for every transformer layer, dense ones included (their rows
are not read; they get the trivial map `slot % experts`); P = experts + redundant, a multiple of the ranks; slot p lies
on rank p // (P / ranks). Which copy a token uses is SGLang's choice (`--ep-dispatch-algorithm`).
"""

from __future__ import annotations

import json

import numpy as np

from planner.exporters.target import Deployment, Limits, Target
from planner.placement import IntArray


def every_layer_map(deployment: Deployment) -> IntArray:
    """Return the map [transformer layers, P]; dense layers hold the trivial map."""
    moe_LP = deployment.phy2log_LP()
    rows = np.tile(np.arange(moe_LP.shape[1]) % deployment.model.experts, (deployment.model.num_layers, 1))
    rows[list(deployment.model.moe_layers)] = moe_LP
    return rows


def write(deployment: Deployment) -> bytes:
    """Return the JSON file."""
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in every_layer_map(deployment).tolist())
    return f'{{"physical_to_logical_map": [\n{rows}\n]}}\n'.encode()


def hint(deployment: Deployment, file: str) -> str:
    """Return the flags of sglang.launch_server."""
    return (
        f"--init-expert-location {file} --ep-size {deployment.num_ranks} "
        f"--ep-num-redundant-experts {deployment.redundant()} --ep-dispatch-algorithm static"
    )


TARGET = Target("SGLang --init-expert-location (JSON)", Limits(), write, hint)
