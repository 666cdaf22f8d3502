"""`epplan calibrate`: measured tables to a timing profile."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import click
from rich.table import Table as RichTable

from app.console import messages, print_json, results
from planner import TimingProfile, load_profile
from planner.calibrate import calibrate as fit
from planner.calibrate import profile_text, read_table
from planner.calibrate.regimes import OF_BYTES
from topologies.errors import BadInput
from topologies.files import refuse_overwriting, write_text


@click.command()
@click.argument("tables", nargs=-1, required=True, metavar="TABLE...")
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False), help="Where to write the profile (YAML)."
)
@click.option(
    "--fit",
    "fit_rows",
    metavar="EXPR",
    help="Rows to fit, such as \"ranks != 4 and system == 'h200_sxm'\". [default: all]",
)
@click.option("--base", default="vendor", show_default=True, help="Profile to add to; its other models stay.")
@click.option("--source", default="", help="Where the table comes from, kept in the profile.")
@click.option("--date", help="Date kept in the profile. [default: today]")
@click.option("--json", "json_", is_flag=True, help="Print the fitted models as JSON instead of a table.")
def calibrate(
    tables: tuple[str, ...], output: str, fit_rows: str | None, base: str, source: str, date: str | None, json_: bool
) -> None:
    """Fit the time model to what you measured.

    A TABLE is what nccl-tests' alltoall_perf prints, or a CSV with the columns of one of these kinds:

    \b
    NCCL all-to-all   ranks, bytes_per_rank, time_us  [system, nodes, dtype]
    DeepEP            ranks, nodes, tokens_per_rank, hidden, top_k, experts, dispatch_us, combine_us
                      or dispatch_transmit_us, dispatch_notify_us, dispatch_sms, combine_...
    NVLink kernels    op, dtype, ranks, tokens_per_rank, hidden, top_k, experts, time_us
    expert compute    ranks, tokens, hidden, intermediate, top_k, experts, distribution, time_us  [slots, dtype]
    epplan's executor exchange, phase, ranks, domains, bytes_out_max, time_us

    Rows with a missing, non-positive or impossible number are skipped and reported; outliers lose their weight in the
    fit.

    \b
    epplan calibrate nccl.csv --fit "ranks != 4" -o mine.yaml
    epplan accuracy --profile mine.yaml nccl.csv --on "ranks == 4"
    """
    if not Path(output).resolve().parent.is_dir():
        raise BadInput(f"{output}: the folder {Path(output).parent} does not exist")
    refuse_overwriting(output, *tables)
    loaded = []
    for path in tables:
        table = read_table(path)
        for remark in table.remarks:
            messages().print(f"note: {remark}")
        loaded.append(table.where(fit_rows, option="--fit"))
    name = Path(output).name.rsplit(".", maxsplit=1)[0] or "calibrated"
    day = date or dt.date.today().isoformat()
    profile = fit(loaded, load_profile(base), name=name, date=day, source=source, selection=fit_rows or "")
    write_text(
        output, profile_text(profile, "Fitted by `epplan calibrate`; every model names its table and its fit error.")
    )
    for note in _weak_fits(profile, {table.name for table in loaded}):
        messages().print(f"note: {note}")
    if json_:
        print_json(profile.model_dump(mode="json"))
        return
    results().print(_fits(profile, {table.name for table in loaded}))
    results().print(f"wrote {output}")


def _weak_fits(profile: TimingProfile, names: set[str]) -> Iterator[str]:
    """Yield which exchange models pass through every row, whatever it says, and which know no price of bytes."""
    for model in profile.exchanges:
        if model.fit.table not in names:
            continue
        what = f"{model.fit.table}: {model.kernel} {model.op} on {model.system}"
        terms = sum(len(regime.us) for regime in model.regimes)
        if model.fit.rows <= terms:
            yield f"{what}: {model.fit.rows} rows for {terms} terms; errors say nothing, measure more sizes or ranks"
        if model.op != "prepare" and not set(OF_BYTES) & set(model.regimes[-1].us):
            largest = model.spans["message_bytes"].high
            yield (
                f"{what}: messages up to {largest:,.0f} bytes show no bandwidth, that of the base profile stays; "
                "measure larger ones"
            )


def _fits(profile: TimingProfile, names: set[str]) -> RichTable:
    table = RichTable(title=f"Fitted: profile {profile.name}", title_justify="left", header_style="bold")
    for column in ("table", "model", "system", "op", "type"):
        table.add_column(column)
    for column in ("ranges", "rows", "mean error", "median", "p95"):
        table.add_column(column, justify="right")
    fitted = [(m.fit, m.kernel, m.system, m.op, m.dtype, str(len(m.regimes))) for m in profile.exchanges]
    fitted += [(m.fit, f"experts {m.kernel}", m.system, "compute", m.dtype, "-") for m in profile.experts]
    for report, kernel, system, op, dtype, ranges in fitted:
        if report.table in names:
            errors = (f"{value:.1%}" for value in (report.mape, report.median, report.p95))
            table.add_row(report.table, kernel, system, op, dtype, ranges, str(report.rows), *errors)
    return table
