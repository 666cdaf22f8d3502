"""TensorRT-LLM's expert statistics: a folder of `meta_info.json` and `rank{N}.safetensors` (EXPERT_STATISTIC_PATH).

Format (NVIDIA/TensorRT-LLM, examples/wide_ep/ep_load_balancer/utils.py @ 7ce477f3): in a rank's file a tensor
"{iteration}_{layer}" [experts] of token counts for each iteration and layer, numbered as in the model; meta_info has
num_experts and num_experts_per_token. A rank counts the tokens that it routes, so the source rank is known. Raw dumps
(`rank*_raw.safetensors`) hold "{iteration}_{layer}" [tokens, top_k] of expert ids, and then tokens are kept, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from planner.hf_values import is_integer
from planner.readers.npy import ArrayFile
from planner.readers.raw import RawRouting, check_ids, checked_counts, decode, one_line, refuse_repeats
from planner.readers.safetensors import array_file, read_header
from planner.readers.source import RoutingFile
from planner.readers.tally import Tally
from topologies.errors import BadInput
from topologies.json_text import parse_json

RANK_FILE = re.compile(r"rank(\d{1,5})(_raw)?\.safetensors")
KEY = re.compile(r"(\d{1,9})_(\d{1,5})")
MAX_META_BYTES = 2**20


def read_trtllm(files: Sequence[tuple[int, RoutingFile]], meta: RoutingFile | None, source: str) -> RawRouting:
    """Return the routing of the files of some ranks, given with the numbers of the ranks.

    Args:
        files: (rank, file); all counts, or all raw dumps.
        meta: meta_info.json, if it is there.
        source: what names them all in errors.

    """
    experts = None if meta is None else _experts(meta)
    tally = Tally(source)
    for rank, file in files:
        tensors, _ = read_header(file)
        if not tensors:
            raise BadInput(f"{file.source}: holds no tensors")
        keys = {name: _key(name, file) for name in tensors}
        steps: dict[int, dict[int, Any]] = {}
        for name in sorted(tensors, key=lambda name: keys[name]):
            step, layer = keys[name]
            _add(tally, rank, step, layer, array_file(file, name, tensors[name]), experts, steps)
        for ids in steps.values():
            tally.tokens.add(rank, ids)
    return tally.result(experts=experts)


def _experts(meta: RoutingFile) -> int:
    document = parse_json(decode(meta.read(MAX_META_BYTES), meta.source), meta.source)
    experts: Any = document.get("num_experts") if isinstance(document, dict) else None
    if not is_integer(experts) or not 1 <= experts <= 1_000_000:
        raise BadInput(f"{meta.source}: num_experts = {str(experts)[:40]!r} is not a number of experts")
    return int(experts)


def is_statistics(names: Sequence[str]) -> bool:
    """Return whether tensors are named as those of a rank's file are."""
    return bool(names) and all(KEY.fullmatch(name) for name in names)


def _key(name: str, file: RoutingFile) -> tuple[int, int]:
    match = KEY.fullmatch(name)
    if match is None:
        raise BadInput(f"{file.source}: the tensor {one_line(name, 40)} is not named ITERATION_LAYER")
    return int(match[1]), int(match[2])


def _add(
    tally: Tally, rank: int, step: int, layer: int, array: ArrayFile, experts: int | None, steps: dict[int, Any]
) -> None:
    if len(array.shape) == 1:
        count_E = checked_counts(array.read(), array.what)
        if experts is not None and len(count_E) != experts:
            raise BadInput(
                f"{array.what}: counts of {len(count_E)} experts; meta_info.json has num_experts = {experts}"
            )
        tally.add(layer, rank, step, count_E)
        return
    ids_TK = array.read()
    if ids_TK.ndim != 2:
        raise BadInput(f"{array.what}: shape {list(array.shape)}, not [experts] counts or [tokens, top_k] ids")
    check_ids(ids_TK, array.what)
    refuse_repeats(ids_TK, array.what)
    tally.add_ids(layer, rank, step, ids_TK)
    steps.setdefault(step, {})[layer] = ids_TK
