"""`epplan watch`: re-plan when new statistics make it pay."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from app.apply_command import ApplyCommand
from app.in_force import move_limit
from app.inputs import cluster_of_plan
from app.profile_option import profile_option
from app.watching import Watch, next_file
from planner import load_plan, load_profile
from planner.inbox import Inbox
from planner.timing import plain
from planner.watch import Threshold
from topologies import BadInput


@click.command()
@click.argument("folder", metavar="DIR")
@click.option("--plan", "plan_", required=True, metavar="PLAN", help="Plan in force; replaced when another is applied.")
@click.option("--apply", required=True, metavar="CMD", help="Command that puts a plan into force; {plan} is its file.")
@click.option("--min-gain", type=click.FloatRange(0, 100), default=1.0, show_default=True, metavar="PERCENT",
              help="Part of the predicted step time that a new plan has to save.")  # fmt: skip
@click.option("--pay-back", type=click.FloatRange(min=0), default=10_000, show_default=True, metavar="STEPS",
              help="Steps within which the time saved has to make up for moving the weights.")  # fmt: skip
@click.option("--max-moves", metavar="N|N%", help="Experts that may travel, or which part of all slots.")
@click.option("--interval", type=click.FloatRange(min=0.1), default=10.0, show_default=True, metavar="SECONDS",
              help="Time between two looks into DIR.")  # fmt: skip
@click.option("--settle", type=click.FloatRange(min=0), default=2.0, show_default=True, metavar="SECONDS",
              help="A file is read once it has not changed for so long.")  # fmt: skip
@click.option("--once", is_flag=True, help="Deal with what is there and leave; exit code 1 where applying failed.")
@click.option("--apply-timeout", type=click.FloatRange(min=0, min_open=True), default=600.0, show_default=True,
              metavar="SECONDS", help="A command that takes longer is killed and counts as failed.")  # fmt: skip
@click.option("--time-limit", type=click.FloatRange(min=0), help="As in `epplan plan`.")
@click.option("--tokens-per-rank", type=float, help="Tokens of a rank in a step. [default: the plan's]")
@click.option("--cluster", help="Cluster file, where the plan's cluster is not in the catalog.")
@profile_option
@click.option("--workers", type=click.IntRange(min=1), help="Layers solved at once. [default: one per core]")
@click.option("--json", "json_", is_flag=True, help="One JSON object a line instead of text.")
def watch(
    folder: str,
    plan_: str,
    apply: str,
    min_gain: float,
    pay_back: float,
    max_moves: str | None,
    interval: float,
    settle: float,
    once: bool,
    apply_timeout: float,
    time_limit: float | None,
    tokens_per_rank: float | None,
    cluster: str | None,
    profile: str,
    workers: int | None,
    json_: bool,
) -> None:
    """Re-plan a running job when new statistics in DIR make it pay, and hand the plan to CMD.

    Whenever a file arrives in DIR, in any format of `epplan routing` (a folder is the files of all ranks of one
    recording), the plan in force is predicted on it and the next plan is searched from there. Where that saves
    --min-gain of the step and pays back within --pay-back steps, it is written to PLAN's folder as *.next.json, CMD is
    called with it (without a shell), and on exit code 0 it becomes PLAN. On any other, PLAN stays as it is.

    Of several new files the newest counts. Files that are still being written are waited for, those that cannot be
    read are reported once. PLAN is all the state there is: stop it with Ctrl-C or SIGTERM, start it again any time.

    \b
    epplan watch stats/ --plan plan.json --apply 'python reload.py {plan}' --max-moves 10% --json >> watch.log
    epplan watch stats/ --plan plan.json --apply 'sh -c "cp {plan} /etc/engine/ && systemctl reload engine"' --once
    """
    _check(folder, {"--interval": interval, "--pay-back": pay_back, "--time-limit": time_limit})
    plan_file = Path(plan_).absolute()
    in_force = load_plan(plan_file)
    plain(in_force.exchange)  # raises for a plan that cannot be followed
    cluster_of_plan(in_force, cluster)  # raises where its file has to be named
    move_limit(max_moves, None, 1)
    watching = Watch(
        plan_file,
        Inbox(Path(folder), settle, {plan_file, next_file(plan_file)}),
        ApplyCommand.parse(apply, apply_timeout),
        Threshold(min_gain / 100, pay_back),
        load_profile(profile),
        max_moves,
        time_limit,
        workers,
        cluster,
        tokens_per_rank,
        _tell_json if json_ else _tell,
    )
    watching.tell(
        "watching",
        f"watching {folder} for {plan_file.name}: {in_force.model.name} on {in_force.cluster.name}",
        folder=folder,
        plan=str(plan_file),
    )
    try:
        _once(watching, settle) if once else _forever(watching, interval)
    except KeyboardInterrupt:
        watching.tell("stopped", f"stopped; {plan_file.name} is in force", plan=str(plan_file))
    if once and watching.failed:
        sys.exit(1)


def _check(folder: str, numbers: Mapping[str, float | None]) -> None:
    """Refuse what needs no plan to be seen as wrong."""
    for option, value in numbers.items():
        if value is not None and not math.isfinite(value):
            raise BadInput(f"{option} is {value}, must be a finite number")
    if not Path(folder).is_dir():
        raise BadInput(f"{folder}: cannot be watched: no such folder")


def _once(watching: Watch, settle: float) -> None:
    """Look, and a second time for what was still being written."""
    if watching.turn().waiting:
        time.sleep(settle)
        watching.turn()


def _forever(watching: Watch, interval: float) -> None:
    while True:
        watching.turn()
        time.sleep(interval)


def _tell(event: str, text: str, **_: Any) -> None:  # noqa: ARG001 - people read the text
    click.echo(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z {' '.join(text.split())}")
    sys.stdout.flush()


def _tell_json(event: str, text: str, **fields: Any) -> None:
    told = {"time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "event": event, "text": " ".join(text.split())} | fields
    click.echo(json.dumps(told, allow_nan=False))
    sys.stdout.flush()
