"""Fit the shipped profiles, check them on what they were not fitted to, and write docs/accuracy.md with plots.

`python benchmarks/accuracy.py` needs the measured tables: EPPLAN_DATA, else ../shared/data beside the project
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from planner import build_workload, load_cluster, load_model, load_profile, load_routing, predict, slots_of_ranks
from planner.baselines import baseline
from planner.calibrate import Table, calibrate, choices, compare, error_groups, profile_text, read_table
from planner.calibrate.published import published_normal
from planner.calibrate.scatter import scatter_svg
from planner.simulate import simulate_layer
from planner.timing import EXCHANGES, TimingProfile

ROOT = Path(__file__).resolve().parent.parent
DATE = "2026-11-22"
SOURCE = "ai-dynamo/aiconfigurator @ 095f58a5 (Apache-2.0)"
SHIPPED = {  # profile -> (table, rows) it is fitted to
    "a100": [("nccl_alltoall.csv", "system == 'a100_sxm'")],
    "h200": [
        ("nccl_alltoall.csv", "system == 'h200_sxm'"),
        ("deepep_low_latency.csv", None),
        ("deepep_normal.csv", "dispatch_sms >= 20"),
        ("expert_compute_bf16.csv", None),
        ("wide_ep_expert_compute.csv", None),
    ],
    "gb200": [("trtllm_alltoall_gb200.csv", None)],
}


@dataclass(frozen=True)
class Check:
    """One claim: a figure, its limit, and whether it holds."""

    what: str
    measure: str
    limit: str
    value: str
    holds: bool


def data_folder() -> Path:
    """Return the folder of measured tables."""
    return Path(os.environ.get("EPPLAN_DATA", ROOT.parent / "shared" / "data"))


def table(name: str) -> Table:
    """Read one measured table."""
    return read_table(data_folder() / "measured" / name)


def fitted(rows: Table, selection: str | None) -> TimingProfile:
    """Fit one table's rows on top of the vendor profile."""
    return calibrate([rows.where(selection)], load_profile("vendor"), name="fit", date=DATE, selection=selection or "")


def held_out(name: str, fit_rows: str, on_rows: str) -> pd.DataFrame:
    """Fit some rows of a table and return the others with their predictions."""
    rows = table(name)
    return compare(fitted(rows, fit_rows), rows.where(on_rows)).rows


def ship(folder: Path) -> None:
    """Fit and write the profiles that come with epplan."""
    for name, parts in SHIPPED.items():
        profile = load_profile("vendor")
        for file, selection in parts:
            profile = calibrate(
                [table(file).where(selection)], profile, name=name, date=DATE, source=SOURCE, selection=selection or ""
            )
        heading = (
            f"Fitted by benchmarks/accuracy.py on {DATE}; every model names its table, its rows and its fit error."
        )
        (folder / f"{name}.yaml").write_text(profile_text(profile, heading), encoding="utf-8")
        print(f"wrote profile {name}: {len(profile.exchanges)} exchanges, {len(profile.experts)} experts")


def _limit(what: str, measure: str, error: float, limit: float) -> Check:
    return Check(what, measure, f"<= {limit:.0%}", f"{error:.1%}", error <= limit)


def nccl_checks() -> list[Check]:
    """Return the claims on NCCL's all-to-all."""
    sizes = sorted(table("nccl_alltoall.csv").frame["bytes_per_rank"].unique().tolist())
    cases = [("fitted on 2 and 8 ranks, predicting 4", "ranks != 4", "ranks == 4")]
    for name, start in (("first, third, ...", 0), ("second, fourth, ...", 1)):
        chosen = sizes[start::2]
        cases.append(
            (
                f"fitted on the {name} size, predicting the rest",
                f"bytes_per_rank in {chosen}",
                f"bytes_per_rank not in {chosen}",
            )
        )
    checks = []
    for what, fit_rows, on_rows in cases:
        rows = held_out("nccl_alltoall.csv", fit_rows, on_rows)
        for system in ("both systems", *sorted(rows["system"].unique())):
            part = rows if system == "both systems" else rows[rows["system"] == system]
            large = part["tokens_or_bytes"] >= 65536
            for size, mask, limit in (("64 KiB a rank and more", large, 0.06), ("below 64 KiB a rank", ~large, 0.12)):
                checks.append(
                    _limit(f"NCCL, {what}: {system}, {size}", "MAPE", float(part[mask]["error"].abs().mean()), limit)
                )
    return checks


def deepep_checks() -> list[Check]:
    """Return the claims on DeepEP's kernels and on its published table."""
    rows = held_out("deepep_low_latency.csv", "nodes < 4", "nodes == 4")
    checks = [
        _limit(
            "DeepEP low latency, fitted on 1 and 2 nodes, predicting 4", "MAPE", float(rows["error"].abs().mean()), 0.06
        )
    ]
    counts = sorted(table("deepep_normal.csv").frame["tokens_per_rank"].unique().tolist())
    for start in (0, 1):
        chosen = counts[start::2]
        wide = "dispatch_sms >= 20"
        rows = held_out(
            "deepep_normal.csv",
            f"{wide} and tokens_per_rank in {chosen}",
            f"{wide} and tokens_per_rank not in {chosen}",
        )
        what = (
            f"DeepEP normal, 20+ SMs, fitted on every other token count (from number {start + 1}), predicting the rest"
        )
        checks.append(_limit(what, "MAPE", float(rows["error"].abs().mean()), 0.08))
    rows = published()
    checks.append(
        _limit(
            "DeepEP V1 as published (H800), by the H200 fit, nothing fitted again",
            "mean error",
            float(rows["error"].abs().mean()),
            0.10,
        )
    )
    return checks


def published() -> pd.DataFrame:
    """Return DeepEP's published normal-kernel table with predictions."""
    profile = fitted(table("deepep_normal.csv"), "dispatch_sms >= 20")
    frame = pd.read_csv(data_folder() / "measured" / "published_ep_kernels.csv")
    return published_normal(frame, profile.exchanges, "h200_sxm")


def other_checks() -> list[Check]:
    """Return the claims on GB200 and on expert compute."""
    rows = held_out("trtllm_alltoall_gb200.csv", "ranks <= 16", "ranks == 32")
    checks = [
        _limit(
            "GB200 NVLink all-to-all, fitted up to EP16, predicting EP32",
            "MAPE",
            float(rows["error"].abs().mean()),
            0.08,
        )
    ]
    rows = held_out("expert_compute_bf16.csv", "ranks in [1, 4, 16]", "ranks in [2, 8, 32]")
    checks.append(
        _limit(
            "expert compute bf16, fitted on EP 1, 4, 16, predicting EP 2, 8, 32",
            "median",
            float(rows["error"].abs().median()),
            0.08,
        )
    )
    wide = table("wide_ep_expert_compute.csv")
    for what, fit_rows, on_rows in (
        ("fitted on EP 2 and 8, predicting EP 4 and 16", "ranks in [2, 8]", "ranks in [4, 16]"),
        ("fitted on hidden 7168, predicting the other shapes", "hidden == 7168", "hidden != 7168"),
        ("fitted on all rows", None, None),
    ):
        found = choices(compare(fitted(wide, fit_rows), wide.where(on_rows)))
        assert found is not None
        for measure, right, clear in (
            ("winner > 5 % ahead", found.right, found.clear),
            ("any two > 5 % apart", found.any_right, found.any_clear),
        ):
            share = right / clear
            checks.append(
                Check(
                    f"fastest of no EPLB, placement only, 288 slots; {what}",
                    measure,
                    ">= 90%",
                    f"{share:.1%} of {clear}",
                    share >= 0.9,
                )
            )
    return checks


def speed_checks() -> list[Check]:
    """Return the claims on the speed of prediction and simulation."""
    model = load_model("deepseek-v3")
    routing = load_routing(str(data_folder() / "routing" / "sglang_deepseek_r1" / "prefill_in1024.json"), model)
    workload = build_workload(model, load_cluster("hgx-h100:4"), routing, 4096)
    slots_R = slots_of_ranks(model, workload.cluster, 9, workload.num_layers)
    profile = load_profile("vendor")
    checks = []
    for name in ("linear", "eplb"):
        placements = baseline(name, workload, slots_R)
        for exchange in EXCHANGES:
            seconds = _best_of(5, lambda e=exchange, p=placements: predict("plan", p, workload, profile, e))
            checks.append(
                Check(
                    f"58 layers on 32 ranks predicted, {exchange}, {'with' if name == 'eplb' else 'without'} replicas",
                    "best of 5, warm",
                    "< 20 ms",
                    f"{1e3 * seconds:.1f} ms",
                    seconds < 0.02,
                )
            )
    big = build_workload(model, load_cluster("hgx-h100:8"), routing.select(routing.layers[:1]), 4096)
    placement = baseline("eplb", big, slots_of_ranks(model, big.cluster, 5, 1))[0]
    for exchange in EXCHANGES:
        seconds = _best_of(3, lambda e=exchange: simulate_layer(big, placement, 0, profile, e))
        checks.append(
            Check(f"one layer of EP64 simulated, {exchange}", "best of 3", "< 2 s", f"{seconds:.2f} s", seconds < 2)
        )
    return checks


def _best_of(times: int, run: Callable[[], object]) -> float:
    run()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def shipped_errors(pictures: Path) -> str:
    """Return the errors of the shipped profiles on the rows that they were fitted to, and draw them."""
    rows = []
    for name, parts in SHIPPED.items():
        profile = TimingProfile.model_validate(_yaml(ROOT / "planner" / "profiles" / f"{name}.yaml"))
        for file, selection in parts:
            comparison = compare(profile, table(file).where(selection))
            _, everything = error_groups(comparison)
            picture = f"{name}_{file.removesuffix('.csv')}.svg"
            (pictures / picture).write_text(scatter_svg(comparison, name), encoding="utf-8")
            errors = [
                f"{value:.1%}" for value in (everything.mape, everything.median, everything.p95, everything.worst)
            ]
            rows.append([name, f"[{file}]({pictures.name}/{picture})", str(everything.n), *errors])
    return markdown(["profile", "table (plot)", "rows", "mean", "median", "p95", "worst"], rows)


def _yaml(path: Path) -> object:
    import yaml  # noqa: PLC0415 - only here, and only for our own file

    return yaml.safe_load(path.read_text(encoding="utf-8"))


def crossings() -> str:
    """Return from how many tokens redundant slots beat no EPLB, measured and predicted."""
    wide = table("wide_ep_expert_compute.csv")
    found = choices(compare(fitted(wide, "ranks in [2, 8]"), wide))
    assert found is not None
    frame = found.crossings
    rows = [
        [str(int(row["hidden"])), str(int(row["intermediate"])), str(int(row["ranks"])), str(row["power_law"]),
         _tokens(row["measured_tokens"]), _tokens(row["predicted_tokens"])]
        for _, row in frame.iterrows()
    ]  # fmt: skip
    return markdown(
        ["hidden", "intermediate", "EP", "power law", "measured: from tokens", "predicted: from tokens"], rows
    )


def _tokens(value: float) -> str:
    return "never" if np.isinf(value) else f"{int(value):,}"


def document(checks: list[Check], pictures: Path) -> str:
    """Return docs/accuracy.md."""
    claims = markdown(
        ["claim", "measure", "limit", "reached", ""],
        [[c.what, c.measure, c.limit, c.value, "holds" if c.holds else "**missed**"] for c in checks],
    )
    v1 = markdown(
        ["op", "EP", "published GB/s (logical)", "implied us", "predicted us", "error"],
        [[r["op"], str(r["ep"]), f"{r['bandwidth_GBps']:.0f}", f"{r['measured_us']:.0f}", f"{r['predicted_us']:.0f}",
          f"{r['error']:+.1%}"]
         for _, r in published().iterrows()],
    )  # fmt: skip
    template = (Path(__file__).parent / "accuracy_template.md").read_text(encoding="utf-8")
    parts = {
        "CLAIMS": claims,
        "SHIPPED": shipped_errors(pictures),
        "PUBLISHED": v1,
        "CROSSINGS": crossings(),
        "DATE": DATE,
    }
    for name, text in parts.items():
        template = template.replace(f"<!-- {name} -->", text.rstrip("\n"))
    return template


def main() -> None:
    """Write profiles, plots and the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip-profiles", action="store_true", help="leave planner/profiles as they are")
    arguments = parser.parse_args()
    pictures = ROOT / "docs" / "accuracy"
    pictures.mkdir(parents=True, exist_ok=True)
    if not arguments.skip_profiles:
        ship(ROOT / "planner" / "profiles")
    checks = [*nccl_checks(), *deepep_checks(), *other_checks(), *speed_checks()]
    for check in checks:
        print("holds " if check.holds else "MISSED", check.value.rjust(14), check.what, "|", check.measure)
    (ROOT / "docs" / "accuracy.md").write_text(document(checks, pictures), encoding="utf-8")
    print("wrote docs/accuracy.md")


if __name__ == "__main__":
    main()
