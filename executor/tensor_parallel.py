"""apply_tensor_parallel: attention, norms, MLPs, head and MoE blocks of a Hugging Face model over the tp dimension.

    mesh = init_device_mesh("cuda", (2, 4, 2), mesh_dim_names=("fsdp", "ep", "tp"))
    apply_tensor_parallel(model, mesh, sequence_parallel=True)          # first
    apply_expert_parallel(model, mesh, plan)                            # then
    apply_fsdp(model, mesh)                                             # last

What a family of models needs is a table in `executor.families`; what its words mean is in
`executor.tensor_parallel_styles`.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import parallelize_module

from executor.adapters.huggingface import HuggingFaceLayer
from executor.families import Family, family_of
from executor.tensor_parallel_styles import make_styles
from executor.vocabulary_loss import causal_loss
from topologies.errors import BadInput


def apply_tensor_parallel(
    model: nn.Module,
    device_mesh: DeviceMesh | None,
    *,
    sequence_parallel: bool = False,
    expert_slices: bool = False,
    family: Family | None = None,
) -> nn.Module:
    """Split a Hugging Face model over the ranks of the mesh's `tp` dimension, in place, and return the model.

    Call it first, on a model that is whole and the same on every rank. All ranks of the dimension run the same tokens.
    Logits come as a DTensor, split by vocabulary, and `model(input_ids, labels=labels)` computes the loss from them as
    they are. Parameters become DTensors over `tp`; those of packed experts stay plain. Each rank sends its share of a
    block's tokens to experts that are whole on every rank: their gradients are parts of a sum, which
    `sum_replica_gradients` or `apply_fsdp` adds up. Or, with `expert_slices`, the ranks share the experts, too.
    Without a `tp` dimension, or with one of size 1, nothing is done.

    Args:
        model: Mixtral, Qwen3-MoE or DeepSeek-V3 of transformers, or of another family whose styles are given.
        device_mesh: a `DeviceMesh` with a dimension named `tp`, or None.
        sequence_parallel: between blocks each rank holds its part of every sequence; S must be a multiple of tp.
        expert_slices: each rank has a slice of the intermediate dimension of every expert, and computes it for all
            tokens (expert tensor parallelism); less memory, more traffic.
        family: module patterns and their styles; found by `model.config.model_type` by default.

    Raises:
        BadInput: the family is unknown, a size does not divide, or a parameter is in no module of the table. The model
            is then as it was.

    """
    if device_mesh is None or "tp" not in (device_mesh.mesh_dim_names or ()) or device_mesh["tp"].size() == 1:
        return model
    family = family or family_of(model)
    tp = device_mesh["tp"]
    style_of = _styled_modules(model, family.styles)
    _check_sizes(model, family, style_of, tp.size())
    if expert_slices:
        _check_experts(model, style_of, tp.size())
    tied = _tied(model)
    styles = make_styles(sequence_parallel, expert_slices)
    for name, style in style_of.items():
        if style in styles:
            parallelize_module(model.get_submodule(name), tp, styles[style])
    for names in tied:
        _tie(model, names)
    if "head" in style_of.values():
        model.loss_function = causal_loss  # type: ignore[assignment]  # a property with a setter, in transformers
    return model


def _styled_modules(model: nn.Module, styles: Mapping[str, str]) -> dict[str, str]:
    """Return the style of each module that has one; raises BadInput where a parameter would be left out."""
    found: dict[str, str] = {}
    for name, _ in model.named_modules():
        fitting = {style for pattern, style in styles.items() if fnmatchcase(name, pattern)}
        if len(fitting) > 1:
            raise BadInput(f"{name}: fits patterns of several styles, {', '.join(sorted(fitting))}")
        if fitting:
            found[name] = fitting.pop()
    for name, _ in model.named_parameters():
        if name.rpartition(".")[0] not in found:
            raise BadInput(f"{name}: its module has no style; tensor parallelism must know every parameter")
    return found


def _check_sizes(model: nn.Module, family: Family, style_of: Mapping[str, str], ranks: int) -> None:
    config = getattr(model, "config", None)
    for field in family.divisible:
        value = getattr(config, field, 0)
        if value % ranks:
            raise BadInput(f"{field} is {value}, which {ranks} tp ranks do not divide")
    for name, style in style_of.items():
        weight: Any = getattr(model.get_submodule(name), "weight", None)
        length = weight.shape[0] if style in ("columns", "vocabulary", "head") else None
        length = weight.shape[1] if style == "rows" else length
        if length is not None and length % ranks:
            raise BadInput(f"{name}: {length} {style} do not divide among {ranks} tp ranks")


def _check_experts(model: nn.Module, style_of: Mapping[str, str], ranks: int) -> None:
    for name, style in style_of.items():
        if style == "experts":
            layer = HuggingFaceLayer(model.get_submodule(name), None)
            if layer.misfit:
                raise BadInput(f"{name}: {layer.misfit}")
            if (layer.held.intermediate or 0) % ranks:
                raise BadInput(
                    f"{name}: intermediate is {layer.held.intermediate}, which {ranks} tp ranks do not divide"
                )


def _tied(model: nn.Module) -> list[list[str]]:
    """Return the groups of names that mean one parameter."""
    names: dict[int, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(param), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _tie(model: nn.Module, names: list[str]) -> None:
    """Let all names mean the parameter of the first; embedding and head are split alike."""
    param = model.get_parameter(names[0])
    for name in names[1:]:
        home, _, own = name.rpartition(".")
        model.get_submodule(home).register_parameter(own, param)
