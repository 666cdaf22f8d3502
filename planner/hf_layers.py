"""Which layers of a Hugging Face model are MoE layers.

Families say it in many ways; each rule that a config.json states can call layers dense; a layer is MoE where none does.
Each rule is that of the family's modelling code (transformers 5.23, or the remote code beside the config).
"""

from __future__ import annotations

from typing import Any

from planner.hf_values import Config, is_integer
from topologies.errors import BadInput

MAX_LAYERS = 10_000
MOE_WORDS = frozenset({"sparse", "moe", "hash_moe"})

LEADING = ("first_k_dense_replace", "num_dense_layers", "moe_layer_num_skipped", "moe_layer_start_index")
"""The first n layers are dense (DeepSeek; LFM2 and AFMoE; Hunyuan; ERNIE-4.5)."""
EVERY = ("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval", "moe_layer_frequency")
"""Every n-th layer is MoE, counted from 1 (Qwen; Llama-4; ERNIE-4.5; Arctic)."""
LISTED = ("moe_layers", "moe_layers_enum")
"""The MoE layers by their indices (Llama-4; Step-3, as text)."""
PER_LAYER = ("mlp_layer_types", "is_moe_layer", "layers_block_type", "hybrid_override_pattern", "moe_layer_layout")
"""An entry a layer: words, flags, or letters (Nemotron-H: E)."""


def moe_layer_indices(config: Config, num_layers: int) -> tuple[int, ...]:
    """Return the indices of the MoE layers, ascending.

    Raises:
        BadInput: a rule that is malformed, or rules that leave no MoE layer.

    """
    if num_layers > MAX_LAYERS:
        raise BadInput(f"{config.source}: {num_layers} layers, more than {MAX_LAYERS}")
    moe = set(range(num_layers))
    used = []
    for names, rule in (
        (LEADING, _leading),
        (EVERY, _every),
        (LISTED, _listed),
        (PER_LAYER, _per_layer),
        (("moe_layer_freq",), _frequency),
        (("mlp_only_layers",), _dense_only),
        (("moe_layer_end_index",), _until),
        (("expert_layer_period",), _periodic),
    ):
        for name in names:
            if config.values.get(name) is None:
                continue
            if name == "interleave_moe_layer_step" and config.values.get("moe_layers") is not None:
                continue  # Llama-4: the list is what counts
            moe &= rule(config, name, num_layers)
            used.append(name)
    if not moe:
        raise BadInput(f"{config.source}: not a MoE model: {', '.join(used)} leave none of {num_layers} layers MoE")
    return tuple(sorted(moe))


def stated_layers(config: Config) -> int | None:
    """Return the number of layers of a config that states none but lists them one by one (Nemotron-H), else None."""
    found = config.find(PER_LAYER)
    return len(found[1]) if found and isinstance(found[1], (str, list)) and found[1] else None


def _leading(config: Config, name: str, num_layers: int) -> set[int]:
    return set(range(config.integer((name,), low=0), num_layers))


def _every(config: Config, name: str, num_layers: int) -> set[int]:
    step = config.integer((name,), low=0)  # 0: none
    return {layer for layer in range(num_layers) if step and (layer + 1) % step == 0}


def _listed(config: Config, name: str, num_layers: int) -> set[int]:
    value = config.values[name]
    if isinstance(value, str):
        value = [int(part) if part.strip().isdecimal() else part for part in value.split(",") if part.strip()]
    return _indices(config, name, value, num_layers)


def _dense_only(config: Config, name: str, num_layers: int) -> set[int]:
    return set(range(num_layers)) - _indices(config, name, config.values[name], num_layers)


def _indices(config: Config, name: str, value: Any, num_layers: int) -> set[int]:
    if not isinstance(value, list) or not all(is_integer(each) and 0 <= each < num_layers for each in value):
        raise config.refusal(name, f"a list of layers from 0 to {num_layers - 1}")
    return set(value)


def _per_layer(config: Config, name: str, num_layers: int) -> set[int]:
    value = config.values[name]
    letters = isinstance(value, str)
    if not isinstance(value, (str, list)) or len(value) < num_layers:
        raise config.refusal(name, f"an entry for each of {num_layers} layers")
    is_moe = [each == "E" if letters else _is_moe_entry(each) for each in value[:num_layers]]
    if name == "layers_block_type" and not any(is_moe):
        return set(range(num_layers))  # there it names the mixers: Jamba, Granite
    return {layer for layer, each in enumerate(is_moe) if each}


def _is_moe_entry(entry: Any) -> bool:
    return entry in MOE_WORDS if isinstance(entry, str) else entry is True or entry == 1


def _frequency(config: Config, name: str, num_layers: int) -> set[int]:
    """`moe_layer_freq`: every n-th layer counted from 0 (DeepSeek), or a flag a layer (MiMo, MiniMax-M3)."""
    value = config.values[name]
    if isinstance(value, list):
        if len(value) < num_layers or not all(is_integer(each) and each in (0, 1) for each in value):
            raise config.refusal(name, f"a 0 or 1 for each of {num_layers} layers")
        return {layer for layer in range(num_layers) if value[layer]}
    return set(range(0, num_layers, config.integer((name,))))


def _until(config: Config, name: str, num_layers: int) -> set[int]:
    """`moe_layer_end_index` (ERNIE-4.5): the last MoE layer, -1 = that of the model."""
    last = config.integer((name,), low=-1)
    return set(range(num_layers if last == -1 else min(last + 1, num_layers)))


def _periodic(config: Config, name: str, num_layers: int) -> set[int]:
    """`expert_layer_period` and `expert_layer_offset` (Jamba)."""
    period = config.integer((name,))
    return set(range(config.integer(("expert_layer_offset",), default=1, low=0), num_layers, period))
