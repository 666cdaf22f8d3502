"""docs/quality.md from the kept cases; what was not run is said to be missing, never filled in."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plans import FILES
from benchmarks.quality.cases import SETTINGS, STEPS, all_cases
from benchmarks.quality.growth_svg import growth_svg
from topologies.files import write_text

Kept = Mapping[str, Any]
TEMPLATE = Path(__file__).with_name("page_template.md")


def write_page(work: Path, docs: Path) -> None:
    """Write docs/quality.md and docs/quality/growth.svg."""
    names = all_cases(work, 1)
    kept = {name: json.loads((work / f"{name}.json").read_text()) for name in names if (work / f"{name}.json").exists()}
    sections = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "missing": _missing(names, kept),
        "summary": _summary(kept),
        "counts": _counts(kept),
        "traces": _traces(kept),
        "coherent": _coherent(kept),
        "balance": _balance(kept),
        "whole": _whole(kept),
        "robust": _robust(kept.get("robust")),
        "migration": _migration(kept.get("migration")),
        "cost": _cost(kept),
        "growth": _growth(kept, docs),
        "ilp": _ilp(kept),
    }
    text = TEMPLATE.read_text()
    for name, section in sections.items():
        text = text.replace("{{" + name + "}}", section)
    write_text(docs / "quality.md", text)


def table(header: str, rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; `header` has its columns between bars."""
    columns = header.count("|") + 1
    lines = [f"| {header} |", "|" + "---|" * columns, *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def ratio(case: Kept) -> float:
    """Return our time over that of the best baseline under its best exchange."""
    return float(case["ours"]["total_us"] / case["best"]["total_us"])


def geometric(values: Sequence[float]) -> float:
    """Return the geometric mean."""
    return float(np.exp(np.log(values).mean()))


def _missing(names: Iterable[str], kept: Mapping[str, Kept]) -> str:
    absent = Counter(name.rsplit("-", 1)[0] for name in names if name not in kept)
    if not absent:
        return "All cases are in."
    listed = ", ".join(f"`{group}` ({count})" for group, count in absent.items())
    return f"**Not run yet: {absent.total()} cases**: {listed}."


def _processor() -> str:
    lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return lines[0].split(":", 1)[1].strip() if lines else "unknown processor"


def _of_setting(kept: Mapping[str, Kept], cluster: str, tokens: int) -> list[Kept]:
    found = [case for name, case in kept.items() if name.startswith("counts-")]
    return [case for case in found if case["cluster"] == cluster and case["tokens"] == tokens]


def _gap(case: Kept) -> float:
    return float(sum(case["objective_us"]) / sum(case["bound_us"]) - 1)


def _floor(case: Kept) -> float:
    return float(sum(case["bound_us"]) / case["best"]["total_us"])


def _summary(kept: Mapping[str, Kept]) -> str:
    rows, every = [], []
    for cluster, slots in SETTINGS:
        for step, tokens in STEPS.items():
            cases = _of_setting(kept, cluster, tokens)
            if not cases:
                continue
            ratios, worst = [ratio(case) for case in cases], max(_worst_layer(case) for case in cases)
            every += ratios
            rows.append(
                [f"{cluster} x {slots}", f"{step}, {tokens}", f"{len(cases)} of {len(FILES)}",
                 f"**{geometric(ratios):.3f}**", f"{max(ratios):.3f}", f"{worst:.3f}",
                 f"{geometric([_floor(case) for case in cases]):.3f}", f"{max(map(_gap, cases)):.1%}"]
            )  # fmt: skip
    traces = [case for name, case in kept.items() if name.startswith("trace-")]
    rows += [
        [f"traces, {what}", "prefill and decode", f"{len(traces)}",
         f"**{geometric([ratio(case[part]) for case in traces]):.3f}**",
         f"{max(ratio(case[part]) for case in traces):.3f}", "", "", ""]
        for part, what in (("in", "in-sample"), ("out", "out-of-sample")) if traces
    ]  # fmt: skip
    if every:
        rows.insert(-2 if traces else len(rows), ["all counts", "", f"{len(every)}", f"**{geometric(every):.3f}**",
                                                  f"{max(every):.3f}", "", "", ""])  # fmt: skip
    header = "cluster x slots | step, tokens per rank | cases | ratio (geometric mean) | worst case | worst layer"
    return table(header + " | no plan below | worst gap", rows)


def _worst_layer(case: Kept) -> float:
    """Return the worst layer's time over that of the baseline that is best over all layers."""
    return float((np.array(case["ours"]["layer_us"]) / np.array(case["best"]["layer_us"])).max())


def _counts(kept: Mapping[str, Kept]) -> str:
    rows = []
    for cluster, slots in SETTINGS:
        for step, tokens in STEPS.items():
            for case in _of_setting(kept, cluster, tokens):
                ours, best, layers = case["ours"], case["best"], len(case["objective_us"])
                rows.append(
                    [f"{cluster} x {slots}", step, case["file"], f"{layers}", f"{best['name']}, {best['exchange']}",
                     f"{best['total_us'] / layers:,.0f}", ours["exchange"], f"{ours['total_us'] / layers:,.0f}",
                     f"**{ratio(case):.3f}**", f"{_floor(case):.3f}", f"{_gap(case):.1%}",
                     f"{best['imbalance']:.3f}", f"{ours['imbalance']:.3f}",
                     f"{ours['rows'] / best['rows']:.3f}"]
                )  # fmt: skip
    header = "cluster x slots | step | file | layers | best baseline | its us | our exchange | our us | ratio"
    return table(header + " | no plan below | gap | imbalance: theirs | ours | rows: ours / theirs", rows)


def _traces(kept: Mapping[str, Kept]) -> str:
    rows = []
    for case in (case for name, case in kept.items() if name.startswith("trace-")):
        out = case["out"]
        rows.append(
            [case["trace"], f"{case['ranks']} on {case['hosts']} x {case['slots']}", f"{case['tokens']}",
             f"{out['best']['name']}, {out['best']['exchange']}", out["ours"]["exchange"],
             f"{ratio(case['in']):.3f}", f"**{ratio(out):.3f}**", f"{case['floor_us'] / out['best']['total_us']:.3f}",
             f"{out['best']['imbalance']:.3f}", f"{out['ours']['imbalance']:.3f}",
             f"{out['ours']['rows'] / out['best']['rows']:.3f}"]
        )  # fmt: skip
    header = "trace | ranks on hosts x slots | tokens per rank | best baseline on the second half | our exchange"
    return table(header + " | in-sample | out-of-sample | no plan below | imbalance: theirs | ours | rows", rows)


def _coherent(kept: Mapping[str, Kept]) -> str:
    rows = []
    for case in (case for name, case in kept.items() if name.startswith("coherent-")):
        seen, unseen = case["in"], case["out"]
        rows.append(
            [case["trace"], case["order"], f"{case['ranks']} on {case['hosts']} x {case['slots']}", f"{case['tokens']}",
             f"{seen['plain']['total_us'] / seen['layers']:,.0f} ({seen['plain']['exchange']})",
             f"{seen['ours']['total_us'] / seen['layers']:,.0f}",
             f"{seen['ours']['total_us'] / seen['best']['total_us']:.3f} ({seen['best']['name']})",
             *(f"**{part['ours']['total_us'] / part['plain']['total_us']:.3f}**" for part in (seen, unseen)),
             f"{case['seconds']:.0f}"]
        )  # fmt: skip
    header = "trace | experts of a token | ranks on hosts x slots | tokens per rank | plain plan, us a layer | coherent"
    header += " | coherent / best baseline so | coherent / plain, in-sample | out-of-sample | seconds"
    return table(header, rows)


def _balance(kept: Mapping[str, Kept]) -> str:
    cases = [case for name, case in kept.items() if name.startswith("balance-")]
    rows = [
        [case["file"], *(f"{case['worst_imbalance'][name]:.4f}" for name in ("eplb", "eplb-global", "ours")),
         f"{case['worst_gap']:.2%}", f"{case['seconds']:.0f} (load {case['machine_load']:.0f})"]
        for case in cases
    ]  # fmt: skip
    return table("file | worst layer: eplb | eplb-global | ours | worst gap | seconds", rows)


def _whole(kept: Mapping[str, Kept]) -> str:
    cases = [case for name, case in kept.items() if name.startswith(("pairwise-", "whole-"))]
    rows = [
        [f"{case['cluster']} x {case['slots']}", case["exchange"], f"{case['file']}, {case['tokens']}",
         f"{case['total_us'] / case['best_us']:.3f}", f"**{case['total_us'] / case['bound_us'] - 1:.1%}**",
         f"{max(case['gaps']):.1%}", f"{case['seconds']:.0f} (load {case['machine_load']:.0f})", f"{case['peak_mb']:,}"]
        for case in cases
    ]  # fmt: skip
    header = (
        "cluster x slots | exchange | file, tokens per rank | ratio under this exchange | gap | worst layer | seconds"
    )
    return table(header + " | MB, all processes", rows) if rows else "Not run yet."


def _robust(case: Kept | None) -> str:
    if case is None:
        return "Not run yet."
    rows = []
    worst = {name: max(us[file] for file in case["unseen"]) for name, us in case["layer_us"].items()}
    for name, us in case["layer_us"].items():
        cells = [f"{us[file]:,.0f}" for file in (*case["seen"], *case["unseen"])]
        rows.append([f"planned on {name}", *cells, f"**{worst[name]:,.0f}**"])
    together = worst.pop("the three")
    said = (
        f"\n\nThe worst unseen file takes {1 - together / max(worst.values()):.1%} less than under the worst plan of a "
        f"single file, {1 - together / min(worst.values()):.1%} less than under the best of them."
    )
    return table("us a layer | " + " | ".join((*case["seen"], *case["unseen"])) + " | worst unseen", rows) + said


def _migration(case: Kept | None) -> str:
    if case is None:
        return "Not run yet."
    first = case["rows"][0]
    rows = [
        [f"{row['part']:.0%} of {case['total_slots']:,}", f"{row['moves']:,}", f"{row['new_us']:.1f}",
         f"**{row['part_of_gain']:.0%}**"]
        for row in case["rows"]
    ]  # fmt: skip
    said = f"In force {first['in_force_us']:.1f} us a layer, planned freely {first['free_us']:.1f}.\n\n"
    return said + table("at most | moves | us a layer | part of the gain", rows)


def _cost(kept: Mapping[str, Kept]) -> str:
    rows = []
    for cluster, slots in SETTINGS:
        cases = [case for tokens in STEPS.values() for case in _of_setting(kept, cluster, tokens)]
        if not cases:
            continue
        quiet, slow = (pick(cases, key=_seconds_a_layer) for pick in (min, max))
        rows.append(
            [f"{cluster} x {slots}", f"{_seconds_a_layer(quiet):.2f} (load {quiet['machine_load']:.0f})",
             f"{_seconds_a_layer(slow):.2f} (load {slow['machine_load']:.0f})",
             f"{max(case['peak_mb'] for case in cases):,}"]
        )  # fmt: skip
    return table("cluster x slots | seconds a layer, least disturbed case | most disturbed | MB, all processes", rows)


def _seconds_a_layer(case: Kept) -> float:
    return float(case["seconds"] / len(case["objective_us"]))


def _growth(kept: Mapping[str, Kept], docs: Path) -> str:
    by_ranks, by_experts = (
        [case for name, case in kept.items() if name.startswith(f"growth-{what}")] for what in ("ranks", "experts")
    )
    if not by_ranks or not by_experts:
        return "Not run yet."
    (docs / "quality").mkdir(exist_ok=True)
    write_text(docs / "quality" / "growth.svg", growth_svg(by_ranks, by_experts))
    rows = [
        [f"{case['ranks']}", f"{case['experts']}", f"{case['seconds_a_layer']:.2f}",
         f"{case['fast_seconds_a_layer'] * 1e3:.1f}", f"{case['ratio']:.3f}", f"{case['machine_load']:.0f}"]
        for case in (*by_ranks, *by_experts)
    ]  # fmt: skip
    header = "ranks | experts | seconds a layer | fast mode, ms a layer | search / fast mode (time of the layer) | load"
    return "![Growth](quality/growth.svg)\n\n" + table(header, rows)


def _ilp(kept: Mapping[str, Kept]) -> str:
    cases = [case for name, case in kept.items() if name.startswith("ilp-")]
    if not cases:
        return "Not run yet."
    rows = [
        [case["baseline"], case["input"], case["objective"], f"{case['theirs']:,.4g}", f"{case['ours']:,.4g}",
         f"{case['ours'] / max(case['theirs'], 1e-12):.3f}", f"{case['their_seconds']:.1f}",
         f"{case['our_seconds']:.1f}"]
        for case in cases
    ]  # fmt: skip
    return table("ILP | input | its own objective | theirs | ours | ratio | their s | our s", rows)
