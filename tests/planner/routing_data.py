"""Where the tests of routing find real files, and how they make small ones."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from planner.model import MoEModel

DATA = Path(os.environ.get("EPPLAN_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
RECORDER = "routing/sglang_recorder/expert_distribution_recorder_1k1k.pt"
SGLANG = [
    f"routing/sglang_deepseek_r1/{name}.json"
    for name in (
        "prefill_in512", "prefill_in1024", "prefill_in2048", "prefill_in1000out1000", "decode_in1000out1000",
        "decode_in2000out100",
    )
]  # fmt: skip
ESFT = [f"routing/esft_deepseek_v2_lite/{name}_topk.npz" for name in ("intent", "summary")]

# The machine's load is no property of the code, and the first draw of text loads Unicode tables for seconds.
FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def check_one_line(error: Exception, start: str = "file: ") -> None:
    """The message of a BadInput is one line that begins with the file."""
    text = str(error)
    assert text.startswith(start)
    assert "\n" not in text
    assert len(text) < 600


def data_file(name: str) -> Path:
    """Return a file of the shared data, or skip the test."""
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is missing; set EPPLAN_DATA")
    return path


def small_model(**changes) -> MoEModel:
    """A model of 4 layers, the first of them dense, with 8 experts and top-2."""
    fields = {
        "name": "small", "experts": 8, "top_k": 2, "hidden": 16, "intermediate": 32, "num_layers": 4,
        "moe_layers": (1, 2, 3),
    }  # fmt: skip
    return MoEModel(**(fields | changes))


def json_bytes(counts) -> bytes:
    return json.dumps({"logical_count": counts}).encode()


def npz_bytes(**arrays) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()
