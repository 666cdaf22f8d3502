"""The options of `epplan plan`: what they are called, and what is read of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import click

from app.profile_option import profile_option
from planner.placement import REPLICA_CHOICES
from planner.solve import OBJECTIVES
from planner.timing import OVERLAPS, PLAN_EXCHANGES, Overlap, PlanExchange
from topologies import BadInput


class PlanOptions(NamedTuple):
    """What the user asked for; each field is the option of its name, None where it was not given."""

    model: str | None
    cluster: str | None
    routing: tuple[str, ...]
    windows: int | None
    robust: str | None
    slots_per_rank: int | None
    memory_per_rank: float | None
    training: bool
    engine_compatible: bool
    replica_choice: Literal["shares", "cover", "auto"]
    tokens_per_rank: float | None
    exchange: PlanExchange | Literal["auto"]
    objective: Literal["time", "balance"]
    time_limit: float | None
    overlap: Overlap
    profile: str
    from_: str | None
    max_moves: str | None
    move_cost: float | None
    without: tuple[str, ...]
    ep_groups: int
    ep_stride: int
    rank_speed: str | None
    survive: str | None
    seed: int
    workers: int | None
    output: str | None
    json_: bool

    def check_coherent(self) -> None:
        """Refuse what `--exchange coherent` cannot be planned with; BadInput names both."""
        together = {
            "--from": self.from_ is not None,
            "--survive": self.survive is not None,
            "several --routing": len(self.routing) > 1,
            "--windows": self.windows is not None,
            "--memory-per-rank": self.memory_per_rank is not None,
            "--engine-compatible": self.engine_compatible,
            f"--replica-choice {self.replica_choice}": self.replica_choice != "shares",
            f"--objective {self.objective}": self.objective != "time",
            f"--overlap {self.overlap}": self.overlap != "none",
        }
        for option, given in together.items():
            if given and self.exchange == "coherent":
                raise BadInput(f"{option} does not go with --exchange coherent; leave one of them out")

    @property
    def lost(self) -> list[str]:
        """Return the lost parts, one by one."""
        return [part for parts in self.without for part in parts.split(",") if part]


_OPTIONS = (
    click.option("--model", help="Known name (deepseek-v3, mixtral-8x7b, ...) or a Hugging Face config.json."),
    click.option("--cluster", help="Catalog name and size (hgx-h100:4) or a cluster file."),
    click.option(
        "--routing",
        multiple=True,
        help="Routing statistics: logical_count JSON, SGLang recorder .pt, .npz, CSV, ... "
        "Several: scenarios of one plan.",
    ),
    click.option("--windows", type=click.IntRange(min=2), help="Take this many spans of a recording as scenarios."),
    click.option(
        "--robust",
        metavar="worst|mean|cvar:Q",
        help="How scenarios count: the worst, their mean, or the mean of the worst 1-Q of them. [default: worst]",
    ),
    click.option(
        "--slots-per-rank", type=int, help="Expert slots on every rank. [default: what the experts need, plus one]"
    ),
    click.option(
        "--memory-per-rank",
        type=float,
        metavar="GB",
        help="Instead: memory of a rank for its MoE layers, spent on the copies and layers where it saves time. "
        "Attention, embeddings, KV cache and activations are not known here: leave room for them.",
    ),
    click.option(
        "--training",
        is_flag=True,
        help="With --memory-per-rank: gradients and Adam states too, 16 bytes a parameter in all.",
    ),
    click.option(
        "--engine-compatible",
        is_flag=True,
        help="What serving engines hold without loss: as many slots on every rank and in every layer, at most those of "
        "--slots-per-rank, and copies that serve equal shares.",
    ),
    click.option(
        "--tokens-per-rank",
        type=float,
        help="Tokens of a rank in a step. [default: the trace itself; 4096 for plain counts]",
    ),
    click.option(
        "--exchange",
        type=click.Choice(["auto", *PLAN_EXCHANGES]),
        default="auto",
        show_default=True,
        help="All-to-all algorithm; auto takes the fastest but coherent: there tokens stay on the rank of the expert "
        "that they list first and are gathered once a step (ExFlow). It needs a trace of several layers and an "
        "engine of its own: our executor runs the others.",
    ),
    click.option(
        "--replica-choice",
        type=click.Choice([*REPLICA_CHOICES, "auto"]),
        default="shares",
        show_default=True,
        help="Which copy a token uses: as the plan's shares say, or a cover of the ranks and domains that it visits "
        "anyway; auto takes what is predicted faster.",
    ),
    click.option(
        "--objective",
        type=click.Choice(OBJECTIVES),
        default="time",
        show_default=True,
        help="Predicted time, or load balance alone.",
    ),
    click.option(
        "--time-limit",
        type=click.FloatRange(min=0),
        help="Seconds for the search; 0 = best baseline. [default: a fixed amount of work, reproducible]",
    ),
    click.option(
        "--overlap",
        type=click.Choice(OVERLAPS),
        default="none",
        show_default=True,
        help="Phases that run at once: the dispatch under the shared experts, or two micro-batches.",
    ),
    profile_option,
    click.option("--from", "from_", metavar="PLAN", help="Plan in force: the next one is made to move few weights."),
    click.option(
        "--max-moves", metavar="N|N%", help="With --from: experts that may travel, or which part of all slots."
    ),
    click.option(
        "--move-cost",
        type=click.FloatRange(min=0),
        metavar="US",
        help="With --from: microseconds of step time that each move has to save.",
    ),
    click.option(
        "--without", multiple=True, metavar="PART", help="Lost part: host3, host1/gpu2, host0/nic4. Repeatable."
    ),
    click.option(
        "--ep-groups",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Equal EP groups that run at once on the cluster, as replicas under data parallelism: one plan, for the "
        "ranks of one group, serves them all, and links that they share (spine, NICs) carry the load of all.",
    ),
    click.option(
        "--ep-stride",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="With --ep-groups: how far apart the ranks of a group are, as under tensor parallelism; 1 = side by side.",
    ),
    click.option(
        "--rank-speed", metavar="FILE", help="Ranks of other speed or memory: CSV or YAML of rank,speed[,slots]."
    ),
    click.option(
        "--survive",
        type=click.Choice(["host"]),
        help="Keep copies on two hosts, for as many experts as the slots allow, and print the price.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="The same seed gives the same plan, on any number of workers.",
    ),
    click.option("--workers", type=click.IntRange(min=1), help="Layers solved at once. [default: one per core]"),
    click.option("-o", "--output", type=click.Path(dir_okay=False), help="Where to write plan.json."),
    click.option("--json", "json_", is_flag=True, help="Print the comparison as JSON instead of a table."),
)


def plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, in the order in which its help lists them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
