"""`epplan accuracy`: predicted beside measured."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
from rich.table import Table as RichTable

from app.console import messages, print_json, results
from app.profile_option import PROFILE_HELP
from planner import load_profile
from planner.calibrate import Comparison, Errors, choices, compare, error_groups, read_table
from planner.calibrate.choices import Choices
from planner.calibrate.scatter import scatter_svg
from topologies.files import write_text


@click.command()
@click.argument("table")
@click.option("--profile", required=True, help=PROFILE_HELP)
@click.option("--on", "on_rows", metavar="EXPR", help='Rows to predict, such as "ranks == 4". [default: all]')
@click.option("--svg", type=click.Path(dir_okay=False), help="Write a plot of predicted against measured.")
@click.option(
    "--json",
    "json_",
    is_flag=True,
    help='Print {"groups": [{"key", "n", "mape", "median", "p95", ...}], "all": {...}}.',
)
def accuracy(table: str, profile: str, on_rows: str | None, svg: str | None, json_: bool) -> None:
    """Say how far a profile is off on a table of measurements, by system, ranks and size.

    Takes the same tables as `epplan calibrate`. All errors in --json are fractions: 0.06 is 6 %. Rows outside what the
    profile was fitted on are counted as extrapolated, those without any fit as vendor.

    \b
    epplan accuracy --profile mine.yaml nccl.csv --on "ranks == 4" --svg nccl.svg
    """
    loaded = read_table(table)
    for remark in loaded.remarks:
        messages().print(f"note: {remark}")
    timing = load_profile(profile)
    comparison = compare(timing, loaded.where(on_rows, option="--on"))
    groups, everything = error_groups(comparison)
    chosen = choices(comparison)
    if svg is not None:
        write_text(svg, scatter_svg(comparison, timing.name))
        messages().print(f"wrote {svg}")
    if json_:
        print_json(_document(groups, everything, chosen))
        return
    results().print(_table(comparison, groups, everything, timing.name, timing.status))
    if chosen is not None:
        _print_choices(chosen)
    if timing.status == "uncalibrated":
        results().print(f"profile {timing.name}: {timing.note}")


def _document(groups: list[Errors], everything: Errors, chosen: Choices | None) -> dict[str, Any]:
    document: dict[str, Any] = {"groups": [asdict(group) for group in groups], "all": asdict(everything)}
    if chosen is not None:
        document["fastest_option"] = {
            name: getattr(chosen, name) for name in ("sets", "clear", "right", "any_clear", "any_right", "regret")
        }
    return document


def _table(comparison: Comparison, groups: list[Errors], everything: Errors, profile: str, status: str) -> RichTable:
    table = RichTable(
        title=f"{comparison.table}, predicted by profile {profile} ({status})",
        title_justify="left",
        header_style="bold",
    )
    for name in comparison.group_by:
        table.add_column(name)
    for name in ("rows", "mean error", "median", "p95", "worst"):
        table.add_column(name, justify="right")
    table.add_column("provenance")
    for group in (*groups, everything):
        last = group is everything
        keys = (
            ["all", *[""] * (len(comparison.group_by) - 1)]
            if last
            else [str(group.key[n]) for n in comparison.group_by]
        )
        errors = (f"{value:.1%}" for value in (group.mape, group.median, group.p95, group.worst))
        labels = ", ".join(
            f"{label} {count}" if len(group.provenance) > 1 else label for label, count in group.provenance.items()
        )
        table.add_row(*keys, str(group.n), *errors, labels, style="bold" if last else None)
    return table


def _print_choices(chosen: Choices) -> None:
    if chosen.clear:
        results().print(
            f"fastest of no EPLB, placement only and redundant slots: right in {chosen.right} of {chosen.clear} cases "
            f"({chosen.right / chosen.clear:.1%}) whose winner is more than 5 % ahead; the predicted choice costs "
            f"{chosen.regret:.1%} on average over all {chosen.sets}"
        )
