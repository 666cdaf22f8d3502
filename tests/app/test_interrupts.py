"""`epplan plan` stopped at random moments by Ctrl-C and SIGTERM: the best valid plan is written, or nothing is."""

import random
import signal
import subprocess
import sys
import time

import pytest

from planner import load_plan

COMMAND = [sys.executable, "-m", "app.main", "plan", "--cluster", "examples/two_small_hosts.yaml", "--workers", "2"]
LONGEST_S = 12.0  # a run of this command takes some seconds; later moments are after its end


def interrupted(folder, seed: int) -> tuple[int, str, bool]:
    """Start a plan over an old file, stop it at some moment; return (exit code, stderr, whether it was replaced)."""
    rng = random.Random(seed)
    output = folder / f"plan{seed}.json"
    output.write_text("old")
    more = ["--time-limit", "30"] if seed % 2 else []
    running = subprocess.Popen(
        [*COMMAND, *more, "-o", str(output)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(rng.uniform(0.0, LONGEST_S))
    running.send_signal(signal.SIGINT if rng.random() < 0.5 else signal.SIGTERM)
    _, said = running.communicate(timeout=300)
    left = sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
    assert left == [], left  # no half-written file beside it
    if replaced := output.read_text() != "old":
        load_plan(output)
    return running.returncode, said, replaced


def check(folder, seed: int) -> None:
    """Before `main` has its handlers, the signal ends the interpreter in its own way; a plan is never half there."""
    code, said, replaced = interrupted(folder, seed)
    if code < 0 or "init_import_site" in said:
        assert not replaced
        return
    assert code in (0, 130), (seed, code, said)
    assert replaced or code != 0, (seed, said)
    assert "interrupted" in said or code == 0, (seed, said)
    assert "Traceback" not in said, (seed, said)


@pytest.mark.parametrize("seed", range(3))
def test_interrupted_at_a_random_moment(tmp_path, seed):
    check(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 103))
def test_interrupted_a_hundred_times(tmp_path, seed):
    check(tmp_path, seed)
