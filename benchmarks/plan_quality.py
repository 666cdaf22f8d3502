"""How good plans are, against baselines, bounds, unseen tokens and published ILPs: cases run, then docs/quality.md.

    python -m benchmarks.plan_quality run [PATTERN ...] [--work out/quality] [--workers 2]     what is not there yet
    python -m benchmarks.plan_quality page [--work out/quality]                                docs/quality.md

Every case runs in a process of its own and is kept as NAME.json in the work folder, plans as NAME.plan.json; a run that
was interrupted goes on where it stopped, and a file that is deleted is made again. Needs the data of `EPPLAN_DATA`
(default ../shared/data beside the repository). All times of plans are predicted (vendor profile).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.quality.cases import all_cases, measured
from topologies.files import write_text

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run cases, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["run", "one", "page"])
    parser.add_argument("names", nargs="*", metavar="PATTERN", help="cases by name, * for any; default all")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "quality")
    parser.add_argument("--workers", type=int, default=2, help="processes that plan layers at once")
    parser.add_argument("--layers", type=int, help="plan so many layers of expert counts, evenly spread; default all")
    asked = parser.parse_intermixed_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    if asked.verb == "page":
        from benchmarks.quality.page import write_page  # noqa: PLC0415 - running cases needs none of it

        write_page(asked.work, ROOT / "docs")
    elif asked.verb == "one":
        (name,) = asked.names
        kept = measured(all_cases(asked.work, asked.workers, asked.layers)[name])
        write_text(asked.work / f"{name}.json", json.dumps(kept, indent=1) + "\n")
    else:
        _run(asked.work, ["--workers", str(asked.workers), *_option(asked.layers)], asked.names or ["*"])


def _option(layers: int | None) -> list[str]:
    return [] if layers is None else ["--layers", str(layers)]


def _run(work: Path, options: list[str], patterns: list[str]) -> None:
    """Run the cases that match and are not kept yet, one after the other; go on after one that failed."""
    failed = []
    for name in all_cases(work, 1):
        if (work / f"{name}.json").exists() or not any(fnmatch.fnmatch(name, one) for one in patterns):
            continue
        print(name, file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks.plan_quality", "one", name]
        done = subprocess.run([*command, "--work", str(work), *options], check=False)
        if done.returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
