"""`epplan validate`: a plan and its rivals, predicted and measured, side by side."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import click
from rich.table import Table

from app.console import messages, print_json, results
from app.inputs import workload_of_plan
from planner import Plan, Workload, load_plan, load_profile
from planner.baselines import BASELINES, baseline
from planner.timing import EXCHANGES, Exchange, plain
from topologies.errors import BadInput, Infeasible
from topologies.files import refuse_overwriting, write_text
from topologies.routes import POLICIES

if TYPE_CHECKING:
    from executor.validation.places import Site
    from executor.validation.report import ValidationReport
    from executor.validation.validate import Candidate

TIMEOUT_S = 1800.0


@click.command()
@click.argument("plan", metavar="PLAN")
@click.option("--lab", "in_lab", is_flag=True, help="In a network of namespaces with the links of the plan's cluster.")
@click.option("--routing", help="Routing statistics, as in `epplan plan`. [default: the bundled trace]")
@click.option("--tokens-per-rank", type=click.IntRange(1, 2**24), help="Tokens of a rank. [default: the plan's]")
@click.option("--layer", "layers", type=int, multiple=True, help="Layer of the model; repeatable. [default: the first]")
@click.option(
    "--exchange",
    "exchanges",
    type=click.Choice(EXCHANGES),
    multiple=True,
    help="All-to-all algorithm; repeatable. [default: the plan's]",
)
@click.option(
    "--against", type=click.Choice(BASELINES), multiple=True, help="Baseline; repeatable. [default: all that fit]"
)
@click.option("--cluster", help="Cluster file, where the plan's cluster is not in the catalog.")
@click.option(
    "--policy",
    type=click.Choice(POLICIES),
    default="pxn",
    show_default=True,
    help="How rows reach another rail: over NVLink to the GPU whose NIC is on it (pxn), or through the spine (direct).",
)
@click.option("--nic-mbit", type=click.FloatRange(0, min_open=True), help="Lab: Mbit/s of a NIC. [default: what fits]")
@click.option("--repeats", type=click.IntRange(1, 1000), default=5, show_default=True, help="Steps that count.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False), help="Report as JSON, or as a page if it ends in .html."
)
@click.option("--page", type=click.Path(dir_okay=False), help="Report as a page (HTML, nothing outside it).")
@click.option("--json", "json_", is_flag=True, help="Print the report as JSON instead of a table.")
def validate(
    plan: str, *, in_lab: bool, routing: str | None, tokens_per_rank: int | None, layers: tuple[int, ...],
    exchanges: tuple[Exchange, ...], against: tuple[str, ...], cluster: str | None, policy: str,
    nic_mbit: float | None, repeats: int, output: str | None, page: str | None, json_: bool,
) -> None:  # fmt: skip
    """Calibrate on probes, predict a plan and the baselines, run them, and lay predicted beside measured.

    \b
    sudo epplan validate plan.json --lab --routing trace.npz -o report.json --page report.html
    torchrun --nproc-per-node 8 ... -m app.main validate plan.json --routing trace.npz -o report.json

    Under torchrun the ranks are those of the job, on its real links. With --lab each rank has a network namespace, and
    every link of the plan's cluster its bandwidth times one factor; experts are then a wait (emulated). Probes are
    one-to-one flows and uniform exchanges: no plan is ever seen by the calibration.
    """
    for path in (output, page):
        refuse_overwriting(path, plan)
    if importlib.util.find_spec("torch") is None:
        raise BadInput("`epplan validate` needs torch, which is not installed: pip install 'epplan[executor]'")
    loaded = load_plan(plan)
    numbers = list(layers) or [loaded.layers[0].layer]
    workload = workload_of_plan(loaded, numbers, routing=routing, cluster=cluster, tokens_per_rank=tokens_per_rank)
    from executor.validation.places import is_member, lab_site, local_site, member_site  # noqa: PLC0415 - torch

    if in_lab:
        place = lab_site(workload.cluster, nic_mbit, policy)
    else:
        place = member_site() if is_member() else local_site(loaded.num_ranks)
    with place as site:
        candidates = _candidates(loaded, workload, exchanges or (plain(loaded.exchange),), against)
        report = _validate(site, workload, candidates, policy, repeats)
        if site.reports:
            _tell(report, output, page, json_)


def _candidates(
    plan: Plan, workload: Workload, exchanges: tuple[Exchange, ...], against: tuple[str, ...]
) -> list[Candidate]:
    """Return the baselines that fit the plan's slots, and the plan, under each exchange."""
    import numpy as np  # noqa: PLC0415

    from executor.validation.validate import Candidate  # noqa: PLC0415 - torch

    slots_R = np.array(plan.workload.slots_per_rank)
    placed = {}
    for name in against or BASELINES:
        try:
            rows = baseline(name, workload, slots_R)
        except Infeasible as error:
            if against:
                raise
            messages().print(f"left out: {error}", highlight=False, markup=False)
            continue
        placed[name] = {n: row.without_duplicates() for n, row in zip(workload.layers, rows, strict=True)}
    index = {entry.layer: i for i, entry in enumerate(plan.layers)}
    placed["ours"] = {layer: plan.placement(index[layer]) for layer in workload.layers}
    return [Candidate(name, exchange, layers) for exchange in exchanges for name, layers in placed.items()]


def _validate(
    site: Site, workload: Workload, candidates: list[Candidate], policy: str, repeats: int
) -> ValidationReport:
    from executor.step_ids import step_ids  # noqa: PLC0415
    from executor.validation.link_loads import Links  # noqa: PLC0415
    from executor.validation.timing import Setting  # noqa: PLC0415
    from executor.validation.validate import Validation, make_report  # noqa: PLC0415

    cluster, tokens = workload.cluster, max(round(workload.tokens_per_rank), 1)
    where = tuple(cluster.domain_of_rank.tolist()), tuple(cluster.rail_of_rank.tolist())
    validation = Validation(
        ranks=site.ranks,
        counters=site.counters,
        links=Links(cluster, policy),
        scale=site.scale,
        workload=workload,
        profile=load_profile(),
        ids=step_ids(workload.model, workload.layers, workload.num_ranks, tokens, workload.routing),
        setting=Setting(workload.model.hidden, "bfloat16", repeats, 1, *where, device=site.device),
        timeout_s=TIMEOUT_S,
        compute=site.counters is not None,
        real_links=site.real_links,
    )

    def say(line: str) -> None:
        if site.reports:
            messages().print(line, highlight=False, markup=False)

    return make_report(validation, candidates, site.where, say)


def _tell(report: ValidationReport, output: str | None, page: str | None, json_: bool) -> None:
    """Write the files, print the table, and exit with 1 where what ran is not the plan."""
    from executor.validation.page import page as as_page  # noqa: PLC0415

    for path in (output, page):
        if path is not None:
            as_html = path.endswith((".html", ".htm")) or path == page
            write_text(path, as_page(report) if as_html else report.model_dump_json(indent=1) + "\n")
            messages().print(f"wrote {path}", highlight=False, markup=False)
    if json_:
        print_json({**report.model_dump(mode="json"), "summary": report.summary()})
    else:
        results().print(_table(report))
        for line in _findings(report):
            results().print(line, highlight=False, markup=False)
    if any(case.problems for case in report.cases):
        click.get_current_context().exit(1)


def _table(report: ValidationReport) -> Table:
    table = Table(
        title=f"{report.cluster}, {report.where}: milliseconds, predicted (fitted to probes) / measured",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("plan")
    table.add_column("exchange")
    for name in ("layer", "dispatch", f"compute ({report.compute})", "combine", "error", "rows sent", "as planned"):
        table.add_column(name, justify="right")
    for case in report.cases:
        phases = (f"{phase.predicted_us / 1e3:,.1f} / {phase.measured_us / 1e3:,.1f}" for phase in case.phases)
        table.add_row(
            case.plan, case.exchange, str(case.layer), *phases, f"{case.error:+.1%}", f"{case.rows:,}",
            "no" if case.problems else "exact",
        )  # fmt: skip
    return table


def _findings(report: ValidationReport) -> list[str]:
    """Return what the table means."""
    figures = report.summary()
    lines = [
        f"dispatch + combine: predicted and measured differ by {figures['median_error']:.1%} (median), "
        f"{figures['p95_error']:.1%} (95th percentile); {report.calibration.probes} probes fitted within "
        f"{report.calibration.median_error:.1%} (median)"
    ]
    if report.link_errors():
        lines.append(f"bytes on links: predicted = counted by the kernel within {figures['largest_link_error']:.1%}")
    for layer in sorted({case.layer for case in report.cases}):
        predicted, measured = report.fastest(layer, "predicted"), report.fastest(layer, "measured")
        lines.append(
            f"layer {layer}: fastest by prediction {predicted.plan} ({predicted.exchange}), by measurement "
            f"{measured.plan} ({measured.exchange})"
        )
    lines += [
        f"{one.plan} and {other.plan} ({one.exchange}, layer {one.layer}) are in another order than predicted"
        for one, other in report.misranked()
    ]
    lines += [
        f"{link.link} disagrees with the graph: its best flow reached {link.reached:.0%} of its rate, {link.usual:.0%} "
        "is usual"
        for link in report.disagreeing
    ]
    return lines + [f"{case.plan}: {problem}" for case in report.cases for problem in case.problems]
