"""The long search: every reader, 100,000 broken files each, in a child with 1 GiB of memory and 10 s for each file.

    python -m tests.fuzz.run --inputs 100000 --out fuzz-results                     # all targets, one after the other
    python -m tests.fuzz.run --inputs 2000 --only plan --only hf-config --engine mutation

With atheris (`pip install atheris`, Python up to 3.13) coverage leads the search; without it the files are broken at
random. Exit code 1 where anything was found; OUT/TARGET holds the inputs, OUT/results.json the table.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.fuzz.child import State

TIME_S = 10.0  # of the processor, for one input
WALL_S = 300.0  # for one that waits
MAX_DEATHS = 20
INPUTS_OF_CHILD = 25_000  # atheris, not the reader, comes to keep 10 KiB an input of what pandas reads (measured)


@dataclass
class Result:
    """What came of one target."""

    target: str
    engine: str
    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    peak_mib: float = 0.0
    findings: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Return a row of the table."""
        return (
            f"| {self.target} | {self.engine} | {self.inputs:,} | {self.accepted:,} | {len(self.findings)} | "
            f"{self.slowest_s:.2f} | {self.peak_mib:.0f} | {self.seconds:.0f} |"
        )


HEADER = (
    "| reader | engine | inputs | accepted | findings | slowest s | peak MiB | seconds |\n"
    "|---|---|---|---|---|---|---|---|"
)


def fuzz(target: str, inputs: int, engine: str, seed: int, out: Path) -> Result:
    """Fuzz one target; start again with another seed where a child died."""
    folder = out / target
    folder.mkdir(parents=True, exist_ok=True)
    result, started, children, deaths = Result(target, engine), time.monotonic(), 0, 0
    while result.inputs < inputs and deaths < MAX_DEATHS:
        died = _one_child(result, min(inputs - result.inputs, INPUTS_OF_CHILD), seed + children, folder)
        children += 1
        if died is not None:
            result.findings.append(died)
            deaths += 1
    for report in sorted(folder.glob("*.json")):
        kept = json.loads(report.read_text())
        result.findings.append(f"{kept['place']}: {kept['text']} [{report.stem}]")
    result.seconds = time.monotonic() - started
    return result


def _one_child(result: Result, inputs: int, seed: int, folder: Path) -> str | None:
    """Run one child to its end; return how it died, with its input kept, or None."""
    command = [
        sys.executable, "-m", "tests.fuzz.child", result.target, "--inputs", str(inputs), "--seed", str(seed),
        "--engine", result.engine, "--out", str(folder),
    ]  # fmt: skip
    (folder / "state").unlink(missing_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with (folder / "log").open("ab") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    died, state, seen, cpu_s = None, None, -1, 0.0
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if state is None and (folder / "state").exists() and (folder / "state").stat().st_size:
            state = State(folder / "state", new=False)
        if state is not None and not pid:
            state.read()
            if state.done != seen:
                seen, cpu_s = state.done, _cpu_s(child.pid)
            late = _cpu_s(child.pid) - cpu_s > TIME_S or time.monotonic() - state.started > WALL_S
            if state.started and late:
                died = f"hang of over {TIME_S:g} s"
                os.kill(child.pid, 9)
                pid, status, usage = os.wait4(child.pid, 0)
        if pid:
            break
        time.sleep(0.1)
    child.returncode = os.waitstatus_to_exitcode(status)
    if state is None:
        return f"no start, exit code {child.returncode} (see {folder / 'log'})"
    state.read()
    result.inputs, result.accepted = result.inputs + state.done, result.accepted + state.accepted
    result.slowest_s = max(result.slowest_s, state.slowest_s)
    result.peak_mib = max(result.peak_mib, usage.ru_maxrss / 1024)
    if died is None and child.returncode == 0 and not state.started:
        return None
    name = hashlib.sha256(state.data).hexdigest()[:12]
    (folder / f"death-{name}").write_bytes(state.data)
    return f"{died or f'exit code {child.returncode}'} [death-{name}]"


def _cpu_s(pid: int) -> float:
    """Return the processor time of a process: what it took does not depend on what else runs here."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Fuzz the targets, one process at a time, and print the table."""
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415 - not in children of atheris, which import this module too

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    has_atheris = importlib.util.find_spec("atheris") is not None
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("atheris", "mutation"), default="atheris" if has_atheris else "mutation")
    parser.add_argument("--only", action="append", choices=sorted(TARGETS), help="a target; repeatable")
    parser.add_argument("--out", type=Path, default=Path("fuzz-results"))
    given = parser.parse_args()
    results = []
    sys.stdout.write(HEADER + "\n")
    for target in given.only or TARGETS:
        if not TARGETS[target].seeds:
            sys.stdout.write(f"| {target} | skipped: its library is not installed |\n")
            continue
        results.append(fuzz(target, given.inputs, given.engine, given.seed, given.out))
        sys.stdout.write(results[-1].line() + "\n" + "".join(f"    {one}\n" for one in results[-1].findings))
        sys.stdout.flush()
        (given.out / "results.json").write_text(json.dumps([asdict(one) for one in results], indent=1))
    sys.exit(any(one.findings for one in results))


if __name__ == "__main__":
    main()
