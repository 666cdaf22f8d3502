"""All benchmarks, one after the other, into docs/benchmarks.md and raw JSON: `make bench`.

    python -m benchmarks.all                        what this machine can run; the rest says why it did not
    python -m benchmarks.all --only plans peers     some of them; the other sections stay as they were measured
    python -m benchmarks.all --render               only the page, from the results that there are

Every benchmark is a script of its own that prints Markdown tables; here each runs in a process of its own, and its
tables are kept under benchmarks/results/ with the date, the machine and the load on it. Ratios are between things that
ran in turn in one process; where the machine was busy, its load average beside the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.plans import DATA

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PACKAGES = ("numpy", "scipy", "highspy", "pulp", "torch", "transformers", "streamlit")


@dataclass(frozen=True)
class Benchmark:
    """One script.

    Attributes:
        name: of the module in `benchmarks`, and of its results.
        title: of the section.
        numbers: where its numbers come from: predicted, measured, or both.
        arguments: of the command.
        needs: what must be there: `data`, `root`, `gpu`, or a module.

    """

    name: str
    title: str
    numbers: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


BENCHMARKS = (
    Benchmark("plans", "Plans beside the baselines", "times of layers are predicted, seconds measured", (), ("data",)),
    Benchmark("limit_zero", "A plan in no time", "measured", (), ("data",)),
    Benchmark("peers", "Balancers of other projects", "measured", (), ("data",)),
    Benchmark("executor_vs_hf", "The executor beside other all-to-all EP", "measured", (), ("transformers",)),
    Benchmark("lab", "Predicted and measured in the lab", "both, as labelled", ("--cluster", "0"), ("data", "root")),
    Benchmark("app_users", "Ten users of the app", "measured", (), ("streamlit",)),
    Benchmark("gpu", "One GPU", "measured", ("-o", os.devnull), ("gpu",)),
)


def missing(need: str) -> str:
    """Return why a need is not met here; empty where it is."""
    if need == "data":
        return "" if DATA.is_dir() else "the routing statistics of EPPLAN_DATA are not here"
    if need == "root":
        return "" if os.geteuid() == 0 else "needs root, for network namespaces"
    if need == "gpu":
        found = (
            subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False) if _on_path("nvidia-smi") else None
        )
        return "" if found is not None and found.returncode == 0 else "no GPU here"
    return "" if _version(need) else f"{need} is not installed"


def _on_path(command: str) -> bool:
    return any((Path(folder) / command).exists() for folder in os.environ.get("PATH", "").split(os.pathsep))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def machine() -> dict[str, Any]:
    """Return what the numbers are measured on."""
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_gib, 1),
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := _version(name))},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def measure(benchmark: Benchmark) -> dict[str, Any]:
    """Run a script and return what it printed, with its tables as lists of rows."""
    command = [sys.executable, "-m", f"benchmarks.{benchmark.name}", *benchmark.arguments]
    load, started_s = os.getloadavg()[0], time.monotonic()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return {
        "benchmark": benchmark.name,
        "command": f"python -m benchmarks.{' '.join((benchmark.name, *benchmark.arguments))}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "load_before": round(load, 1),
        "seconds": round(time.monotonic() - started_s),
        "exit_code": done.returncode,
        "tables": list(tables(done.stdout)),
        "printed": done.stdout,
    }


def tables(text: str) -> Iterator[list[dict[str, str]]]:
    """Yield the Markdown tables of a text, each as rows by column."""
    rows: list[list[str]] = []
    for line in (*text.splitlines(), ""):
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif rows:
            yield [dict(zip(rows[0], row, strict=False)) for row in rows[2:]]
            rows = []


def page(results: Sequence[dict[str, Any]]) -> str:
    """Return docs/benchmarks.md."""
    parts = [
        "# Benchmarks\n\n`make bench` measures all of this and writes this page; the raw results are in "
        "[benchmarks/results](../benchmarks/results).\nAccuracy of predictions: [accuracy.md](accuracy.md). Quality of "
        "plans: [quality.md](quality.md)."
    ]
    found = {result["benchmark"]: result for result in results}
    for benchmark in BENCHMARKS:
        parts.append(f"## {benchmark.title}")
        result = found.get(benchmark.name)
        parts.append(
            _section(benchmark, result) if result else f"Not measured yet: `python -m benchmarks.{benchmark.name}`."
        )
    return "\n\n".join(parts) + "\n"


def _section(benchmark: Benchmark, result: dict[str, Any]) -> str:
    on = result["machine"]
    versions = ", ".join(f"{name} {on[name]}" for name in ("python", *PACKAGES) if name in on)
    head = (
        f"`{result['command']}`, {result['date']}, {result['seconds']} s; {on['cores']} cores of {on['processor']}, "
        f"{on['memory_gib']} GiB, load average before it {result['load_before']}; {versions}. "
        f"Numbers: {benchmark.numbers}."
    )
    failed = f"\n\n**It failed (exit code {result['exit_code']}).**" if result["exit_code"] else ""
    return f"{head}{failed}\n\n{result['printed'].strip()}"


def main() -> None:
    """Measure, keep, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[one.name for one in BENCHMARKS], help="these benchmarks")
    parser.add_argument("--render", action="store_true", help="write the page from the results that there are")
    given = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for benchmark in BENCHMARKS if not given.render else ():
        if given.only and benchmark.name not in given.only:
            continue
        kept = RESULTS / f"{benchmark.name}.json"
        reasons = list(filter(None, map(missing, benchmark.needs)))
        if reasons:
            print(f"{benchmark.name}: not run: {reasons[0]}", file=sys.stderr)
            continue
        print(f"{benchmark.name}: {benchmark.title} ...", file=sys.stderr, flush=True)
        result = measure(benchmark)
        print(f"{benchmark.name}: {result['seconds']} s, exit code {result['exit_code']}", file=sys.stderr, flush=True)
        _write(kept, json.dumps(result, indent=1) + "\n")
    _write(PAGE, page([json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]))


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


if __name__ == "__main__":
    main()
