"""The shell scripts that users copy run as they stand, on a small model, a topology file and a recorder's dump."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "examples"
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 512,
    "moe_intermediate_size": 256,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 2,
}


def run(folder, script, *arguments):
    """Run a script in a folder with this environment's `epplan`; it must end well."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TOKENS": "256"}
    done = subprocess.run(
        [str(SCRIPTS / script), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Hold what the scripts are given: a topology file, a dump of SGLang's recorder, a model."""
    torch = pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("scripts")
    counts = np.random.default_rng(0).zipf(1.6, (5, 2, 16)).clip(max=500)
    torch.save({"logical_count": torch.from_numpy(counts)}, path / "dump.pt")
    (path / "config.json").write_text(json.dumps(CONFIG))
    epplan = Path(sys.executable).parent / "epplan"
    command = [epplan, "topology", "export", "hgx-h100:1", "--to", "nccl-xml", "-o", "nccl_topo.xml"]
    subprocess.run(command, cwd=path, check=True, timeout=60, capture_output=True)
    run(path, "plan_my_cluster.sh", "nccl_topo.xml", "1", "dump.pt", "config.json", "3")
    return path


def test_plan_my_cluster(folder):
    plan = json.loads((folder / "plan.json").read_text())
    assert len(plan["cluster"]["ranks"]) == 8
    location = json.loads((folder / "expert_location.json").read_text())
    assert np.shape(location["physical_to_logical_map"]) == (2, 24)


@pytest.mark.parametrize(("min_gain", "answer"), [("-100", "new plan in force"), ("99", "the plan in force stays")])
def test_replan_nightly(folder, monkeypatch, min_gain, answer):
    """With a gain that any plan reaches the plan is replaced, with one that none reaches it is not."""
    before = (folder / "plan.json").read_bytes()
    monkeypatch.setenv("MIN_GAIN", min_gain)
    printed = run(folder, "replan_nightly.sh", "plan.json", "dump.pt", "config.json", "cluster.yaml", "3")
    assert answer in printed
    assert ((folder / "plan.json").read_bytes() == before) == (min_gain == "99")
    assert sorted(path.name for path in folder.glob("plan.json*")) == ["plan.json"], "a temporary file stays behind"


def test_choose_nics(folder):
    """Faster NICs are never slower, and both lines are printed."""
    printed = run(folder, "choose_nics.sh", "nccl_topo.xml", "1", "dump.pt", "config.json", "3").splitlines()
    lines = [line for line in printed if line.startswith(("400G", "800G"))]
    assert [line.split(",")[0] for line in lines] == ["400G", "800G"]
    times = [float(line.rsplit(" ", 1)[1].replace(",", "")) for line in lines]
    assert times[1] <= times[0] * 1.01
