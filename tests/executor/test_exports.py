"""The public names of the executor: all there, none more, and NumPy users need no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import executor


def test_every_public_name_is_found() -> None:
    assert sorted(executor.__all__) == executor.__all__
    for name in executor.__all__:
        assert getattr(executor, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = executor.nothing


def test_the_numpy_function_needs_no_torch() -> None:
    code = "import sys; from executor import expert_parallel_dispatch; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
