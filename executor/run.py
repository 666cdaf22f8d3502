"""`epplan run PLAN`, or as a member of a job `torchrun ... -m executor.run PLAN`: the plan as real layers, measured.

Needs torch only when it runs, so that the command line can show its help without.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from executor.run_job import DTYPE_BYTES, RunJob, make_job
from planner import load_plan
from planner.timing import EXCHANGES
from topologies.errors import BadInput, EpplanError

if TYPE_CHECKING:
    from executor.run_rank import RunResult

WIDTH_OFF_TERMINAL = 160
RUN_TIMEOUT_S = 24 * 3600.0  # Ctrl-C ends a run that takes too long; this only ends one that nobody watches


@click.command()
@click.argument("plan", metavar="PLAN")
@click.option("--nproc", type=int, help="Ranks to start on this machine. [default: the plan's]")
@click.option("--routing", default="random", show_default=True, help="Routing statistics to run on, or `random`.")
@click.option(
    "--tokens-per-rank", type=click.IntRange(1, 2**24), help="Tokens of a rank in a step. [default: the plan's]"
)
@click.option("--layers", help="Layers of the plan to run, such as 3,10 or all. [default: up to 4, evenly spread]")
@click.option("--steps", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Steps that count.")
@click.option("--warmup", type=click.IntRange(0, 1000), default=3, show_default=True, help="Steps before them.")
@click.option("--hidden", type=click.IntRange(1, 2**20), help="Run with this hidden size instead of the model's.")
@click.option("--intermediate", type=click.IntRange(1, 2**20), help="Run with experts of this size instead.")
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPE_BYTES)),
    help="Of weights and rows. [default: bfloat16 on cuda, else float32]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--exchange", type=click.Choice(EXCHANGES), help="All-to-all algorithm. [default: the plan's]")
@click.option("--forward-only", is_flag=True, help="No backward pass.")
@click.option("--guard", is_flag=True, help="Compare every collective across ranks before it is made (slower).")
@click.option("--json", "json_", is_flag=True, help="Print one JSON document instead of tables.")
def run(plan: str, nproc: int | None, json_: bool, **options: Any) -> None:
    """Run a plan as real expert-parallel layers: times per phase, rows per rank, and whether it is the plan.

    \b
    epplan run plan.json                                          all ranks on this machine
    epplan run plan.json --hidden 256 --intermediate 128          a large model's plan on a laptop
    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        -m executor.run plan.json --routing loads.json            one rank a GPU, on every host

    All ranks begin each phase together, so that the times of phases do not mix. Predicted times come from probes of
    this machine, which run other routing on another placement. Exit code 1 when what ran is not the plan.
    """  # noqa: D301 - \b is the mark of click for a paragraph to print as it stands
    if importlib.util.find_spec("torch") is None:
        raise BadInput("`epplan run` needs torch, which is not installed: pip install 'epplan[executor]'")
    loaded = load_plan(plan)
    member = {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ)
    world_size = int(os.environ["WORLD_SIZE"]) if member else loaded.num_ranks if nproc is None else nproc
    if world_size != loaded.num_ranks:
        raise BadInput(f"{plan}: a plan for {loaded.num_ranks} ranks ({loaded.cluster.name}), the job has {world_size}")
    job, notes = make_job(loaded, world_size, member, **options)
    result = _as_member(job) if member else _on_this_machine(job)
    if member and int(os.environ["RANK"]):
        return
    from executor.run_report import as_json, print_report, problems  # noqa: PLC0415 - torch

    if json_:
        click.echo(json.dumps(as_json(job, result, notes), indent=2, allow_nan=False))
    else:
        width = None if sys.stdout.isatty() else WIDTH_OFF_TERMINAL
        print_report(job, result, notes, Console(file=sys.stdout, width=width, highlight=False))
    wrong = problems(result)
    if wrong:
        click.echo(f"epplan: not the plan: {wrong[0]} ({len(wrong)} differences)", err=True)
        click.get_current_context().exit(1)


def _on_this_machine(job: RunJob) -> RunResult:
    from executor.launch import run_ranks  # noqa: PLC0415 - torch
    from executor.run_rank import run_rank  # noqa: PLC0415 - torch

    ranks, backend = job.plan.num_ranks, "nccl" if job.device == "cuda" else "gloo"
    threads = max((os.cpu_count() or 1) // ranks, 1)
    click.echo(f"starting {ranks} ranks on this machine ({backend}, {threads} threads each)", err=True)
    return run_ranks(run_rank, ranks, job, timeout_s=RUN_TIMEOUT_S, backend=backend, threads=threads)[0]


def _as_member(job: RunJob) -> RunResult:
    """Run as one rank of a job that torchrun or Slurm has started."""
    import torch  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415

    from executor.run_rank import run_rank  # noqa: PLC0415 - torch

    if job.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if job.device == "cuda" else "gloo")
    try:
        return run_rank(dist.get_rank(), dist.get_world_size(), job)
    finally:
        dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command outside `epplan`: errors of the user are one line here too."""
    try:
        sys.exit(run.main(arguments, prog_name="executor.run", standalone_mode=False))
    except EpplanError as error:
        click.echo(f"epplan: rank {os.environ.get('RANK', '0')}: {' '.join(str(error).split())}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        click.echo(f"epplan: {error.format_message()}", err=True)
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(130)


if __name__ == "__main__":
    main()
