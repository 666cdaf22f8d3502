"""The MoE fields of a Hugging Face config.json, by the names that the families give them and not by a list of models.

Names were read from the configuration classes of transformers 5.23 and from the config.json files of the models named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.hf_layers import moe_layer_indices, stated_layers
from planner.hf_values import Config, short
from planner.hf_weights import weight_dtype
from topologies.errors import BadInput
from topologies.files import read_text, what_is_there
from topologies.json_text import parse_json

MAX_BYTES = 16 * 2**20
MODEL_SLIM = "quant_model_description.json"
EXPERTS = (
    "n_routed_experts",  # DeepSeek, GLM, Kimi, dots1, Nemotron-H
    "num_local_experts",  # Mixtral, gpt-oss, Llama-4, MiniMax, Phi-MoE, Granite
    "num_experts",  # Qwen, OLMoE, Jamba, Hunyuan, Ling, Grok-1
    "moe_num_experts",  # DBRX, ERNIE-4.5
    "num_routed_experts",  # openPangu-Ultra
    "moe_num_primary_experts",  # SmallThinker
)
TOP_K = (
    "num_experts_per_tok",
    "moe_topk",  # Hunyuan, LongCat
    "moe_top_k",  # DBRX
    "moe_k",  # ERNIE-4.5
    "num_experts_per_token",  # Kimi-Linear
    "experts_per_token",  # gpt-oss
    "num_selected_experts",  # Grok-1
    "top_k_experts",  # Gemma-4
    "moe_num_active_primary_experts",  # SmallThinker
)
MODEL_WIDTH = ("hidden_size", "d_model")
HIDDEN = (
    "moe_latent_size",  # Nemotron-H, Kimi-K3 and Muse Spark send rows narrower than those of the model
    "routed_expert_hidden_size",
    "moe_hidden_size",
    *MODEL_WIDTH,
)
EXPERT_WIDTH = (
    "moe_intermediate_size",
    "expert_ffn_hidden_size",  # LongCat
    "moe_ffn_hidden_size",
    "expert_intermediate_size",
)
INTERMEDIATE = (
    *EXPERT_WIDTH,
    "ffn_hidden_size",  # DBRX
    "intermediate_size",  # families in which every layer, or none, is MoE; in Llama-4 it is the expert's, too
)
NUM_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
SHARED_EXPERTS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
SHARED_WIDTH = (
    "shared_expert_intermediate_size",  # Qwen
    "moe_shared_expert_intermediate_size",  # Ling, Nemotron-H
    "share_expert_dim",  # Step-3
    "share_expert_dims",  # Step-3.5
    "shared_intermediate_size",  # Granite, MiniMax
    "shared_experts_intermediate_size",  # dots3
)
SWITCHES = ("enable_moe_block", "is_moe")  # Gemma-4, Doge: false = dense, whatever sizes the experts would have
PER_LAYER_SIZES = ("block_configs", "per_layer_config")  # gpt-oss-puzzle; transformers 5
NESTED = (("text_config",), ("language_config",), ("llm_config",), ("thinker_config", "text_config"))


def read_config(path: Path) -> tuple[Path, Any]:
    """Return (file, parsed JSON) of a config.json, or of the directory that holds it.

    A `hf_quant_config.json` beside it (NVIDIA ModelOpt) stands in for a missing `quantization_config`.

    Raises:
        BadInput: no such file, no JSON, or weights that msModelSlim stores in a way that the config does not tell.

    """
    file = path / "config.json" if what_is_there(path) == "folder" else path
    config = parse_json(read_text(file, limit_bytes=MAX_BYTES), str(file))
    beside = file.parent / "hf_quant_config.json"
    if not isinstance(config, dict) or "quantization_config" in config:
        return file, config
    if what_is_there(beside) == "file":
        quantization = parse_json(read_text(beside, limit_bytes=MAX_BYTES), str(beside))
        if isinstance(quantization, dict):
            config["quantization_config"] = quantization.get("quantization")
    elif what_is_there(file.parent / MODEL_SLIM) == "file":
        raise BadInput(
            f"{file}: {MODEL_SLIM} (Ascend msModelSlim) beside it says how the weights are stored and is not read; "
            'state it in the config: "quantization_config": {"bits": 8} (or 4)'
        )
    return file, config


def parse_config(document: Any, source: str) -> dict[str, Any]:
    """Return the fields of `planner.model.MoEModel`, less the name, that a config.json states.

    Args:
        document: the parsed JSON.
        source: the file, to name in errors.

    Raises:
        BadInput: not the config of a MoE model, or a field that is missing or makes no sense.

    """
    config = _language_model(document, source)
    experts = config.integer(EXPERTS, low=0)
    if experts < 2:
        raise BadInput(f"{source}: not a MoE model: {_named(config, EXPERTS)}")
    _refuse_other_models(config)
    num_layers = config.integer(NUM_LAYERS, default=stated_layers(config))
    width = config.integer(INTERMEDIATE)
    hidden = config.integer(HIDDEN)
    shared, shared_width = _shared(config, width)
    shared_width = -(-shared_width * config.integer(MODEL_WIDTH, default=hidden) // hidden)  # they see unnarrowed rows
    groups, top_groups = _groups(config)
    fields = {
        "experts": experts,
        "top_k": config.integer(TOP_K),
        "hidden": hidden,
        "intermediate": width,
        "groups": groups,
        "top_groups": top_groups,
        "num_layers": num_layers,
        "moe_layers": moe_layer_indices(config, num_layers),
        "shared_experts": shared,
        "shared_intermediate": shared_width,
        "gated": config.values.get("mlp_hidden_act") != "relu2" and config.values.get("is_gated_act") is not False,
        "weight_dtype": weight_dtype(config),
    }
    _refuse_contradictions(config, fields)
    return fields


def _language_model(document: Any, source: str) -> Config:
    """Return the level of the config that counts experts: its top, or that of a multi-modal model's language part."""
    if not isinstance(document, dict):
        raise BadInput(f"{source}: {short(document)} is not a JSON object with the fields of a model")
    for path in ((), *NESTED):
        level: Any = document
        for key in path:
            level = level.get(key) if isinstance(level, dict) else None
        if not isinstance(level, dict):
            continue
        inner = level.get("ffn_config")  # DBRX
        values = {**inner, **level} if isinstance(inner, dict) else level
        config = Config(values, document, source)
        if config.find(EXPERTS):
            return config
    raise BadInput(
        f"{source}: not a MoE model: no field {', '.join(EXPERTS)}; model_type is {short(document.get('model_type'))}"
    )


def _shared(config: Config, width: int) -> tuple[int, int]:
    """Return (number, total inner width) of the experts that every token of a layer visits."""
    stated = config.find(SHARED_WIDTH)
    if stated is not None:
        each = config.integer((stated[0],), low=0)
        count = config.integer(SHARED_EXPERTS, default=1, low=0) if each else 0
        return count, count * each
    if "intermediate_size_mlp" in config.values:  # Llama-4 has one beside the routed ones and does not say so
        return 1, width
    count = config.integer(SHARED_EXPERTS, default=0, low=0)
    if "num_shared_expert" in config.values:  # Hunyuan's have the width of a dense layer
        count = count if config.values.get("use_mixed_mlp_moe") else 0
        width = config.integer(("intermediate_size",))
    return count, count * width


def _groups(config: Config) -> tuple[int, int]:
    """Return (groups, groups that a token may visit); (1, 1) where the router does not use them."""
    unused = config.values.get("topk_method") == "greedy" or config.values.get("use_grouped_topk") is False
    groups = config.integer(("n_group", "num_expert_group"), default=1)
    top_groups = config.integer(("topk_group",), default=groups)
    return (1, 1) if unused else (groups, top_groups)


def _refuse_other_models(config: Config) -> None:
    """Raise BadInput for a model whose layers have no experts, other experts than matrices, or unequal numbers."""
    for name in SWITCHES:
        if config.values.get(name) is False:
            raise BadInput(f"{config.source}: not a MoE model: {name} = false")
    if config.values.get("model_type") == "doge":
        raise BadInput(f'{config.source}: model_type = "doge": its experts are rows of embeddings, not matrices')
    for name in PER_LAYER_SIZES:
        for layer, sizes in _entries(config.values.get(name)):
            for names in (EXPERTS, TOP_K, EXPERT_WIDTH):
                own, of_all = Config(sizes, {}, config.source).find(names), config.find(names)
                if own and of_all and own[1] != of_all[1]:
                    raise BadInput(
                        f"{config.source}: {name}: layer {layer} has {own[0]} = {short(own[1])}, the model "
                        f"{of_all[0]} = {short(of_all[1])}; one value is supported"
                    )


def _entries(layers: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Return (layer, its own fields) of an object with a key a layer, or of a list."""
    pairs = layers.items() if isinstance(layers, dict) else enumerate(layers) if isinstance(layers, list) else ()
    return [(layer, fields) for layer, fields in pairs if isinstance(fields, dict)]


def _refuse_contradictions(config: Config, fields: dict[str, Any]) -> None:
    """Raise BadInput, in the words of the file, where sizes that make sense alone do not fit together."""
    experts, top_k = fields["experts"], fields["top_k"]
    groups, top_groups = fields["groups"], fields["top_groups"]
    if top_k > experts:
        raise BadInput(f"{config.source}: {_named(config, TOP_K)} > {_named(config, EXPERTS)}")
    if experts % groups:
        raise BadInput(f"{config.source}: n_group = {groups} does not divide {_named(config, EXPERTS)}")
    if top_groups > groups:
        raise BadInput(f"{config.source}: topk_group = {top_groups} > n_group = {groups}")
    if top_k > top_groups * (experts // groups):
        raise BadInput(
            f"{config.source}: {_named(config, TOP_K)} > the {top_groups * (experts // groups)} experts of "
            f"topk_group = {top_groups} groups"
        )


def _named(config: Config, names: tuple[str, ...]) -> str:
    """Return "field = value" of the first field that is present."""
    name, value = config.find(names) or (names[0], None)
    return f"{name} = {short(value)}"
