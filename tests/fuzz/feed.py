"""Feeds files to targets in a process with 1 GiB of memory:  python -m tests.fuzz.feed TARGET=FILE ...

Prints a JSON line for each: whether it was accepted or refused, with what words and in what processor time.
"""

import json
import sys
import time
from pathlib import Path

from tests.fuzz.child import limit_memory
from tests.fuzz.targets import TARGETS, check


def fed(name: str, data: bytes) -> dict[str, object]:
    """Read one file; what is neither an answer nor a refusal is a finding."""
    target, started = TARGETS[name], time.process_time()
    try:
        text = check(target, data)
        outcome = "refused" if text else "accepted"
    except Exception as error:
        outcome, text = "FOUND", f"{type(error).__name__}: {error}"[:300]
    return {"outcome": outcome, "text": text, "seconds": time.process_time() - started}


def main() -> None:
    """Feed what the arguments name, after a valid file of each target has loaded what is loaded on use."""
    pairs = [argument.partition("=") for argument in sys.argv[1:]]
    for name in dict.fromkeys(name for name, _, _ in pairs):
        check(TARGETS[name], TARGETS[name].seeds[0])
    limit_memory()
    for name, _, path in pairs:
        answer = fed(name, Path(path).read_bytes()) | {"target": name, "file": Path(path).name}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
