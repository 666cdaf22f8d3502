"""The fitted time of one exchange kernel: start-up, wire bytes by tier, and copies, in ranges of message size.

    t = sum over terms ( us of the term * value of the term ),   one set of us for each range of message size

The terms are physical: what grows with ranks, with tokens, with the bytes that leave a rank, with one message. NCCL
changes its protocol (16 KiB a peer) and the channels that it uses with the message size, DeepEP its pipelining: hence
the ranges.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from planner.provenance import FitReport, Span

FloatArray = NDArray[np.float64]

TERMS = {
    "start": "us once, where all ranks sit in one host",
    "inter_start": "us once, where they span hosts",
    "doubling": "us for each doubling of the ranks (log2)",
    "token": "us for each token of a rank, in one host",
    "inter_token": "us for each token of a rank, across hosts",
    "wire": "us for each KB (1000 bytes) that a rank sends to other ranks, in one host",
    "inter_wire": "us for each KB that a rank sends out of its host (to other ranks, inside one NVLink domain)",
    "inter_sm_wire": "us x SMs for each such KB: what the streaming multiprocessors of the kernel can copy",
    "message": "us for each KB of the message to one peer, which is also the size of the copy to itself",
}
DEFAULT_SMS = 24.0  # streaming multiprocessors of DeepEP's normal kernels in DeepEP's own tests


class MessageRegime(BaseModel):
    """The terms for one range of message sizes; `max_bytes` is its upper end, null for none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_bytes: float | None = Field(default=None, gt=0)
    us: dict[str, float]

    @field_validator("us")
    @classmethod
    def _known(cls, us: dict[str, float]) -> dict[str, float]:
        for term, value in us.items():
            if term not in TERMS:
                raise ValueError(f"unknown term {term!r}; known: {', '.join(TERMS)}")
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"term {term!r} is {value}, must be finite and at least 0")
        return us


class ExchangeModel(BaseModel):
    """One kernel, one operation, one row type, on one kind of machine.

    Attributes:
        kernel: nccl-alltoall, deepep-low-latency, deepep-normal, trtllm-alltoall, or executor-NAME.
        exchange: the planner's exchange that moves the same rows; null where it carries any (a plain all-to-all).
        op: alltoall, dispatch, combine, prepare, ...
        host_ranks: ranks in a host.
        link_gbps, inter_link_gbps: rated speed of a rank's port inside and out of the host; null where not known.
        inter_kind: kind of link that leaves the host: nic, or nvlink in a rack-wide domain.
        regimes: ascending by `max_bytes`.
        spans: range of each quantity that was fitted on: ranks, message_bytes, ...

    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kernel: str
    exchange: str | None
    system: str
    op: str
    dtype: str
    host_ranks: int = Field(ge=1)
    link_gbps: float | None = Field(default=None, gt=0)
    inter_link_gbps: float | None = Field(default=None, gt=0)
    inter_kind: str = "nic"
    regimes: tuple[MessageRegime, ...] = Field(min_length=1)
    spans: dict[str, Span]
    fit: FitReport

    def regime(self, message_bytes: float) -> MessageRegime:
        """Return the terms for a message size."""
        for regime in self.regimes:
            if regime.max_bytes is None or message_bytes <= regime.max_bytes:
                return regime
        return self.regimes[-1]

    def predict_us(self, values_X: Mapping[str, FloatArray], message_bytes_X: FloatArray) -> FloatArray:
        """Return microseconds of X cases, from the value of every term and the message size of each case."""
        ends = [np.inf if regime.max_bytes is None else regime.max_bytes for regime in self.regimes]
        which_X = np.minimum(np.searchsorted(ends, message_bytes_X), len(ends) - 1)
        us_X = np.zeros(len(message_bytes_X))
        for term, value_X in values_X.items():
            us_X += np.array([regime.us.get(term, 0.0) for regime in self.regimes])[which_X] * value_X
        return us_X

    def fixed_us(self, regime: MessageRegime, *, ranks: int, hosts: int, tokens: float, message_bytes: float) -> float:
        """Return what does not depend on which links carry the bytes: start-up, per-token work and copies."""
        us = regime.us
        far = hosts > 1
        return (
            us.get("inter_start" if far else "start", 0.0)
            + us.get("doubling", 0.0) * float(np.log2(max(ranks, 1)))
            + us.get("inter_token" if far else "token", 0.0) * tokens
            + us.get("message", 0.0) * message_bytes / 1e3
        )

    def wire_gbps(self, regime: MessageRegime, *, inter: bool) -> float | None:
        """Return the GB/s at which a rank's bytes leave it; None where this was not measured to cost anything."""
        if inter:
            us_kb = regime.us.get("inter_wire", 0.0) + regime.us.get("inter_sm_wire", 0.0) / DEFAULT_SMS
        else:
            us_kb = regime.us.get("wire", 0.0)
        return 1.0 / us_kb if us_kb > 0 else None

    def measures_inter(self) -> bool:
        """Return whether it was fitted on ranks in several hosts."""
        return any("inter_wire" in regime.us or "inter_start" in regime.us for regime in self.regimes)
