"""Predictions as tables and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from planner import Cluster, Prediction, TimingProfile
from planner.memory import size_text
from planner.provenance import weakest

_OVERLAP_NOTES = {"two-batches": " (phases of one micro-batch)"}


def groups_note(cluster: Cluster) -> str:
    """Return what a table's title says where several EP groups run at once; "" for one alone."""
    count = cluster.groups.count
    return "" if count == 1 else f"; {count} EP groups alike at once, of {cluster.num_ranks} ranks each"


def comparison(
    predictions: Sequence[Prediction], profile: TimingProfile, gaps: Mapping[str, str] | None = None, *, note: str = ""
) -> Table:
    """Lay plans side by side: means over layers, the worst layer's imbalance, and what holds the slowest layer up."""
    layers = len(predictions[0].layers)
    origin = weakest(prediction.provenance for prediction in predictions)
    label = profile.status if origin == "vendor" else f"{profile.status}, {origin}"
    overlap = predictions[0].overlap
    note = note if overlap == "none" else f"; overlap {overlap}{_OVERLAP_NOTES.get(overlap, '')}{note}"
    table = Table(
        title=f"Predicted per layer (mean of {layers}), profile {profile.name} ({label}){note}",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("plan")
    for name in (
        "imbalance",
        "worst",
        "dispatch us",
        "compute us",
        "combine us",
        "layer us",
        "vs best",
        "weights/rank",
    ):
        table.add_column(name, justify="right")
    if gaps is not None:
        table.add_column("gap", justify="right")
    table.add_column("exchange")
    table.add_column("slowest layer held up by", overflow="fold")
    best_us = min(prediction.total_us for prediction in predictions)
    for prediction in predictions:
        cells = [
            prediction.name,
            f"{prediction.mean('imbalance'):.3f}",
            f"{prediction.worst_imbalance:.3f}",
            *(f"{prediction.mean(field):,.1f}" for field in ("dispatch_us", "compute_us", "combine_us", "layer_us")),
            f"{prediction.total_us / best_us:.3f}x",
            size_text(prediction.memory_bytes),
        ]
        if gaps is not None:
            cells.append(gaps.get(prediction.name, "-"))
        table.add_row(
            *cells, prediction.exchange, prediction.bottleneck, style="bold" if prediction.total_us == best_us else None
        )
    return table


def as_json(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return predictions in the form of `epplan evaluate --json`; times in microseconds."""
    return {
        "plans": [
            {
                "name": prediction.name,
                "exchange": prediction.exchange,
                "overlap": prediction.overlap,
                "provenance": prediction.provenance,
                "total_us": prediction.total_us,
                "layers": [vars(layer) for layer in prediction.layers],
            }
            for prediction in predictions
        ]
    }
