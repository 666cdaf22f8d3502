"""`epplan routing`: what routing statistics say before any plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click
import numpy as np
from rich.table import Table

from app.console import byte_progress, messages, print_json, results
from planner import MoEModel, Routing, load_model, load_routing
from planner.routing_heatmap import heatmap
from planner.routing_report import RoutingReport, report
from topologies.errors import BadInput
from topologies.files import write_text


@click.group()
def routing() -> None:
    """Look at routing statistics: what engines and trainers record of which experts the tokens visit.

    \b
    Reads SGLang recorder dumps, Megatron routing traces, TensorRT-LLM expert statistics, load windows of
    vLLM, router logits of Hugging Face models, .npz, CSV and Parquet; a folder is the files of all ranks
    of one recording.
    """


@routing.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--model", help="Known name or config.json: which row is which layer, how many experts a token visits.")
@click.option("--ranks", type=click.IntRange(1), help="EP group that the verdict is for. [default: 8]")
@click.option("--svg", type=click.Path(dir_okay=False), help="Draw a heatmap of layers and experts into this file.")
@click.option("--json", "json_", is_flag=True, help="Print the report as JSON instead of tables.")
def show(files: tuple[str, ...], *, model: str | None, ranks: int | None, svg: str | None, json_: bool) -> None:
    """Print layers, experts, tokens, skew, drift and co-activation, and whether placing experts can help.

    Several FILES are taken as windows of one recording, in their order: drift is measured between them.

    \b
    epplan routing show loads.json --model deepseek-v3 --ranks 32 --svg loads.svg
    epplan routing show monday.json tuesday.json
    """
    known = None if model is None else load_model(model)
    joined = _joined([_load(file, known) for file in files])
    for remark in joined.remarks:
        messages().print(f"note: {remark}", highlight=False, markup=False)
    found = report(joined, ranks)
    if svg is not None:
        write_text(svg, heatmap(joined, found))
    if json_:
        print_json(asdict(found))
        return
    results().print(_table(found))
    for reason in found.verdict.reasons:
        results().print(f"- {reason}", highlight=False, markup=False)
    if svg is not None:
        messages().print(f"drawn: {svg}", highlight=False, markup=False)


def _load(file: str, model: MoEModel | None) -> Routing:
    """Load a file, with a progress bar where it is long."""
    with byte_progress(f"reading {Path(file).name}") as listen:
        return load_routing(file, model, progress=listen)


def _joined(parts: Sequence[Routing]) -> Routing:
    """Return several recordings as windows of one; raise BadInput where their layers or experts differ."""
    first = parts[0]
    if len(parts) == 1:
        return first
    experts = max(part.num_experts for part in parts)
    for part in parts:
        if part.layers != first.layers or (part.num_experts != experts and part.trace is None):
            raise BadInput(
                f"{part.name}: {len(part.layers)} layers x {part.num_experts} experts; {first.name} has "
                f"{len(first.layers)} x {first.num_experts}: files of different models cannot be compared"
            )
    counts = [np.pad(part.expert_counts, ((0, 0), (0, experts - part.num_experts))) for part in parts]
    return replace(
        first,
        counts=np.sum(counts, axis=0)[:, None, :],
        trace=None,
        token_source=None,
        name=f"{len(parts)} files",
        remarks=tuple(dict.fromkeys(remark for part in parts for remark in part.remarks)),
        windows=np.stack(counts),
    )


def _table(found: RoutingReport) -> Table:
    tokens = "" if found.tokens is None else f", {found.tokens:,} tokens (top-{found.top_k})"
    sources = "sources not told apart" if found.sources == 1 else f"{found.sources} sources"
    table = Table(
        title=f"{found.name}: {len(found.layers)} layers x {found.experts} experts{tokens}, {sources}, "
        f"{found.windows} window{'s' if found.windows > 1 else ''}",
        title_justify="left",
        header_style="bold",
    )
    names = ("layer", "pairs", "skew", "top 10%", "idle", "drift", "co-activation")
    for name in (*names, f"blocks on {found.ranks}", "packed", "+1 slot"):
        table.add_column(name, justify="right")
    for layer in found.layers:
        table.add_row(
            str(layer.layer), f"{layer.tokens:,.0f}", f"{layer.skew:.2f}", f"{layer.top_tenth:.1%}",
            str(layer.idle_experts), _percent(layer.drift), _percent(layer.co_activation), f"{layer.linear:.3f}",
            f"{layer.packed:.3f}", f"{layer.replicated:.3f}",
        )  # fmt: skip
    skew, top = found.mean("skew"), found.mean("top_tenth")
    table.add_section()
    table.add_row(
        "mean", "", f"{skew:.2f}", f"{top:.1%}", "", _percent(found.mean("drift")),
        _percent(found.mean("co_activation")), f"{found.mean('linear'):.3f}", f"{found.mean('packed'):.3f}",
        f"{found.mean('replicated'):.3f}",
    )  # fmt: skip
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
