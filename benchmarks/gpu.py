"""One GPU, measured in one call: ceilings, experts, rows, the EP layer, several NCCL ranks, and a fit.

    python -m benchmarks.gpu -o gpu.json                 on the GPU machine; under 8 minutes; torch and NumPy are enough
    python -m benchmarks.gpu --fit gpu.json              anywhere: fits half of the expert times, predicts the other
    python -m benchmarks.gpu --tiny --device cpu -o x.json       tries the code where there is no GPU

Prints Markdown tables; every time in them is measured but for those of the fit, which says so. The JSON is written
after every part, so that a run that is cut short leaves what it has.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.on_gpu.ceilings import Ceilings, measure_ceilings
from benchmarks.on_gpu.clock import Clock
from benchmarks.on_gpu.experts import measure_experts
from benchmarks.on_gpu.layer import measure_layers
from benchmarks.on_gpu.rows import measure_rows
from benchmarks.on_gpu.several import measure_several
from benchmarks.on_gpu.shapes import SHAPES, TINY, Shape

BUDGET_S = 420.0
"""After which no further case is started."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or fit what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="where the JSON goes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="small shapes, few repeats: tries the code, measures little"
    )
    parser.add_argument("--fit", type=Path, metavar="JSON", help="fit what an earlier call has measured")
    given = parser.parse_args(arguments)
    if given.fit is not None:
        found = json.loads(given.fit.read_text())
        _fit(found)
        _write(given.fit, found)
        return
    if given.output is None:
        parser.error("name the file for the results: -o gpu.json")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --tiny --device cpu tries the code without one")
    Run(torch.device(given.device), given.output, tiny=given.tiny).all_parts()


class Run:
    """One call: its settings, and the results so far.

    Attributes:
        device, dtype: that are measured.
        output: where the results go.
        tiny: whether only the code is tried.
        results: parts by name, with the machine.

    """

    def __init__(self, device: torch.device, output: Path, *, tiny: bool) -> None:
        self.device, self.output, self.tiny = device, output, tiny
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self.results: dict[str, Any] = {"machine": machine(device), "tiny": tiny}
        self._end_s = time.monotonic() + BUDGET_S

    def all_parts(self) -> None:
        """Measure all parts, print and write them."""
        clock = Clock(self.device, *((2, 1) if self.tiny else (20, 3)))
        shapes: tuple[Shape, ...] = TINY if self.tiny else SHAPES
        tokens = 64 if self.tiny else 4096
        sizes = (64,) if self.tiny else (4096, 8192)
        print(json.dumps(self.results["machine"]))
        ceilings = measure_ceilings(clock, self.dtype, copy_bytes=2**20 if self.tiny else 2**31, sizes=sizes)
        self._keep("ceilings", [vars(ceilings)])
        self._part("rows", lambda: measure_rows(clock, shapes, self.dtype, ceilings, tokens))
        self._part("layer", lambda: measure_layers(clock, shapes, self.dtype, tokens, self.results["rows"]))
        self._part("several ranks", self._several)
        self._part("experts", lambda: self._experts(clock, shapes, ceilings))
        try:
            _fit(self.results)
        except (ModuleNotFoundError, ValueError) as error:
            print(f"not fitted here ({error}); on a machine with epplan: python -m benchmarks.gpu --fit {self.output}")
        _write(self.output, self.results)

    def _experts(self, clock: Clock, shapes: tuple[Shape, ...], ceilings: Ceilings) -> Iterator[dict[str, Any]]:
        if self.tiny:
            return measure_experts(clock, shapes, self.dtype, ceilings, per_expert=(1, 8, 64))
        return measure_experts(clock, shapes, self.dtype, ceilings)

    def _several(self) -> Iterator[dict[str, Any]]:
        shape = TINY[0] if self.tiny else Shape("small", 32, 4, 1024, 512, ranks=2)
        ranks = max(min(torch.cuda.device_count(), 8), 2) if self.device.type == "cuda" else 2
        return measure_several(
            ranks, "nccl" if self.device.type == "cuda" else "gloo", shape, 32 if self.tiny else 1024
        )

    def _part(self, name: str, measure: Callable[[], Iterable[dict[str, Any]]]) -> None:
        """Measure one part until it is done or the time is up; what went wrong is kept as its result."""
        rows: list[dict[str, Any]] = []
        try:
            for row in measure():
                rows.append(row)
                if time.monotonic() > self._end_s:
                    print(f"{name}: stopped after {len(rows)} cases, the time is up")
                    break
        except (RuntimeError, ModuleNotFoundError) as error:  # one part that fails must not cost the others
            print(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            self.results[f"{name} failed"] = str(error)[:2000]
        self._keep(name, rows)

    def _keep(self, name: str, rows: list[dict[str, Any]]) -> None:
        self.results[name] = rows
        _write(self.output, self.results)
        print_table(name, rows)


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the numbers were measured on, and when."""
    cuda = device.type == "cuda"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda else None,  # type: ignore[no-untyped-call]  # torch leaves it untyped
        "python": platform.python_version(),
    }


def _fit(results: dict[str, Any]) -> None:
    from benchmarks.on_gpu.fit import fit_half  # noqa: PLC0415  # needs the planner's packages

    if results["machine"]["cuda"] is None:
        print("no fit: a CPU's times are not held against a GPU's rated figures")
        return
    results["fit"] = fit_half(results["experts"], results["machine"]["device"], results["machine"]["date"])
    print_table("fit (predicted against measured)", [{k: v for k, v in results["fit"].items() if k != "models"}])


def print_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as Markdown."""
    print(f"\n### {title}\n")
    if not rows:
        print("nothing measured")
        return
    columns = list(dict.fromkeys(column for row in rows for column in row))
    print("|", " | ".join(columns), "|")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("|", " | ".join(_text(row.get(column)) for column in columns), "|", flush=True)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return "" if value is None else str(value)


def _write(path: Path, results: dict[str, Any]) -> None:
    """Write the results whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(results, indent=1))
    partial.replace(path)


if __name__ == "__main__":
    main()
