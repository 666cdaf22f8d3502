"""The training example on 2 gloo ranks, very small: it plans anew, migrates, is killed, and goes on where it saved."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from planner import load_plan

ROOT = Path(__file__).parents[2]
TINY = {
    "model_type": "mixtral", "vocab_size": 256, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 32,
    "max_position_embeddings": 64, "dtype": "float32",
}  # fmt: skip


def command(folder: Path, *options: object) -> subprocess.Popen[str]:
    (folder / "tiny.json").write_text(json.dumps(TINY))
    sizes = ["--batch", 2, "--context", 32, "--config", folder / "tiny.json", "--folder", folder / "run"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launch, *map(str, [ROOT / "examples" / "train_moe.py", *sizes, *options])],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def until(job: subprocess.Popen[str], mark: str, patience_s: float = 240.0) -> list[str]:
    """Return what a job prints up to a line with `mark`, or to its end; the job is killed when patience is."""
    timer = threading.Timer(patience_s, lambda: os.killpg(job.pid, signal.SIGKILL))
    timer.start()
    assert job.stdout is not None
    lines = []
    for line in job.stdout:
        lines.append(line.rstrip())
        if mark in line:
            break
    timer.cancel()
    return lines


def wait_until_gone(folder: Path, patience_s: float = 60.0) -> None:
    """Wait until no rank works in the folder: those of a killed launcher end by themselves, and may save until then."""
    until_s = time.monotonic() + patience_s
    while any(str(folder).encode() in line for line in command_lines()):
        assert time.monotonic() < until_s, "a rank outlives its launcher"
        time.sleep(0.1)


def command_lines() -> Iterator[bytes]:
    """Yield the command line of every process."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            yield (process / "cmdline").read_bytes()


def test_it_follows_its_routing_and_survives_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    job = command(tmp_path, "--steps", 100_000, "--replan-every", 8, "--save-every", 4)
    lines = until(job, "migrated.")
    os.killpg(job.pid, signal.SIGKILL)
    with job:
        pass
    wait_until_gone(tmp_path)
    text = "\n".join(lines)
    assert re.search(r"step 0: loss [45]\.\d+, [\d,.]+ ms measured", text), text
    assert "step 8: planning for the routing in routing-8.npz, beside the training" in text, text
    assert re.search(r"ms predicted, \d+ of \d+ slots to fetch; pays after [\d.]+ steps, \d+ are left", text), text
    assert re.search(r"migrated\. \d+ of \d+ slots fetched .* ms measured \([\d.,]+ ms predicted\)", text), text
    run = tmp_path / "run"
    saved = max(int(path.name[5:]) for path in run.glob("step-*") if path.suffix != ".partial")
    assert load_plan(run / "plan.json").num_ranks == 2
    again = command(tmp_path, "--steps", saved + 3, "--save-every", 4)
    with again:
        text = "\n".join(until(again, "no such line"))
    assert again.returncode == 0, text
    assert f"step {saved}: goes on from" in text
    assert re.search(r"no migration; [\d,.]+ ms a step measured \(median\)|no migration; nan", text), text
    assert (run / f"step-{saved + 3}").is_dir()


def test_a_wrong_config_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    environment = os.environ | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    (tmp_path / "no.json").write_text('{"vocab_size": 9}')
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "train_moe.py", "--config", tmp_path / "no.json", "--folder", tmp_path],
        env=environment | {"MASTER_PORT": "0", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert re.search(r"^rank 0: .*no\.json: needs a model_type", done.stderr, re.MULTILINE), done.stderr
    assert "Traceback" not in done.stderr
