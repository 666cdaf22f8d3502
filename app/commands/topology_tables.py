"""The tables of `epplan topology`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.markup import escape
from rich.table import Table

from topologies.graph import KIND_NAMES
from topologies.lint import Finding


def _table(title: str, columns: dict[str, str]) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for name, side in columns.items():
        table.add_column(name, justify="right" if side == "right" else "left")
    return table


def show_tables(summary: dict[str, Any]) -> Iterator[Table]:
    """Yield the tables of a cluster's summary: the whole, its links, and each kind of host."""
    yield _overview(summary)
    yield _links(summary)
    for kind in summary["host_kinds"]:
        yield _host_kind(kind)


def _overview(summary: dict[str, Any]) -> Table:
    table = _table(summary["name"], {"": "left", " ": "left"})
    table.show_header = False
    rate, fabric = summary["uniform_alltoall"], summary["fabric"]
    sizes = sorted(set(summary["domain_ranks"].values()))
    gpus = ", ".join(f"{gpu['count']} x {gpu['name']}" for gpu in summary["gpus"])
    speed = "-" if rate["gbps_per_gpu"] is None else f"{rate['gbps_per_gpu']:.4g} GB/s per GPU"
    if rate["ranks"] < summary["ranks"]:
        speed += f" (on {rate['ranks']} evenly spaced ranks)"
    rows = {
        "ranks": f"{summary['ranks']} ({gpus})",
        "hosts": str(summary["hosts"]),
        "scale-up domains": f"{summary['domains']} of {' to '.join(map(str, sizes))} ranks",
        "fabric": "none (one host)"
        if fabric is None
        else (
            f"{fabric['kind']}, {fabric['leaves']} leaves of radix {fabric['radix']}, "
            f"oversubscription {fabric['oversubscription']:g}"
        ),
        "bisection": f"{summary['bisection_gbps']:.6g} GB/s",
        "uniform all-to-all": f"{speed}; bottleneck {rate['bottleneck'] or 'none'}",
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def _links(summary: dict[str, Any]) -> Table:
    table = _table("Directed links", {"kind": "left", "GB/s": "right", "count": "right"})
    for link in summary["links"]:
        table.add_row(KIND_NAMES.get(link["kind"], link["kind"]), f"{link['gbps']:g}", str(link["count"]))
    return table


def _host_kind(kind: dict[str, Any]) -> Table:
    columns = {
        "GPU": "left",
        "model": "left",
        "NVLinks": "right",
        "scale-up GB/s": "right",
        "scale-out GB/s": "right",
        "rail": "right",
        "NICs": "left",
        "nearest": "left",
    }
    table = _table(f"Host {kind['name']} (x {kind['count']})", columns)
    for gpu in kind["gpus"]:
        via = " (through a neighbour)" if gpu["through_neighbour"] else ""
        table.add_row(
            gpu["name"],
            escape(gpu["model"] or "unknown"),
            "-" if gpu["nvlinks"] is None else str(gpu["nvlinks"]),
            f"{gpu['scale_up_gbps']:g}",
            "unknown" if gpu["scale_out_gbps"] is None else f"{gpu['scale_out_gbps']:g}",
            str(gpu["rail"]) if gpu["rail"] >= 0 else "-",
            escape(", ".join(gpu["nics"]) + via),
            gpu["nearest_nic"],
        )
    return table


def findings_table(findings: list[Finding]) -> Table:
    """Return the table of lint's findings."""
    columns = {"where": "left", "what is wrong": "left", "costs GB/s": "right", "of all-to-all": "left", "fix": "left"}
    table = _table(f"{len(findings)} finding{'s' * (len(findings) > 1)}", columns)
    for finding in findings:
        cost = "unknown" if finding.cost_gbps is None else f"{finding.cost_gbps:.3g}"
        now = "no rate" if finding.now_gbps is None else f"{finding.now_gbps:.3g} GB/s per GPU now, on {finding.basis}"
        table.add_row(escape(finding.where), escape(finding.message), cost, escape(now), escape(finding.fix))
    return table
