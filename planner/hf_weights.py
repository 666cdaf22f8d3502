"""How the routed experts of a Hugging Face model are stored, from its quantization_config or dtype.

Formats as documented by transformers 5.23 (quantization) and as published: DeepSeek-V3 (fp8 blocks), gpt-oss (mxfp4),
Kimi-K2-Thinking and K2.5 (compressed-tensors int4), NVIDIA ModelOpt (NVFP4, FP8), AWQ and GPTQ checkpoints.
"""

from __future__ import annotations

import re
from typing import Any

from planner.hf_values import Config, is_integer, short
from topologies.errors import BadInput

PLAIN = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float8_e4m3fn": "fp8-channel", "auto": "bf16"}
BY_NAME = {
    "mxfp4": "mxfp4", "mxfp8": "mxfp8", "nvfp4": "nvfp4", "w4a16_nvfp4": "nvfp4", "fp4": "mxfp4", "fp8_pb_wo": "fp8",
}  # fmt: skip

QUANTIZATION = ("quantization_config", "compression_config")  # the second: compressed-tensors before 0.5
LEFT_ALONE = (
    "ignore",
    "ignored_layers",
    "modules_to_not_convert",
    "exclude_modules",
    "llm_int8_skip_modules",
    "exclude",
)
ROUTED_EXPERTS = re.compile(r"(?<!shared_)experts\W*$")
AN_EXPERT = re.compile(r"(?<!shared_)experts(\.|$)")


def weight_dtype(config: Config) -> str:
    """Return the storage of the routed experts, a key of `planner.weights.WEIGHT_FORMATS`.

    Raises:
        BadInput: a quantization or dtype that is not known; the message names it.

    """
    for level in (config.values, config.root):
        name = next((each for each in QUANTIZATION if level.get(each) is not None), None)
        if name is None:
            continue
        quantization = level[name]
        if not isinstance(quantization, dict):
            raise BadInput(f"{config.source}: {name} = {short(quantization)} is not an object")
        found = _apart(config, quantization) or _quantized(quantization)
        if found is None:
            raise BadInput(f"{config.source}: {name} = {short(quantization)}: {_KNOWN}")
        if not _leaves_experts_alone(quantization):
            return found
    for level in (config.values, config.root):
        for name in ("dtype", "torch_dtype"):
            stated = level.get(name)
            if stated is None:
                continue
            plain = PLAIN.get(stated.removeprefix("torch.")) if isinstance(stated, str) else None
            if plain is None:
                raise BadInput(f"{config.source}: {name} = {short(stated)}; known: {', '.join(PLAIN)}")
            return plain
    return "bf16"


_KNOWN = "the weights' storage cannot be read from it; known: fp8, mxfp4, nvfp4, int4 and int8 of compressed-tensors, \
modelopt, quark, awq, gptq, bitsandbytes"


def _apart(config: Config, quantization: dict[str, Any]) -> str | None:
    """Return the storage of experts that are not stored as the other weights are (DeepSeek-V4), or None.

    Raises:
        BadInput: an unknown storage, or none where engines differ in what they take for granted: vLLM and the published
            DeepSeek-V4 have fp4, transformers and the base models fp8.

    """
    levels = (config.values, config.root, quantization)
    stated = next((level["expert_dtype"] for level in levels if level.get("expert_dtype") is not None), None)
    if stated is None and config.values.get("model_type") == "deepseek_v4":
        raise BadInput(f'{config.source}: no field expert_dtype; state how the experts are stored, "fp4" or "fp8"')
    if stated is None or stated == "fp8":
        return None
    found = BY_NAME.get(stated) if isinstance(stated, str) else None
    if found is None:
        raise BadInput(f"{config.source}: expert_dtype = {short(stated)}; known: fp8, {', '.join(BY_NAME)}")
    return found


def _leaves_experts_alone(quantization: dict[str, Any]) -> bool:
    """Whether the routed experts of all layers are among the modules that keep the model's own dtype.

    An entry that names single layers (by a digit) or those of multi-token prediction says nothing of the others.
    """
    lists = [quantization[name] for name in LEFT_ALONE if isinstance(quantization.get(name), list)]
    entries = [entry for listed in lists for entry in listed if isinstance(entry, str)]
    return any(ROUTED_EXPERTS.search(entry) and not re.search(r"\d|mtp", entry) for entry in entries)


def _quantized(quantization: dict[str, Any]) -> str | None:
    """Return the storage that a quantization_config states, or None."""
    method = str(quantization.get("quant_method", quantization.get("quant_algo", ""))).lower()
    algorithm = str(quantization.get("quant_algo", "")).lower()
    named = BY_NAME.get(method) or BY_NAME.get(algorithm)
    if named:
        return named
    if "fp8" in (method, algorithm):
        return _fp8(quantization)
    if method == "bitsandbytes":
        return "int8" if quantization.get("load_in_8bit") else "int4-g64"
    if is_integer(quantization.get("bits")):  # AWQ, GPTQ, AutoRound
        return _by_bits(quantization["bits"], False, quantization.get("group_size"))
    modules = quantization.get("quantized_layers")
    if isinstance(modules, dict):  # ModelOpt's MIXED_PRECISION
        stated = (modules[name] for name in modules if AN_EXPERT.search(name) and "mtp" not in name)
        stored = {_quantized(each) if isinstance(each, dict) else None for each in stated}
    else:
        stored = {_from_scheme(scheme) for scheme in _schemes(quantization)}
    return stored.pop() if len(stored) == 1 else None


def _schemes(quantization: dict[str, Any]) -> list[Any]:
    """Return the weight schemes that are stated group by group (compressed-tensors, ModelOpt) or for all (Quark)."""
    groups = quantization.get("config_groups")
    if isinstance(groups, dict):
        return [group.get("weights") for group in groups.values() if isinstance(group, dict)]
    everywhere = quantization.get("global_quant_config")
    return [everywhere.get("weight")] if isinstance(everywhere, dict) else []


def _fp8(quantization: dict[str, Any]) -> str | None:
    block = quantization.get("weight_block_size")
    if block is None:
        return "fp8-channel"
    return {"[128, 128]": "fp8", "[1, 32]": "mxfp8"}.get(str(block))


def _from_scheme(weights: Any) -> str | None:
    """Return the storage that one group of compressed-tensors, ModelOpt or Quark states."""
    if not isinstance(weights, dict):
        return None
    kind, bits = str(weights.get("type", weights.get("dtype", ""))).lower(), weights.get("num_bits")
    if bits is None:  # Quark writes "fp4", "fp8_e4m3", "int4"
        bits = next((n for n in (4, 8) if kind.split("_", maxsplit=1)[0].endswith(str(n))), None)
    if not isinstance(bits, int):
        return None
    floating = kind.startswith(("float", "fp"))
    if floating and bits == 8:
        return "fp8" if weights.get("strategy") == "block" else "fp8-channel"
    return _by_bits(bits, floating, weights.get("group_size"))


def _by_bits(bits: int, floating: bool, group_size: Any) -> str | None:
    """Return the storage of integers or floats of so many bits, in groups that share a scale."""
    if floating:
        return {16: "nvfp4", 32: "mxfp4"}.get(group_size) if bits == 4 and is_integer(group_size) else None
    if bits == 8:
        return "int8"
    if bits == 4 and is_integer(group_size) and group_size > 0:
        return "int4-g32" if group_size <= 32 else "int4-g64" if group_size <= 64 else "int4-g128"
    return "int4-g128" if bits == 4 else None
