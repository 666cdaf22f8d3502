"""What a cluster looks like to engines: the rank-to-rank cost matrix of SGLang's topology-aware EPLB.

sgl-project/sglang #37923 (open), `--eplb-topology FILE.json`: a square matrix, finite, not negative, zero on the
diagonal, rows and columns in the order of MoE-EP ranks. It is written as a bare list of rows.
"""

from __future__ import annotations

import json

import numpy as np

from topologies.errors import BadInput
from topologies.graph import Cluster, FloatArray
from topologies.routes import routes


def cost_matrix(cluster: Cluster) -> FloatArray:
    """Return [R, R] microseconds that a megabyte (1e6 bytes) takes from each rank to each other, alone on its route.

    That is the time of the slowest link of the route at line rate; latencies are left out. Raises BadInput where two
    ranks have no route.
    """
    matrix = routes(cluster)
    us_per_mb = matrix.multiply(1000.0 / cluster.link_gbps).tocsr()
    cost_RR = np.asarray(us_per_mb.max(axis=1).todense(), dtype=np.float64).reshape(cluster.num_ranks, -1)
    cut = np.argwhere((cost_RR <= 0) & ~np.eye(cluster.num_ranks, dtype=bool))
    if cut.size:
        raise BadInput(f"{cluster.name}: no route from rank {cut[0][0]} to rank {cut[0][1]}; their cost is not finite")
    return cost_RR


def cost_matrix_json(cluster: Cluster) -> str:
    """Return the file, one row a line, to six significant digits."""
    rows = ([float(f"{cost:.6g}") for cost in row] for row in cost_matrix(cluster).tolist())
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
