"""The README's main path and its Python, run as printed on stand-ins for the reader's files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.docs.blocks import ROOT, commands, epplan_arguments, python_blocks

README = ROOT / "README.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Hold a file of expert loads under the name that the README uses."""
    path = tmp_path_factory.mktemp("reader")
    counts = np.random.default_rng(0).zipf(1.5, (58, 256)).clip(max=10_000)
    (path / "prefill_in1024.json").write_text(json.dumps({"logical_count": counts.tolist()}))
    return path


def main_path():
    calls = [words for command in commands(README) for words in epplan_arguments(command)]
    first = next(i for i, words in enumerate(calls) if words[0] == "topology")
    return calls[first : first + 3]


def test_the_main_path(folder):
    """Three commands; the plan at its time limit of zero, which is the same path without the search."""
    assert [words[0] for words in main_path()] == ["topology", "plan", "evaluate"]
    for words in main_path():
        quick = ["--time-limit", "0"] if words[0] == "plan" else []
        command = [str(Path(sys.executable).parent / "epplan"), *words, *quick]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    assert "plan.json" in done.stdout
    assert len(json.loads((folder / "plan.json").read_text())["layers"]) == 58


@pytest.mark.parametrize("block", python_blocks(README))
def test_python_is_python_and_its_imports_are_there(block):
    """What a block takes from our packages is there; what stands around it (a model, a loop) is the reader's."""
    compile(block, "README.md", "exec")
    imports = [line for line in block.splitlines() if line.startswith(("from ", "import "))]
    exec("\n".join(imports), {})
