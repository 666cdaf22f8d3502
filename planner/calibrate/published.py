"""DeepEP's published table (V1, H800) by the model that was fitted to our tables of H200 nodes, nothing fitted again.

The published bandwidths are logical: they count the rows that stay in the own rank (NVLink) or node (RDMA). So the time
behind each is  tokens * distinct targets * row bytes / bandwidth, and the prediction moves only what crosses a wire:

    t = start-up + max( RDMA wire bytes / B_rdma, NVLink wire bytes / B_nvlink )

with start-ups and efficiencies from the fit, times the H800's link speeds (NVLink 200 GB/s, ConnectX-7 50 GB/s).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from planner.calibrate.cases import distinct, fp8_row_bytes
from planner.calibrate.exchanges import nearest_model
from planner.calibrate.systems import system_figures
from planner.exchange_model import ExchangeModel
from topologies.errors import BadInput

KERNEL = "deepep-normal"
TOP_GROUPS = 4.0  # nodes that a token of DeepSeek-V3 may reach; the table's setting


def published_normal(table: pd.DataFrame, models: Sequence[ExchangeModel], system: str) -> pd.DataFrame:
    """Return the normal-kernel rows of the published table with `measured_us`, `predicted_us` and `error`.

    `system` names the fit to use. Raises BadInput where there is no such fit.
    """
    rows = table[table["mode"] == "normal"].reset_index(drop=True)
    ranks, nodes, tokens, hidden, top_k, experts = (
        rows[name].to_numpy(float) for name in ("ep", "nodes", "tokens_per_rank", "hidden", "topk", "experts")
    )
    row_bytes = np.where(rows["op"] == "dispatch", fp8_row_bytes(hidden), 2 * hidden)
    reached = np.minimum(nodes, TOP_GROUPS)
    on_nodes = distinct(reached, experts * reached / nodes, top_k)
    on_ranks = distinct(ranks * reached / nodes, experts * reached / nodes, top_k)
    logical = tokens * row_bytes * np.where(nodes > 1, on_nodes, on_ranks)
    measured_us = logical / (rows["bandwidth_GBps"].to_numpy(float) * 1e3)
    rdma_kb = tokens * row_bytes * on_nodes * (nodes - 1) / nodes / 1e3
    nvlink_kb = tokens * row_bytes * on_ranks * (ranks - 1) / ranks / 1e3
    predicted_us = [
        _predict(
            models,
            system,
            str(rows["gpu"][i]),
            str(rows["op"][i]),
            nodes[i] > 1,
            rdma_kb[i],
            nvlink_kb[i],
            tokens[i] * row_bytes[i],
        )
        for i in range(len(rows))
    ]
    return rows[["op", "ep", "nodes", "bandwidth_GBps"]].assign(
        measured_us=measured_us, predicted_us=predicted_us, error=np.array(predicted_us) / measured_us - 1
    )


def _predict(
    models: Sequence[ExchangeModel],
    system: str,
    gpu: str,
    op: str,
    far: bool,
    rdma_kb: float,
    nvlink_kb: float,
    size: float,
) -> float:
    model = nearest_model(models, KERNEL, system, op, "any")
    there = system_figures(gpu)
    if model is None or model.link_gbps is None or model.inter_link_gbps is None:
        raise BadInput(f"no fit of {KERNEL} {op} with known link speeds to explain the published table with")
    if there.link_gbps is None or there.inter_link_gbps is None:
        raise BadInput(f"the catalog has no link speeds of {gpu}")
    regime = model.regime(size)
    nvlink, rdma = model.wire_gbps(regime, inter=False), model.wire_gbps(regime, inter=True)
    nvlink_us = nvlink_kb / (nvlink * there.link_gbps / model.link_gbps) if nvlink else 0.0
    rdma_us = rdma_kb / (rdma * there.inter_link_gbps / model.inter_link_gbps) if rdma and far else 0.0
    return regime.us.get("inter_start" if far else "start", 0.0) + max(nvlink_us, rdma_us)
