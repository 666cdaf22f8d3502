"""One fuzzing process: breaks a target's files, reads them, and writes down what it does for `tests.fuzz.run` to watch.

    python -m tests.fuzz.child TARGET --inputs N --seed S --engine atheris|mutation --out FOLDER

An unexpected exception is kept as a file of FOLDER, one a place in the code, and the search goes on. What ends this
process (a crash, no memory) or hangs it is for the parent, which finds the input at work in FOLDER/state.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import resource
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

MAX_INPUT = 16_384
MEMORY_BYTES = 2**30
SLOW_S = 1.0
STATE = struct.Struct("<QQddQ")  # the fields of State in their order, then the length of the input


class State:
    """What the parent sees: counts, times and the input at work, in a file that both map.

    Attributes:
        done, accepted: inputs read, and those of them that were no refusal.
        slowest_s: the longest that one took, of the processor.
        started: `time.monotonic()` when the one at work was begun; 0 between two.
        data: the input at work.

    """

    def __init__(self, path: Path, *, new: bool) -> None:
        if new:
            path.write_bytes(bytes(STATE.size + MAX_INPUT))
        with path.open("r+b") as stream:
            self._memory = mmap.mmap(stream.fileno(), 0)
        self.done = self.accepted = 0
        self.slowest_s = self.started = 0.0
        self.data = b""

    def write(self) -> None:
        """Show the fields to the parent."""
        data = self.data[:MAX_INPUT]
        head = STATE.pack(self.done, self.accepted, self.slowest_s, self.started, len(data))
        self._memory[: STATE.size] = head
        self._memory[STATE.size : STATE.size + len(data)] = data

    def read(self) -> None:
        """Take the fields from the child."""
        *fields, length = STATE.unpack(self._memory[: STATE.size])
        self.done, self.accepted, self.slowest_s, self.started = fields
        self.data = self._memory[STATE.size : STATE.size + length]


def limit_memory() -> None:
    """Allow this process 1 GiB more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


class Trial:
    """Reads inputs and keeps what comes out that should not."""

    def __init__(self, target: Target, check: Callable[[Target, bytes], str], folder: Path) -> None:
        self.target, self.folder = target, folder
        self._check = check
        self.state = State(folder / "state", new=True)

    def __call__(self, data: bytes) -> None:
        """Read one input."""
        state = self.state
        state.data, state.started, before_s = data, time.monotonic(), time.process_time()
        state.write()
        try:
            state.accepted += not self._check(self.target, data)
        except Exception as error:
            self._keep(error, data)
        took_s = time.process_time() - before_s
        if took_s > max(state.slowest_s, SLOW_S):
            (self.folder / "slowest").write_bytes(data)
        state.slowest_s = max(state.slowest_s, took_s)
        state.done, state.started = state.done + 1, 0.0
        state.write()

    def _keep(self, error: Exception, data: bytes) -> None:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/tests/" not in frame.filename]
        last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
        name = hashlib.sha256(place.encode()).hexdigest()[:12]
        if not (self.folder / f"{name}.json").exists():
            (self.folder / name).write_bytes(data)
            text = {"place": place, "text": str(error)[:300], "trace": traceback.format_exception(error)[-12:]}
            (self.folder / f"{name}.json").write_text(json.dumps(text, indent=1))


def run_mutation(trial: Trial, inputs: int, seed: int) -> None:
    """Break the seeds, and what was accepted, at random."""
    from tests.fuzz.mutate import mutate  # noqa: PLC0415 - as below

    rng = Random(seed)
    seeds = trial.target.seeds
    pool = list(seeds)
    for _ in range(inputs):
        data = mutate(rng.choice(pool), rng, trial.target.shape, pool, MAX_INPUT)
        before = trial.state.accepted
        trial(data)
        if trial.state.accepted > before and len(pool) < 300:
            pool.append(data)


def run_atheris(trial: Trial, inputs: int, seed: int) -> None:
    """Let coverage lead: libFuzzer keeps what reaches new code; half of the changes are its own, half ours."""
    import atheris  # noqa: PLC0415 - optional

    from tests.fuzz.mutate import mutate  # noqa: PLC0415 - as below

    seeds = trial.target.seeds
    corpus = trial.folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(data)

    def change(data: bytes, max_size: int, number: int) -> bytes:
        rng = Random(number)
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, max_size))
        return mutate(data, rng, trial.target.shape, seeds, max_size)

    options = [f"-runs={inputs}", f"-seed={seed}", f"-max_len={MAX_INPUT}", "-timeout=600", "-rss_limit_mb=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], trial, custom_mutator=change)
    atheris.Fuzz()


def main() -> None:
    """Fuzz one target."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--inputs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--engine", choices=("atheris", "mutation"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.engine == "atheris":
        import atheris  # noqa: PLC0415 - optional

        with atheris.instrument_imports(include=["topologies", "planner", "app.whatif.reports", "executor.validation"]):
            from tests.fuzz import targets  # noqa: PLC0415 - after instrumentation
    else:
        from tests.fuzz import targets  # noqa: PLC0415 - as above
    target = targets.TARGETS[given.target]
    for data in target.seeds:  # loads what is loaded on use, before memory is limited
        targets.check(target, data)
    trial = Trial(target, targets.check, given.out)
    limit_memory()
    (run_atheris if given.engine == "atheris" else run_mutation)(trial, given.inputs, given.seed)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
