"""The command line as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app import main as entry

Ended = tuple[object, str, str]
"""Exit code, stdout, stderr."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Call the real entry point with arguments; return (exit code, stdout, stderr)."""

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr("sys.argv", ["epplan", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            entry.main()
        captured = capfd.readouterr()
        return ended.value.code, captured.out, captured.err

    return call


@pytest.fixture
def loads(tmp_path: Path) -> Callable[..., Path]:
    """Counts of two layers of OLMoE's 64 experts, written as the user would have them."""

    def write(counts: Any = None, name: str = "loads.json") -> Path:
        if counts is None:
            counts = np.random.default_rng(0).zipf(1.6, (16, 64)).clip(1, 200) * 10
        path = tmp_path / name
        path.write_text(json.dumps({"logical_count": np.asarray(counts).tolist()}))
        return path

    return write
