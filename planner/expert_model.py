"""The fitted time of a rank's experts: a roofline whose efficiencies are curves over tokens per expert.

    t_rank   = launch + slots * slot_us + row bytes / gather + sum over active experts of t_expert(rows, mean rows)
    t_expert = ( (weights / (hbm_eff * HBM))^q + (rows * FLOPs / (flop_eff * peak))^q )^(1/q)

Both efficiencies are read at  rows^tilt * mean^(1 - tilt): a kernel picks its tile for the mean of the step, so that an
expert with many more rows than the mean runs many small tiles (measured: tilt is near 0 in TensorRT-LLM).

Shapes: X experts or cases.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from planner.provenance import FitReport, Span

FloatArray = NDArray[np.float64]


class ExpertModel(BaseModel):
    """One kernel and weight type on one GPU.

    Attributes:
        launch_us: fixed time of the layer's kernels.
        slot_us: for every slot of the rank, active or not.
        gather_gbps: GB/s of the reordering of rows; null where it costs nothing that was measured.
        tokens_per_expert: knots of the curves, ascending; between them interpolated in the logarithm.
        hbm_efficiency, flop_efficiency: at the knots, of `hbm_gbps` and `peak_tflops`.
        sharpness: q; 1 adds reading and computing up, a large one takes the slower of the two.
        tilt: how far an expert's own rows, rather than the mean, set its efficiency.

    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kernel: str
    system: str
    dtype: str
    hbm_gbps: float = Field(gt=0)
    peak_tflops: float = Field(gt=0)
    launch_us: float = Field(ge=0)
    slot_us: float = Field(ge=0)
    gather_gbps: float | None = Field(default=None, gt=0)
    tokens_per_expert: tuple[float, ...] = Field(min_length=1)
    hbm_efficiency: tuple[float, ...]
    flop_efficiency: tuple[float, ...]
    sharpness: float = Field(ge=1)
    tilt: float = Field(ge=0, le=1)
    spans: dict[str, Span]
    fit: FitReport

    @model_validator(mode="after")
    def _curves_match(self) -> Self:
        knots = len(self.tokens_per_expert)
        for name in ("hbm_efficiency", "flop_efficiency"):
            curve = getattr(self, name)
            if len(curve) != knots:
                raise ValueError(f"{name} has {len(curve)} values for {knots} knots of tokens_per_expert")
            if not all(0 < value <= 1 for value in curve):
                raise ValueError(f"{name}: every efficiency must be above 0 and at most 1")
        if list(self.tokens_per_expert) != sorted(set(self.tokens_per_expert)) or self.tokens_per_expert[0] <= 0:
            raise ValueError("tokens_per_expert must be positive and ascending")
        return self

    def expert_us(
        self, rows_X: FloatArray, mean_X: FloatArray, weight_us_X: FloatArray, row_us_X: FloatArray
    ) -> FloatArray:
        """Return the microseconds of single experts, launch and slots apart.

        Args:
            rows_X: rows of each expert, above 0.
            mean_X: mean rows of an expert in the same step.
            weight_us_X: to read its weights at the rated HBM speed.
            row_us_X: to compute one row at the rated peak.

        """
        curve = (self.tokens_per_expert, self.hbm_efficiency, self.flop_efficiency)
        return roofline_us(rows_X, mean_X, weight_us_X, row_us_X, curve, self.sharpness, self.tilt)

    def gather_us_per_byte(self) -> float:
        """Return microseconds for each byte of a row that is brought into order."""
        return 0.0 if self.gather_gbps is None else 1e-3 / self.gather_gbps


def roofline_us(
    rows_X: FloatArray,
    mean_X: FloatArray,
    weight_us_X: FloatArray,
    row_us_X: FloatArray,
    curve: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]],
    sharpness: float,
    tilt: float,
) -> FloatArray:
    """Return the microseconds of experts; `curve` is (tokens per expert, HBM efficiency, FLOP efficiency)."""
    knots, hbm, flop = (np.log(np.asarray(values)) for values in curve)
    at_X = tilt * np.log(np.maximum(rows_X, 1.0)) + (1 - tilt) * np.log(np.maximum(mean_X, 1.0))
    read_us_X = weight_us_X * np.exp(-np.interp(at_X, knots, hbm))
    compute_us_X = rows_X * row_us_X * np.exp(-np.interp(at_X, knots, flop))
    top_X = np.maximum(read_us_X, compute_us_X)
    us_X: FloatArray = top_X * ((read_us_X / top_X) ** sharpness + (compute_us_X / top_X) ** sharpness) ** (
        1 / sharpness
    )
    return us_X
