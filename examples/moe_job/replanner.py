"""Re-planning beside the training: `epplan plan --from` in a process of its own, at a low priority.

A step never waits for it: rank 0 looks whether it has ended, and says so with the loss that all ranks sum up anyway.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planner import Plan, build_workload, load_cluster, load_model, load_plan, load_profile, slots_of_ranks
from planner.baselines import baseline
from planner.importers import Imported, import_plan
from planner.routing import Routing

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Proposal:
    """A plan to follow the one in force, and what the planner predicts of both.

    Attributes:
        plan: the next one; None where planning failed, for the reason `problem`.
        seconds: that planning took.
        moved: experts that would travel; of how many slots.
        in_force_us, next_us: the MoE layers of a forward pass.
        migration_us: for the weights alone.

    """

    plan: Plan | None
    problem: str
    seconds: float
    moved: int = 0
    slots: int = 0
    in_force_us: float = 0.0
    next_us: float = 0.0
    migration_us: float = 0.0

    def pay_back_steps(self, state_factor: float) -> float | None:
        """Return the steps that pay for moving `state_factor` times the weights' bytes; None where nothing is saved.

        Counted with forward passes alone, so on the safe side.
        """
        saved_us = self.in_force_us - self.next_us
        return state_factor * self.migration_us / saved_us if saved_us > 0 else None


class Replanner:
    """Plans for one job; used on rank 0.

    Attributes:
        folder: of the job's files: config.json, plans and traces.
        cluster: file or catalog name.
        tokens_per_rank: of a step.
        slots_per_rank: that the next plans may fill.

    """

    def __init__(self, folder: Path, cluster: str, tokens_per_rank: int, slots_per_rank: int) -> None:
        self.folder, self.cluster = folder, cluster
        self.tokens_per_rank, self.slots_per_rank = tokens_per_rank, slots_per_rank
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._next = folder / "next-plan.json"

    @property
    def is_running(self) -> bool:
        """Whether a plan is being made, or waits to be taken."""
        return self._process is not None

    @property
    def has_ended(self) -> bool:
        """Whether a plan waits to be taken."""
        return self._process is not None and self._process.poll() is not None

    def start(self, trace: Path, plan_in_force: Path) -> None:
        """Begin to plan for the routing in a trace."""
        self._next.unlink(missing_ok=True)
        command = [
            sys.executable, "-m", "app.main", "plan", "--json", "--workers", "1", "-o", self._next,
            "--model", self.folder / "config.json", "--cluster", self.cluster, "--routing", trace,
            "--from", plan_in_force, "--tokens-per-rank", str(self.tokens_per_rank),
            "--slots-per-rank", str(self.slots_per_rank),
        ]  # fmt: skip
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        with (self.folder / "replan.json").open("wb") as out, (self.folder / "replan.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["nice", "-n", "5", *map(str, command)], stdout=out, stderr=log, env=os.environ | {"PYTHONPATH": path}
            )
        self._started = time.monotonic()

    def take(self) -> Proposal:
        """Return what planning has found."""
        assert self._process is not None
        code, seconds, self._process = self._process.wait(), time.monotonic() - self._started, None
        if code:
            log = (self.folder / "replan.log").read_text(encoding="utf-8", errors="replace").strip()
            return Proposal(None, log.splitlines()[-1] if log else f"exit code {code}", seconds)
        found = json.loads((self.folder / "replan.json").read_text(encoding="utf-8"))["migration"]
        return Proposal(
            load_plan(self._next), "", seconds, found["moved"], found["slots"], found["step_us_in_force"],
            found["step_us_new"], found["time_us"],
        )  # fmt: skip

    def stop(self) -> None:
        """End a search that nobody will ask any more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def linear_plan(config: Path, cluster: str, tokens_per_rank: int) -> Plan:
    """Return the plan that nobody has made: experts dealt out in order of their ids; predicted for even routing."""
    model, ranks = load_model(str(config)), load_cluster(cluster)
    even = Routing(model.moe_layers, np.ones((len(model.moe_layers), 1, model.experts)), name="even")
    workload = build_workload(model, ranks, even, tokens_per_rank)
    slots = -(-model.experts // ranks.num_ranks)
    placements = baseline("linear", workload, slots_of_ranks(model, ranks, slots, workload.num_layers))
    imported = Imported(workload.routing.layers, tuple(placements), slots)
    return import_plan(
        imported, workload, load_profile(), "pairwise", fmt="linear", inputs={}, command="examples/train_moe.py"
    )
