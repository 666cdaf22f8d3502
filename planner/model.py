"""MoEModel: what the planner has to know of a Mixture-of-Experts model, by name or from a Hugging Face config.json."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from planner.hf_config import parse_config, read_config
from planner.weights import WEIGHT_FORMATS, WeightDtype
from topologies.cluster_file import parse_yaml
from topologies.errors import BadInput, unknown_name
from topologies.files import what_is_there


class MoEModel(BaseModel):
    """The MoE layers of a model; all of them have the same shape.

    Attributes:
        name: for reports only.
        experts: routed experts of a layer.
        top_k: experts that a token visits.
        hidden: width of a row, in elements.
        intermediate: inner width of one routed expert.
        groups, top_groups: group-limited routing: the experts form `groups` equal groups in order of their ids, and a
            token stays within `top_groups` of them. (1, 1) where routing knows no groups.
        num_layers: transformer layers of the model, dense ones included.
        moe_layers: the indices of those with experts, ascending (DeepSeek-V3: 3..60).
        shared_experts: experts of a layer that every token visits.
        shared_intermediate: their total inner width; where routed rows are narrower than those of the model (latent
            experts), the width at which matrices `hidden` wide have as many weights.
        gated: three matrices an expert (SwiGLU) or two.
        weight_dtype: storage of the routed experts' weights (a key of `planner.weights.WEIGHT_FORMATS`).

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    experts: int = Field(ge=1, le=1_000_000)
    top_k: int = Field(ge=1)
    hidden: int = Field(ge=1, le=10_000_000)
    intermediate: int = Field(ge=1, le=10_000_000)
    groups: int = Field(default=1, ge=1)
    top_groups: int = Field(default=1, ge=1)
    num_layers: int = Field(ge=1, le=100_000)
    moe_layers: tuple[int, ...] = Field(min_length=1)
    shared_experts: int = Field(default=0, ge=0)
    shared_intermediate: int = Field(default=0, ge=0)
    gated: bool = True
    weight_dtype: WeightDtype = "bf16"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_k > self.experts:
            raise ValueError(f"top_k ({self.top_k}) > experts ({self.experts})")
        if self.experts % self.groups:
            raise ValueError(f"groups ({self.groups}) does not divide experts ({self.experts})")
        if self.top_groups > self.groups:
            raise ValueError(f"top_groups ({self.top_groups}) > groups ({self.groups})")
        reachable = self.top_groups * (self.experts // self.groups)
        if self.top_k > reachable:
            raise ValueError(f"top_k ({self.top_k}) > experts in top_groups groups ({reachable})")
        if any(b <= a for a, b in zip(self.moe_layers, self.moe_layers[1:], strict=False)):
            raise ValueError("moe_layers is not ascending")
        if self.moe_layers[0] < 0 or self.moe_layers[-1] >= self.num_layers:
            raise ValueError(
                f"moe_layers is {self.moe_layers[0]}..{self.moe_layers[-1]}, num_layers is {self.num_layers}"
            )
        return self

    @property
    def expert_params(self) -> int:
        """Weights of one routed expert (biases, under 0.1 % where a family has them, are not counted)."""
        return self.hidden * self.intermediate * (3 if self.gated else 2)

    @property
    def expert_bytes(self) -> int:
        """Bytes of one routed expert as stored, with its scales."""
        storage = WEIGHT_FORMATS[self.weight_dtype]
        inward = storage.matrix_bytes(self.intermediate, self.hidden) * (2 if self.gated else 1)
        return inward + storage.matrix_bytes(self.hidden, self.intermediate)

    @property
    def flops_per_row(self) -> int:
        """Floating-point operations of one expert on one row: a multiply and an add a weight."""
        return 2 * self.expert_params

    @property
    def dispatch_dtype(self) -> str:
        """Type of a row on its way to the experts: "fp8" where the weights are fp8, else "bf16"."""
        return "fp8" if self.weight_dtype in ("fp8", "fp8-channel") else "bf16"

    @property
    def dispatch_row_bytes(self) -> int:
        """Bytes of one dispatched row; fp8 carries a float32 scale for every 128 elements (DeepEP)."""
        if self.dispatch_dtype == "fp8":
            return self.hidden + 4 * -(-self.hidden // 128)
        return 2 * self.hidden

    @property
    def combine_row_bytes(self) -> int:
        """Bytes of one row on its way back, always bf16."""
        return 2 * self.hidden


def load_model(name_or_path: str) -> MoEModel:
    """Return the model of a known name, of a Hugging Face `config.json`, or of a directory that holds one.

    Raises:
        BadInput: an unknown name (with the nearest known ones), or a file that is unreadable, not JSON, not of a MoE
            model, or contradicts itself; the message names the file, the field and its value.

    """
    known = _named_models()
    name = name_or_path.lower()
    if name in known:
        return build_model({"name": name} | parse_config(known[name]["config"], f"model {name}"), f"model {name}")
    path = Path(name_or_path)
    if not name_or_path or not _names_a_file(path):
        last = name.rsplit("/", maxsplit=1)[-1]  # as on the hub: deepseek-ai/DeepSeek-V3
        if last in known:
            return load_model(last)
        raise unknown_name("model", name_or_path, known)
    file, config = read_config(path)
    own = file.resolve().parent.name if file.name == "config.json" else file.stem
    return build_model({"name": own or file.name} | parse_config(config, str(file)), str(file))


def _names_a_file(path: Path) -> bool:
    """Whether the user means a file: it exists, or is written like one."""
    return path.suffix == ".json" or bool(what_is_there(path))


def model_names() -> list[str]:
    """Return the names that `load_model` knows, sorted, aliases included."""
    return sorted(_named_models())


def build_model(fields: dict[str, Any], source: str) -> MoEModel:
    """Validate the fields of a model; raise BadInput that names `source` and the first culprit."""
    try:
        return MoEModel(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        value = f"{field} = {str(first['input'])[:60]!r}: " if field else ""
        raise BadInput(f"{source}: {value}{first['msg'].removeprefix('Value error, ')}") from error


@cache
def _named_models() -> dict[str, dict[str, Any]]:
    """Name -> {"config": Hugging Face fields, "source": where they were read} of models.yaml; aliases resolved."""
    table = parse_yaml(files("planner").joinpath("models.yaml").read_text(encoding="utf-8"), "models.yaml")
    assert isinstance(table, dict)
    named: dict[str, dict[str, Any]] = {}
    for name, entry in table.items():
        for each in (name, *entry.get("aliases", ())):
            named[each] = entry
    return named
