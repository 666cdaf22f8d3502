"""From a table of exchanges to cases: for each measured operation its physical terms, message size and time.

Shapes: X cases. Bytes on the wire follow the exchange that the kernel runs: every selection (low latency), one row per
host (normal), one row per rank (NVLink all-to-alls). The own rank's or own host's part never crosses a wire.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from planner.calibrate.systems import row_type, system_figures
from planner.calibrate.tables import Table
from planner.exchange_model import DEFAULT_SMS, FloatArray

# kernel -> (the planner's exchange that it carries, terms of its model in order of preference)
# DeepEP's low-latency kernels have one protocol for all sizes, all others may change theirs with the message size;
# they are measured with 8 ranks a host, so that hosts tell `start` and `doubling` apart or nothing does: it comes last
ONE_PROTOCOL = ("deepep-low-latency",)
KERNELS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "nccl-alltoall": (None, ("start", "inter_start", "doubling", "wire", "inter_wire", "message")),
    "deepep-low-latency": ("pairwise", ("doubling", "inter_start", "start", "wire", "inter_wire")),
    "deepep-normal": ("two-level", ("start", "inter_start", "wire", "inter_wire", "inter_sm_wire")),
    "trtllm-alltoall": ("dedup", ("start", "inter_start", "doubling", "token", "inter_token", "wire", "inter_wire")),
    "executor-pairwise": ("pairwise", ("start", "inter_start", "doubling", "wire", "inter_wire")),
    "executor-dedup": ("dedup", ("start", "inter_start", "doubling", "wire", "inter_wire")),
    "executor-two-level": ("two-level", ("start", "inter_start", "doubling", "wire", "inter_wire")),
}
KEYS = ["kernel", "system", "op", "dtype"]


@dataclass(frozen=True, eq=False)
class Cases:
    """Measured operations of exchanges.

    Attributes:
        keys: [X] kernel, system, op, dtype, ranks, hosts, tokens (a rank), size (bytes that a rank sends).
        values: [X] value of every term.
        message_bytes: [X] mean bytes from one rank to one peer, which selects the regime.
        time_us: [X] measured.

    """

    keys: pd.DataFrame
    values: dict[str, FloatArray]
    message_bytes: FloatArray
    time_us: FloatArray

    def where(self, mask_X: FloatArray) -> Cases:
        """Return the cases of a mask."""
        mask = np.asarray(mask_X, dtype=bool)
        values = {term: value[mask] for term, value in self.values.items()}
        return Cases(self.keys[mask].reset_index(drop=True), values, self.message_bytes[mask], self.time_us[mask])


def distinct(targets_X: FloatArray, experts_X: FloatArray, top_k_X: FloatArray) -> FloatArray:
    """Return the expected distinct targets of a token whose k experts are drawn evenly without repetition.

        G * (1 - C(E - E/G, k) / C(E, k))        for E experts on G targets

    >>> distinct(np.array([8.0]), np.array([256.0]), np.array([8.0])).round(2).tolist()
    [5.29]
    """
    miss_X = np.ones(len(targets_X))
    for drawn in range(int(top_k_X.max(initial=0))):
        left_X = np.maximum(experts_X - experts_X / targets_X - drawn, 0.0) / np.maximum(experts_X - drawn, 1.0)
        miss_X = np.where(drawn < top_k_X, miss_X * left_X, miss_X)
    distinct_X: FloatArray = targets_X * (1.0 - miss_X)
    return distinct_X


def fp8_row_bytes(hidden_X: FloatArray) -> FloatArray:
    """Return the bytes of an fp8 row with a float32 scale for every 128 elements (DeepEP)."""
    row_X: FloatArray = hidden_X + 4 * np.ceil(hidden_X / 128)
    return row_X


def build_cases(table: Table) -> Cases:
    """Return the cases of a table of any kind but `experts`."""
    makers = {
        "nccl": _nccl,
        "deepep": _deepep_low_latency,
        "deepep-normal": _deepep_normal,
        "trtllm": _trtllm,
        "executor": _executor,
    }
    return makers[table.kind](table.frame)


def _column(frame: pd.DataFrame, name: str, default: float = np.nan) -> FloatArray:
    values = frame[name].to_numpy(float) if name in frame else np.full(len(frame), default)
    return np.where(np.isnan(values), default, values)


def _cases(
    frame: pd.DataFrame,
    kernel: list[str] | str,
    op: list[str] | str,
    time_us: FloatArray,
    *,
    hosts: FloatArray,
    tokens: FloatArray,
    wire_bytes: FloatArray,
    inter_bytes: FloatArray,
    message_bytes: FloatArray,
    sms: FloatArray | None = None,
) -> Cases:
    """Put the terms together; `wire_bytes` count in one host, `inter_bytes` across hosts."""
    ranks = frame["ranks"].to_numpy(float)
    far = hosts > 1
    sms = np.full(len(frame), DEFAULT_SMS) if sms is None else sms
    values = {
        "start": (~far).astype(float),
        "inter_start": far.astype(float),
        "doubling": np.log2(ranks),
        "token": np.where(far, 0.0, tokens),
        "inter_token": np.where(far, tokens, 0.0),
        "wire": np.where(far, 0.0, wire_bytes / 1e3),
        "inter_wire": np.where(far, inter_bytes / 1e3, 0.0),
        "inter_sm_wire": np.where(far, inter_bytes / 1e3 / sms, 0.0),
        "message": message_bytes / 1e3,
    }
    keys = pd.DataFrame(
        {
            "kernel": kernel,
            "system": frame["system"].to_numpy(),
            "op": op,
            "dtype": [row_type(str(dtype)) for dtype in frame["dtype"]],
            "ranks": ranks.astype(int),
            "hosts": hosts.astype(int),
            "tokens": tokens,
            "size": np.where(far, inter_bytes, wire_bytes),
        }
    )
    return Cases(keys, values, message_bytes, time_us)


def _joined(parts: list[Cases]) -> Cases:
    return Cases(
        pd.concat([part.keys for part in parts], ignore_index=True),
        {term: np.concatenate([part.values[term] for part in parts]) for term in parts[0].values},
        np.concatenate([part.message_bytes for part in parts]),
        np.concatenate([part.time_us for part in parts]),
    )


def _nccl(frame: pd.DataFrame) -> Cases:
    ranks, hosts = frame["ranks"].to_numpy(float), _column(frame, "nodes", 1.0)
    sent = frame["bytes_per_rank"].to_numpy(float)
    cases = _cases(
        frame.assign(dtype="any"),
        "nccl-alltoall",
        "alltoall",
        frame["time_us"].to_numpy(float),
        hosts=hosts,
        tokens=np.zeros(len(frame)),
        wire_bytes=sent * (ranks - 1) / ranks,
        inter_bytes=sent * (hosts - 1) / hosts,
        message_bytes=sent / ranks,
    )
    cases.keys["size"] = sent
    return cases


def _ep_columns(frame: pd.DataFrame) -> tuple[FloatArray, ...]:
    names = ("ranks", "tokens_per_rank", "top_k", "experts", "hidden")
    ranks, tokens, top_k, experts, hidden = (frame[name].to_numpy(float) for name in names)
    return ranks, tokens, top_k, experts, hidden


def _deepep_low_latency(frame: pd.DataFrame) -> Cases:
    """Every selection of another rank is a row of its own; across hosts it leaves by the NIC."""
    ranks, tokens, top_k, _, hidden = _ep_columns(frame)
    hosts = frame["nodes"].to_numpy(float)
    parts = []
    for op, row_bytes in (("dispatch", fp8_row_bytes(hidden)), ("combine", 2 * hidden)):
        selected = tokens * top_k * row_bytes
        parts.append(
            _cases(
                frame.assign(dtype="any"),
                "deepep-low-latency",
                op,
                frame[f"{op}_us"].to_numpy(float),
                hosts=hosts,
                tokens=tokens,
                wire_bytes=selected * (ranks - 1) / ranks,
                inter_bytes=selected * (hosts - 1) / hosts,
                message_bytes=selected / ranks,
            )
        )
    return _joined(parts)


def _deepep_normal(frame: pd.DataFrame) -> Cases:
    """One row per token and rank inside a host, one per token and host across; notify is part of the operation."""
    ranks, tokens, top_k, experts, hidden = _ep_columns(frame)
    hosts = frame["nodes"].to_numpy(float)
    reached = np.minimum(hosts, _column(frame, "top_groups", np.inf))  # group-limited routing stays within some hosts
    visited = distinct(reached, experts * reached / hosts, top_k)
    parts = []
    for op, row_bytes in (("dispatch", fp8_row_bytes(hidden)), ("combine", 2 * hidden)):
        per_host = tokens * visited * row_bytes
        parts.append(
            _cases(
                frame.assign(dtype="any"),
                "deepep-normal",
                op,
                frame[f"{op}_transmit_us"].to_numpy(float) + _column(frame, f"{op}_notify_us", 0.0),
                hosts=hosts,
                tokens=tokens,
                wire_bytes=tokens * distinct(ranks, experts, top_k) * (ranks - 1) / ranks * row_bytes,
                inter_bytes=per_host * (hosts - 1) / hosts,
                message_bytes=tokens * row_bytes,
                sms=_column(frame, f"{op}_sms", DEFAULT_SMS),
            )
        )
    return _joined(parts)


def _trtllm(frame: pd.DataFrame) -> Cases:
    """One row per token and rank over NVLink; `prepare` exchanges counts only and is free of the hidden size."""
    ranks, tokens, top_k, experts, hidden = _ep_columns(frame)
    per_host = np.array([system_figures(str(system)).host_ranks for system in frame["system"]])
    hosts = _column(frame, "nodes", 0.0) if "nodes" in frame else np.ceil(ranks / per_host)
    ops = [str(op).removeprefix("alltoall_") for op in frame["op"]]
    row_bytes = np.array([_trtllm_row_bytes(op, str(d)) for op, d in zip(ops, frame["dtype"], strict=True)]) * hidden
    sent = tokens * distinct(ranks, experts, top_k) * (ranks - 1) / ranks * row_bytes
    return _cases(
        frame,
        "trtllm-alltoall",
        ops,
        frame["time_us"].to_numpy(float),
        hosts=hosts,
        tokens=tokens,
        wire_bytes=sent,
        inter_bytes=sent,
        message_bytes=np.where(
            row_bytes > 0, tokens * distinct(ranks, experts, top_k) / ranks * row_bytes, tokens * 8.0
        ),
    )


def _trtllm_row_bytes(op: str, dtype: str) -> float:
    """Return bytes for each element of the hidden size; nvfp4 carries an 8-bit scale for every 16 elements."""
    if op == "prepare":
        return 0.0
    if op == "combine":
        return 2.0
    return {"fp8": 1.0, "nvfp4": 0.5 + 1 / 16}.get(row_type(dtype), 2.0) if "low_precision" not in op else 0.5 + 1 / 16


def _executor(frame: pd.DataFrame) -> Cases:
    """Measure our own executor; `bytes_out_max` is what the busiest rank sent to other ranks (or out of its domain)."""
    ranks, domains = frame["ranks"].to_numpy(float), frame["domains"].to_numpy(float)
    sent = frame["bytes_out_max"].to_numpy(float)
    kernels = [f"executor-{exchange}" for exchange in frame["exchange"]]
    return _cases(
        frame.assign(dtype="any"),
        kernels,
        [str(phase) for phase in frame["phase"]],
        frame["time_us"].to_numpy(float),
        hosts=domains,
        tokens=_column(frame, "tokens_per_rank", 0.0),
        wire_bytes=sent,
        inter_bytes=sent,
        message_bytes=sent / np.maximum(ranks - 1, 1),
    )
