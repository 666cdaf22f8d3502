"""Everything that a page is about, as one value; as query parameters it makes a link that others can open.

Uploaded files appear as `upload:DIGEST`: a link names them, and never carries or opens them for anybody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from planner.solve.solution import Objective
from planner.synthetic import MAX_EXPONENT
from planner.timing import Exchange, Overlap
from topologies.errors import BadInput
from topologies.spec import MAX_HOSTS
from topologies.without import PART

BUNDLED, POWER_LAW, UPLOAD = "bundled", "power-law", "upload:"
MAX_TEXT = 200

Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Speed = Annotated[float, Field(gt=0, le=1e5, allow_inf_nan=False)]


def _part(given: str) -> str:
    if not PART.fullmatch(given):
        raise ValueError("a part is a host, a GPU or a NIC, such as host3, host1/gpu2 or host0/nic4")
    return given


Parts = Annotated[
    tuple[Annotated[str, Field(max_length=60), AfterValidator(_part)], ...],
    Field(max_length=256),
    BeforeValidator(lambda given: given.split(",") if isinstance(given, str) else given),
]


class Settings(BaseModel):
    """Inputs, and how the cluster is taken otherwise than its description says.

    Attributes:
        model: `bundled`, a known name, or an upload.
        cluster: a catalog string such as hgx-h100:4, or an upload.
        system: catalog entry that completes an uploaded topology file.
        routing: `bundled`, `power-law`, or an upload.
        skew: exponent of the power law.
        power: the loads are taken to this power; 1 as they are.
        tokens: per rank in a step; None for what the statistics say.
        slots: per rank; None for what the experts need and one spare.
        weights_gb: GB per rank for expert weights, which decide the slots instead.
        hosts: of the cluster; None as described.
        lost: parts, such as host3, host1/gpu2 or host0/nic4.
        nic_gbps: GB/s of every NIC; None as described.
        scale_up: factor on NVLink and xGMI.
        oversubscription: of the fabric; None as described.
        survive: as many experts as the slots allow have copies on two hosts.
        slow_rank, slow_speed: a rank (of those left) whose GPU computes at a part of its speed.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Text = BUNDLED
    cluster: Text = "hgx-h100:2"
    system: Text | None = None
    routing: Text = BUNDLED
    skew: float = Field(default=0.4, ge=0, le=MAX_EXPONENT)
    power: float = Field(default=1.0, ge=0, le=MAX_EXPONENT)
    tokens: float | None = Field(default=None, gt=0, le=1e7, allow_inf_nan=False)
    slots: int | None = Field(default=None, ge=1, le=4096)
    weights_gb: float | None = Field(default=None, gt=0, le=1e4, allow_inf_nan=False)
    exchange: Literal["auto", Exchange] = "auto"
    objective: Objective = "time"
    overlap: Overlap = "none"
    profile: Text = "vendor"
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    hosts: int | None = Field(default=None, ge=1, le=MAX_HOSTS)
    lost: Parts = ()
    nic_gbps: Speed | None = None
    scale_up: float = Field(default=1.0, gt=0, le=100, allow_inf_nan=False)
    oversubscription: float | None = Field(default=None, ge=1, le=1000, allow_inf_nan=False)
    survive: bool = False
    slow_rank: int | None = Field(default=None, ge=0, le=100_000)
    slow_speed: float = Field(default=0.5, gt=0, le=1, allow_inf_nan=False)

    def but(self, **changes: Any) -> Self:
        """Return the settings with some changed; raises BadInput that names the field."""
        return self._checked(self.model_dump() | changes)

    def query(self) -> dict[str, str]:
        """Return what differs from the defaults, as query parameters."""
        found = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value != field.default:
                found[name] = ",".join(map(str, value)) if isinstance(value, tuple) else _plain(value)
        return found

    @classmethod
    def of_query(cls, query: Mapping[str, str]) -> Self:
        """Return the settings of a link; parameters of other names are passed over. Raises BadInput."""
        return cls._checked({name: query[name] for name in cls.model_fields if name in query})

    @classmethod
    def _checked(cls, fields: Mapping[str, Any]) -> Self:
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            raise BadInput(
                f"{name} = {str(first['input'])[:60]!r}: {first['msg'].removeprefix('Value error, ')}"
            ) from error

    def changes(self, other: Settings) -> dict[str, tuple[Any, Any]]:
        """Return the fields in which two settings differ, each with both values."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in type(self).model_fields}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
