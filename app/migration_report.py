"""A migration as tables and as JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from planner import Cluster
from planner.migrate import NOWHERE, Migration, pay_back_steps
from topologies.graph import KIND_NAMES


def print_migration(console: Console, found: Migration, cluster: Cluster) -> None:
    """Print how many weights travel, over which links, and for how long."""
    part = len(found.moves) / max(found.slots, 1)
    console.print(
        f"moves: {len(found.moves):,} of {found.slots:,} slots ({part:.1%}), {found.total_bytes / 1e9:,.2f} GB of "
        f"weights, {found.time_us / 1e3:,.1f} ms predicted, one layer after the other"
    )
    if found.relabelled:
        console.print(f"{found.relabelled:,} more change their slot inside their rank")
    if found.lost:
        console.print(f"{found.lost:,} come from the checkpoint, as no rank holds them; their time is not counted")
    if found.link_bytes_N.any():
        console.print(_link_table(found, cluster))


def _link_table(found: Migration, cluster: Cluster) -> Table:
    table = Table(title="Weights over links", title_justify="left", header_style="bold")
    table.add_column("kind")
    for name in ("links used", "GB in all", "GB on the busiest"):
        table.add_column(name, justify="right")
    table.add_column("busiest link", overflow="fold")
    kinds = np.array(cluster.link_kinds)
    for kind, label in KIND_NAMES.items():
        used_N = np.where(kinds == kind, found.link_bytes_N, 0.0)
        if not used_N.any():
            continue
        link = cluster.links[int(used_N.argmax())]
        cells = f"{np.count_nonzero(used_N)}", f"{used_N.sum() / 1e9:,.2f}", f"{used_N.max() / 1e9:,.3f}"
        table.add_row(label, *cells, f"{link.source} -> {link.target}")
    return table


def pay_back_text(found: Migration, old_us: float, new_us: float) -> str:
    """Say after how many steps the migration has paid back."""
    steps = pay_back_steps(found, old_us, new_us)
    times = f"a step's experts take {old_us / 1e3:,.3f} ms in force, {new_us / 1e3:,.3f} ms then (predicted)"
    if steps is None:
        return f"never pays back: {times}"
    return f"pays back after {int(np.ceil(steps)):,} steps: {times}"


def migration_json(found: Migration, cluster: Cluster, old_us: float | None, new_us: float | None) -> dict[str, Any]:
    """Return a migration as `epplan diff --json` prints it; times in microseconds, a null source is the checkpoint."""
    known = old_us is not None and new_us is not None
    return {
        "slots": found.slots,
        "moved": len(found.moves),
        "relabelled": found.relabelled,
        "from_checkpoint": found.lost,
        "bytes": found.total_bytes,
        "time_us": found.time_us,
        "step_us_in_force": old_us,
        "step_us_new": new_us,
        "pay_back_steps": pay_back_steps(found, old_us, new_us) if known else None,  # type: ignore[arg-type]  # known
        "moves": [
            {
                "layer": move.layer,
                "expert": move.expert,
                "from": None if move.source == NOWHERE else move.source,
                "to": move.rank,
                "slot": move.slot,
            }
            for move in found.moves
        ],
        "links": [
            {"from": link.source, "to": link.target, "kind": link.kind, "bytes": found.link_bytes_N[link.index]}
            for link in cluster.links
            if found.link_bytes_N[link.index]
        ],
    }
