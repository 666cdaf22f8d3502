"""A roofline fitted to half of the measured expert times, held against the other half.

Needs the planner's packages (pandas, pydantic, scipy), not a GPU: what was measured on a bare machine is fitted later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def fit_half(rows: Sequence[dict[str, Any]], device: str, date: str) -> dict[str, Any]:
    """Fit to every second case, in order of measurement, and predict the others; return errors and the fitted model.

    Args:
        rows: of `benchmarks.on_gpu.experts`.
        device: as the driver names the GPU.
        date: of the measurement.

    Raises:
        BadInput: the GPU is not in the catalog, so that there are no rated figures to hold times against.

    """
    import pandas as pd  # noqa: PLC0415  # not on a bare GPU machine

    from planner.calibrate.exchanges import FitSource  # noqa: PLC0415
    from planner.calibrate.experts import build_expert_cases, fit_experts, predict_experts  # noqa: PLC0415
    from planner.calibrate.tables import Table, gpu_token  # noqa: PLC0415

    frame = pd.DataFrame(rows).assign(system=gpu_token(device))
    numbers = ["ranks", "tokens", "hidden", "intermediate", "top_k", "experts", "slots", "time_us"]
    cases = build_expert_cases(Table("gpu.json", "experts", frame.astype(dict.fromkeys(numbers, float))))
    fitted_X = np.arange(len(frame)) % 2 == 0
    models = fit_experts(cases.where(fitted_X), FitSource("gpu.json", date, device, "every second case"))
    held_out = cases.where(~fitted_X)
    predicted_us, _ = predict_experts(models, held_out)
    error_X = np.abs(predicted_us / held_out.time_us - 1)
    return {
        "fitted_cases": int(fitted_X.sum()),
        "predicted_cases": int((~fitted_X).sum()),
        "median_error": float(np.median(error_X)),
        "p95_error": float(np.quantile(error_X, 0.95)),
        "largest_error": float(error_X.max()),
        "models": [model.model_dump(mode="json") for model in models],
    }
