"""The constants of the time model: a TimingProfile, with where each of them comes from.

A profile holds vendor figures with typical efficiencies and, where it is calibrated, fitted models of exchange kernels
(`planner.exchange_model`) and of expert compute (`planner.expert_model`), which go first. The vendor part:

    t_comm = alpha(exchange, regime) + max over links ( bytes / (efficiency[kind] * bandwidth) )
    t_rank = launch + weight bytes of active experts / (hbm_efficiency * HBM)
                    + FLOPs * (1 + half_rows / rows) / (flop_efficiency * peak)

The last factor makes an expert reach half of the GEMM efficiency at `half_rows` rows; it is affine in rows, so that
the solver may treat a rank's time as  launch + (cost of each active slot) + (cost of each row).
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from planner.exchange_model import ExchangeModel
from planner.expert_model import ExpertModel
from topologies import BadInput
from topologies.cluster_file import parse_yaml
from topologies.errors import unknown_name
from topologies.files import read_text, what_is_there

Exchange = Literal["pairwise", "dedup", "two-level"]
EXCHANGES: tuple[Exchange, ...] = ("pairwise", "dedup", "two-level")
PlanExchange = Literal["pairwise", "dedup", "two-level", "coherent"]
PLAN_EXCHANGES: tuple[PlanExchange, ...] = (*EXCHANGES, "coherent")
"""What a plan may be made for: `coherent` ties all layers together, and is predicted only (`planner.coherent`)."""
Overlap = Literal["none", "shared-expert", "two-batches"]
OVERLAPS: tuple[Overlap, ...] = ("none", "shared-expert", "two-batches")

Fraction = Annotated[float, Field(gt=0, le=1)]
Microseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Regime(_Strict):
    """Start-up time and efficiencies for one range of message sizes.

    `max_bytes_per_peer` is the mean message between two ranks up to which the regime holds; null = no upper end.
    """

    max_bytes_per_peer: float | None = Field(default=None, gt=0)
    alpha_intra_us: Microseconds
    alpha_inter_us: Microseconds
    efficiency: dict[str, Fraction]
    source: str


class ComputeConstants(_Strict):
    """What the grouped GEMM of a rank's experts reaches."""

    launch_us: Microseconds
    hbm_efficiency: Fraction
    flop_efficiency: Fraction
    half_rows: float = Field(ge=0, allow_inf_nan=False)
    source: str


class TimingProfile(_Strict):
    """Every constant of the time model, with its provenance.

    Attributes:
        status: `uncalibrated` where nothing in it was fitted.
        regimes, compute: vendor figures times typical efficiencies; used where nothing better is there.
        exchanges, experts: fitted models (`epplan calibrate`), used before them.

    """

    format: Literal["epplan.timing-profile"]
    name: str
    status: Literal["uncalibrated", "calibrated"]
    note: str
    regimes: tuple[Regime, ...] = Field(min_length=1, fail_fast=True)
    compute: ComputeConstants
    exchanges: tuple[ExchangeModel, ...] = Field(default=(), fail_fast=True)
    experts: tuple[ExpertModel, ...] = Field(default=(), fail_fast=True)

    def regime(self, bytes_per_peer: float) -> Regime:
        """Return the regime of a mean message size in bytes."""
        for regime in self.regimes:
            if regime.max_bytes_per_peer is None or bytes_per_peer <= regime.max_bytes_per_peer:
                return regime
        return self.regimes[-1]


def plain(exchange: PlanExchange) -> Exchange:
    """Return an exchange that carries layers one by one; BadInput for `coherent`, which no executor runs."""
    if exchange == "coherent":
        raise BadInput(
            "the plan is made for --exchange coherent, which only `epplan plan` and `epplan evaluate` know; make it "
            f"with another one (auto, {', '.join(EXCHANGES)})"
        )
    return exchange


def alpha_us(regime: Regime, exchange: Exchange, num_domains: int) -> float:
    """Return the start-up time of one exchange: both tiers in turn for `two-level`, else the slower tier in use."""
    if num_domains == 1:
        return regime.alpha_intra_us
    if exchange == "two-level":
        return regime.alpha_inter_us + regime.alpha_intra_us
    return regime.alpha_inter_us


def rows_per_peer(exchange: Exchange, tokens: float, top_k: float, num_ranks: int, num_domains: int) -> float:
    """Return the mean rows from one rank to one peer for uniform routing, which selects the regime of a step.

    Taken from the workload alone, not from a placement: so that no plan gains by hopping over a regime's edge.
    """
    if exchange == "pairwise":
        return tokens * top_k / num_ranks
    peers = num_ranks if exchange == "dedup" else num_domains
    return float(tokens * (1 - (1 - 1 / peers) ** top_k)) if peers > 1 else tokens


def profile_names() -> list[str]:
    """Return the names of the profiles that come with epplan."""
    folder = resources.files("planner") / "profiles"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_profile(name_or_path: str = "vendor") -> TimingProfile:
    """Load a shipped profile by name or any profile by its YAML file; raise BadInput that names the field."""
    if name_or_path in profile_names():
        return _shipped(name_or_path)
    if Path(name_or_path).suffix in (".yaml", ".yml") or what_is_there(name_or_path):
        text = read_text(name_or_path, limit_bytes=2**20)
    else:
        raise unknown_name("timing profile", name_or_path, profile_names())
    return parse_profile(text, name_or_path)


@cache
def _shipped(name: str) -> TimingProfile:
    text = (resources.files("planner") / "profiles" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_profile(text, name)


def parse_profile(text: str, where: str) -> TimingProfile:
    """Read the YAML of a profile; `where` names it in errors."""
    try:
        return TimingProfile.model_validate(parse_yaml(text, where))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "document"
        raise BadInput(f"{where}: {field}: {first['msg']} (got {str(first['input'])[:80]!r})") from error
