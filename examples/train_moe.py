"""Train a Hugging Face MoE with expert parallelism that follows its routing: plan, run, re-plan, migrate, go on.

    torchrun --nproc-per-node 2 examples/train_moe.py                      # a small model on CPU cores, about a minute
    torchrun --nproc-per-node 8 examples/train_moe.py --config real --cluster hgx-h100:1        # one host of GPUs

The model has random weights and learns the source of Python's standard library. Its experts are spread over the ranks
by `plan.json` (--plan), at first in order of their ids. Routing is recorded as it goes; every --replan-every steps it
is planned anew, in a process of its own, and when what the next plan saves pays for the move before the run ends,
experts and their optimizer state migrate between two steps. Times say whether they are measured or predicted. All files
go to --folder; the same command goes on from the last checkpoint there.

Shapes: B sequences, T positions.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
import torch.distributed as dist
from moe_job.job import Ranks, Text, build_model, latest_checkpoint, read_dimensions, train_step
from moe_job.machine import write_cluster_file
from moe_job.replanner import Proposal, Replanner, linear_plan
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from executor import (
    RoutingRecorder,
    apply_expert_parallel,
    check_replicas_equal,
    expert_bytes,
    find_moe_layers,
    load_checkpoint,
    migrate_to,
    save_checkpoint,
)
from executor.moe_layers import layer_numbers
from planner import Plan, load_plan
from planner.plan import parse_plan
from topologies import BadInput, EpplanError
from topologies.files import write_text

FOLDER = click.Path(file_okay=False, path_type=Path)
WARM_UP = 3  # steps after a start or a migration that no median counts


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    folder: Path
    config: str
    plan: Path | None
    cluster: str | None
    steps: int
    replan_every: int
    save_every: int
    spare_slots: int
    batch: int
    context: int
    memory_mib: int


@dataclass
class Steps:
    """Measured milliseconds of this rank's steps under one plan, wall and CPU time.

    Wall times of steps beside a search for the next plan stand apart: where ranks fill all cores, it takes a part.
    """

    alone_ms: list[float] = field(default_factory=list)
    beside_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def add(self, wall_s: float, cpu_s: float, *, beside: bool) -> None:
        """Note a step."""
        (self.beside_ms if beside else self.alone_ms).append(1e3 * wall_s)
        self.cpu_ms.append(1e3 * cpu_s)


def median_ms(values: Sequence[float]) -> float:
    """Return the median without the first few; NaN where there are no others."""
    return median(values[WARM_UP:] or [math.nan])


class Training:
    """One rank's part of the run."""

    def __init__(self, options: Options, ranks: Ranks) -> None:
        self.options, self.ranks = options, ranks
        self.text = Text(ranks, options.batch, options.context)
        self.model: nn.Module = build_model(read_dimensions(options.config), ranks)
        self.plan, cluster = self._first_plan()
        apply_expert_parallel(
            self.model, init_device_mesh(ranks.device.type, (ranks.size,), mesh_dim_names=("ep",)), self.plan
        )
        self.layers = find_moe_layers(self.model)
        self.transport = next(iter(self.layers.values())).exchange.transport
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        slots = -(-self.plan.model.experts // ranks.size) + options.spare_slots
        self.replanner = Replanner(options.folder, cluster, options.batch * options.context, slots)
        self.first = latest_checkpoint(options.folder)
        self.periods = [Steps()]
        self._record()

    def run(self) -> None:
        """Train from the last checkpoint to the last step."""
        options, shown = self.options, max(1, self.options.steps // 8)
        if self.first:
            load_checkpoint(options.folder / f"step-{self.first}", self.model, self.optimizer)
            self.say(f"step {self.first}: goes on from {options.folder}/step-{self.first}")
        for step in range(self.first, options.steps):
            planning, began, cpu_began = self.replanner.is_running, time.perf_counter(), time.process_time()
            loss = train_step(self.model, self.optimizer, self.text.crops(step), self.ranks.size)
            told = torch.stack([loss.double(), loss.new_tensor(self.replanner.has_ended, dtype=torch.float64)])
            loss, is_planned = self.transport.sum_over_ranks("loss", told).tolist()
            wall_s = time.perf_counter() - began
            self.periods[-1].add(wall_s, time.process_time() - cpu_began, beside=planning)
            if step % shown == 0 or step + 1 == options.steps:
                self.say(f"step {step}: loss {loss:.3f}, {1e3 * wall_s:,.0f} ms measured")
            done = step + 1
            if is_planned:
                self.consider(done)
            if done % options.replan_every == 0 and done < options.steps:
                self.replan(done)
            if done % options.save_every == 0 or done == options.steps:
                save_checkpoint(options.folder / f"step-{done}", self.model, self.optimizer)
        check_replicas_equal(self.model)
        self.replanner.stop()
        self.report()

    def replan(self, done: int) -> None:
        """Write the routing since the last time, and have the next plan made for it."""
        trace = self.options.folder / f"routing-{done}.npz"
        self.recorder.save(trace, self.transport)
        self._record()
        if self.ranks.rank == 0 and not self.replanner.is_running:
            self.replanner.start(trace, self.options.folder / "plan.json")
            self.say(f"step {done}: planning for the routing in {trace.name}, beside the training")

    def consider(self, done: int) -> None:
        """Migrate if rank 0 finds that the new plan pays."""
        proposal = self.replanner.take() if self.ranks.rank == 0 else None
        factor = expert_bytes(self.model, self.optimizer) / self.plan.model.expert_bytes
        pays = proposal is not None and self._pays(proposal, done, factor)
        chosen = proposal.plan.to_json() if proposal is not None and proposal.plan is not None and pays else ""
        text, predicted_us = self.transport.gather(
            "next plan", (chosen, proposal.migration_us * factor if proposal is not None else 0.0)
        )[0]
        if not text:
            return
        self.plan = parse_plan(text, "the next plan")
        memory_bytes = self.options.memory_mib * 2**20
        moved = migrate_to(self.model, self.plan, self.optimizer, memory_bytes=memory_bytes, predicted_us=predicted_us)
        self.say(f"step {done}: migrated. {moved}")
        if self.ranks.rank == 0:
            self.plan.save(self.options.folder / "plan.json")
        self.periods.append(Steps())

    def _pays(self, proposal: Proposal, done: int, factor: float) -> bool:
        if proposal.plan is None:
            self.say(f"step {done}: planning failed, training goes on: {proposal.problem}")
            return False
        steps, left = proposal.pay_back_steps(factor), self.options.steps - done
        found = (
            f"step {done}: planned in {proposal.seconds:.1f} s: the experts' part of a forward pass from "
            f"{proposal.in_force_us / 1e3:,.2f} to {proposal.next_us / 1e3:,.2f} ms predicted, "
            f"{proposal.moved} of {proposal.slots} slots to fetch"
        )
        pays = steps is not None and steps < left
        self.say(f"{found}; {'never pays' if steps is None else f'pays after {steps:.1f} steps'}, {left} are left")
        return pays

    def report(self) -> None:
        """Say what re-planning has gained, in steps that had the machine to themselves."""
        first, last = self.periods[0], self.periods[-1]
        before, after = median_ms(first.alone_ms), median_ms(last.alone_ms)
        cpu_R = self.transport.gather("CPU times", (median_ms(first.cpu_ms), median_ms(last.cpu_ms)))
        if len(self.periods) == 1:
            self.say(f"no migration; {before:,.1f} ms a step measured (median)")
            return
        self.say(
            f"gained: {before:,.1f} ms a step before the first migration, {after:,.1f} ms after the last, measured"
            f" (medians of {len(first.alone_ms)} and {len(last.alone_ms)} steps): {before / after:.3f}x the speed"
        )
        if self.ranks.device.type == "cpu":
            busiest, then = (max(times) for times in zip(*cpu_R, strict=True))
            self.say(f"CPU time of the busiest rank: {busiest:,.1f} ms a step before, {then:,.1f} ms after, measured")
        beside = [ms for period in self.periods for ms in period.beside_ms]
        if beside:
            self.say(f"{len(beside)} steps ran beside a search for a plan: {median(beside):,.1f} ms measured (median)")

    def say(self, text: str) -> None:
        """Print on rank 0."""
        if self.ranks.rank == 0:
            click.echo(text)

    def _record(self) -> None:
        self.recorder = RoutingRecorder(self.plan.model.experts)
        numbers = layer_numbers(list(self.layers), self.plan)
        self.recorder.attach(dict(zip(numbers, self.layers.values(), strict=True)))

    def _first_plan(self) -> tuple[Plan, str]:
        """Return the plan to begin with, the same on all ranks, and the cluster that it is for."""
        options, config = self.options, self.options.folder / "config.json"
        in_force = options.folder / "plan.json"
        if self.ranks.rank == 0:
            options.folder.mkdir(parents=True, exist_ok=True)
            write_text(config, json.dumps(self.model.config.to_dict(), indent=2) + "\n")  # type: ignore[operator,union-attr]
        cluster = options.cluster or str(options.folder / "cluster.yaml")
        if options.cluster is None and self.ranks.device.type == "cuda":
            raise BadInput("on GPUs say --cluster: a name (hgx-h100:1), or a file that `epplan topology import` wrote")
        if options.cluster is None and not in_force.exists():
            write_cluster_file(Path(cluster))
        texts: list[Any] = [None]
        if self.ranks.rank == 0:
            given = options.plan if options.plan is not None and not in_force.exists() else in_force
            tokens = options.batch * options.context
            plan = load_plan(given) if given.exists() else linear_plan(config, cluster, tokens)
            plan.save(in_force)
            texts = [plan.to_json()]
        dist.broadcast_object_list(texts, src=0)
        return parse_plan(texts[0], "the plan of rank 0"), cluster


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--folder", type=FOLDER, default="out/train-moe", help="Of all files.")
@click.option("--config", default="small", help="small, real (for GPUs), or a Hugging Face config.json of any MoE.")
@click.option("--plan", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Plan to begin with.")
@click.option("--cluster", help="Catalog name and hosts, or a cluster file. On CPUs this machine is measured.")
@click.option("--steps", type=click.IntRange(1), default=120, help="To train in all.")
@click.option("--replan-every", type=click.IntRange(1), default=30, help="Steps between two plans.")
@click.option("--save-every", type=click.IntRange(1), default=60, help="Steps between two checkpoints.")
@click.option("--spare-slots", type=click.IntRange(0), default=1, help="Slots a rank beyond its part of the experts.")
@click.option("--batch", type=click.IntRange(1), default=4, help="Sequences of a rank in a step.")
@click.option("--context", type=click.IntRange(2), default=128, help="Bytes of a sequence.")
@click.option("--memory-mib", type=click.IntRange(1), default=256, help="That a migration may have on its way.")
def main(**fields: Any) -> None:
    """Train a Hugging Face MoE on local text, planning its experts' places anew as its routing drifts."""
    rank = 0
    try:
        ranks = Ranks.join()
        rank = ranks.rank
        Training(Options(**fields), ranks).run()
        dist.destroy_process_group()
    except EpplanError as error:
        click.echo(f"rank {rank}: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
