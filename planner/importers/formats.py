"""Readers of the formats that `planner.exporters` writes; the rules and sources of each stand there.

None of the files is trusted: JSON and YAML are parsed without objects, arrays without pickle, torch files by a reader
that knows tensors and nothing else, and every id is checked.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.exporters import megatron
from planner.importers.slot_file import SlotFile, check_keys, expert_row, expert_rows, integer_array
from planner.readers.npy import read_npy, read_npz_arrays
from planner.readers.raw import decode
from planner.readers.torch_zip import read_torch
from planner.readers.zips import open_zip
from topologies.cluster_file import parse_yaml
from topologies.errors import BadInput
from topologies.json_text import parse_json

MAX_BYTES = 64 * 2**20
MAX_RANKS = 100_000


def read_sglang(data: bytes, source: str) -> SlotFile:
    """Read `{"physical_to_logical_map": ...}`, as JSON or as a torch file."""
    if data.startswith(b"PK"):
        content = _torch_dict(data, source, ("physical_to_logical_map",))
        return SlotFile(_map_rows(content, source), rows_are="transformer layers")
    document = check_keys(parse_json(decode(data, source), source), ("physical_to_logical_map",), source)
    rows = expert_rows(document["physical_to_logical_map"], f"{source}: physical_to_logical_map")
    return SlotFile(rows, rows_are="transformer layers")


def read_lp_shares(data: bytes, source: str) -> SlotFile:
    """Read a torch file of `physical_to_logical_map` and `physical_mass`."""
    content = _torch_dict(data, source, ("physical_to_logical_map", "physical_mass"))
    rows = _map_rows(content, source)
    mass = content["physical_mass"]
    shape = [len(rows), len(rows[0])]
    if not isinstance(mass, np.ndarray) or mass.dtype.kind != "f" or list(mass.shape) != shape:
        found = f"{mass.dtype} {list(mass.shape)}" if isinstance(mass, np.ndarray) else type(mass).__name__
        raise BadInput(
            f"{source}: physical_mass: {found}, not floats of shape {shape}, that of physical_to_logical_map"
        )
    wrong = ~(np.isfinite(mass) & (mass >= 0))
    if wrong.any():
        at = [int(i) for i in np.argwhere(wrong)[0]]
        raise BadInput(f"{source}: physical_mass{at} = {mass[tuple(at)]:g}: not a finite number of at least 0")
    return SlotFile(rows, rows_are="transformer layers", masses=tuple(mass.astype(np.float64)))


def read_trtllm(data: bytes, source: str) -> SlotFile:
    """Read the YAML of `num_slots` and `initial_global_assignments`."""
    document = check_keys(parse_yaml(decode(data, source), source), ("num_slots", "initial_global_assignments"), source)
    assignments, slots = document["initial_global_assignments"], document["num_slots"]
    if not isinstance(assignments, dict) or not assignments:
        raise BadInput(f"{source}: initial_global_assignments: not a mapping of layers to lists")
    rows = {}
    for layer, row in assignments.items():
        if type(layer) is not int or layer < 0:
            raise BadInput(f"{source}: initial_global_assignments: {str(layer)[:40]!r} is not a layer number")
        rows[layer] = expert_row(row, f"{source}: initial_global_assignments[{layer}]")
        if len(rows[layer]) != slots:
            raise BadInput(
                f"{source}: initial_global_assignments[{layer}]: {len(rows[layer])} slots, but num_slots is {slots!r}"
            )
    layers = tuple(sorted(rows))
    return SlotFile(tuple(rows[layer] for layer in layers), rows_are="numbered", layers=layers)


def read_vllm_ascend(data: bytes, source: str) -> SlotFile:
    """Read `layer_list[].device_list[].device_expert`."""
    document = check_keys(parse_json(decode(data, source), source), ("layer_list",), source)
    listed = document["layer_list"]
    if not isinstance(listed, list) or not listed:
        raise BadInput(f"{source}: layer_list: not a list of layers")
    rows, ranks = [], []
    for index, layer in enumerate(listed):
        what = f"{source}: layer_list[{index}]"
        devices = check_keys(layer, ("device_list",), what)["device_list"]
        if not isinstance(devices, list) or not 1 <= len(devices) <= MAX_RANKS:
            raise BadInput(f"{what}.device_list: not a list of 1 to {MAX_RANKS} devices")
        if layer.get("layer_id", index) != index:
            raise BadInput(
                f"{what}: layer_id is {str(layer['layer_id'])[:40]!r}, expected {index}: one entry a MoE layer"
            )
        held = [_device(entry, number, f"{what}.device_list[{number}]") for number, entry in enumerate(devices)]
        rows.append(np.concatenate(held))
        ranks.append(np.repeat(np.arange(len(held)), [len(part) for part in held]))
        if len(devices) != ranks[0][-1] + 1:
            raise BadInput(f"{what}: {len(devices)} devices, the layers before it have {ranks[0][-1] + 1}")
    stated = document.get("moe_layer_count", len(rows))
    if stated != len(rows):
        raise BadInput(f"{source}: moe_layer_count is {str(stated)[:40]!r}, but layer_list has {len(rows)} layers")
    return SlotFile(tuple(rows), tuple(ranks), num_ranks=int(ranks[0][-1]) + 1)


def read_omni(data: bytes, source: str) -> SlotFile:
    """Read the cube [devices, MoE layers, experts] of 0 and 1."""
    cube = integer_array(read_npy(data, source), 3, 0, f"{source}: pattern")
    if int(cube.max()) > 1:
        raise BadInput(f"{source}: holds {int(cube.max())}; a placement pattern holds 0 and 1")
    found = [np.nonzero(cube[:, layer]) for layer in range(cube.shape[1])]
    return SlotFile(
        tuple(experts for _, experts in found), tuple(ranks for ranks, _ in found), num_ranks=int(cube.shape[0])
    )


def read_eplb(data: bytes, source: str) -> SlotFile:
    """Read `phy2log` of an .npz; log2phy and logcnt, where given, must say the same."""
    arrays = read_npz_arrays(data, source)
    if "phy2log" not in arrays:
        raise BadInput(f"{source}: no phy2log; arrays: {', '.join(sorted(arrays)[:8]) or 'none'}")
    phy2log = integer_array(arrays["phy2log"], 2, 0, f"{source}: phy2log")
    logcnt = arrays.get("logcnt")
    if logcnt is not None:
        counted = np.stack([np.bincount(row, minlength=int(phy2log.max()) + 1) for row in phy2log])
        if logcnt.shape != counted.shape or not np.array_equal(logcnt, counted):
            raise BadInput(f"{source}: logcnt does not count the slots of phy2log (shape {list(logcnt.shape)})")
    return SlotFile(tuple(phy2log))


def read_vllm_49572(data: bytes, source: str) -> SlotFile:
    """Read a list of slots for each MoE layer."""
    return SlotFile(expert_rows(parse_json(decode(data, source), source), source))


def read_vllm_34811(data: bytes, source: str) -> SlotFile:
    """Read the rank of every expert, the same for all layers."""
    document = check_keys(parse_json(decode(data, source), source), ("expert_to_ep_rank",), source)
    rank_E = expert_row(document["expert_to_ep_rank"], f"{source}: expert_to_ep_rank")
    order = np.argsort(rank_E, kind="stable")
    return SlotFile((order,), (rank_E[order],), rows_are="every layer", num_ranks=None)


def read_vllm_14544(data: bytes, source: str) -> SlotFile:
    """Read a tensor [MoE layers, ranks, experts] of local slots, -1 where a rank lacks the expert."""
    with open_zip(io.BytesIO(data), source) as archive:
        content = read_torch(archive, source)
    if not isinstance(content, np.ndarray):
        raise BadInput(f"{source}: holds a {type(content).__name__}, not a tensor [layers, ranks, experts]")
    slot_LRE = integer_array(content, 3, -1, f"{source}: map")
    rows, ranks = [], []
    for layer, slot_RE in enumerate(slot_LRE):
        rank, expert = np.nonzero(slot_RE >= 0)
        order = np.lexsort((slot_RE[rank, expert], rank))
        rank, expert = rank[order], expert[order]
        first = np.concatenate([[0], np.cumsum(np.bincount(rank, minlength=slot_RE.shape[0]))[:-1]])
        if not np.array_equal(slot_RE[rank, expert], np.arange(len(rank)) - first[rank]):
            raise BadInput(f"{source}: layer {layer}: the slots of a rank are not numbered 0, 1, 2, ...")
        rows.append(expert)
        ranks.append(rank)
    return SlotFile(tuple(rows), tuple(ranks), num_ranks=int(slot_LRE.shape[1]))


def read_vllm_hygon(data: bytes, source: str) -> SlotFile:
    """Read `physical_to_logical_map` of the one model of a version 2 file, or of a version 1 file."""
    document = check_keys(parse_json(decode(data, source), source), (), source)
    entry, what = document, source
    if "model_maps" in document:
        maps = check_keys(document["model_maps"], (), f"{source}: model_maps")
        main = [key for key in maps if not key.upper().endswith("MTP")]
        if len(main) != 1:
            raise BadInput(f"{source}: model_maps holds {len(main)} models ({', '.join(main)[:80]}); keep one of them")
        entry, what = maps[main[0]], f"{source}: model_maps.{main[0][:40]}"
    entry = check_keys(entry, ("physical_to_logical_map",), what)
    return SlotFile(expert_rows(entry["physical_to_logical_map"], f"{what}.physical_to_logical_map"))


def read_megatron(data: bytes, source: str) -> SlotFile:
    """Read a permutation of expert ids."""
    document = check_keys(parse_json(decode(data, source), source), ("format", "layers"), source)
    if document["format"] != megatron.FORMAT or document.get("version") != megatron.VERSION:
        found = f"{str(document['format'])[:40]!r} version {str(document.get('version'))[:10]!r}"
        raise BadInput(f"{source}: format {found}, expected {megatron.FORMAT!r} version {megatron.VERSION}")
    listed = document["layers"]
    if not isinstance(listed, list) or not listed:
        raise BadInput(f"{source}: layers: not a list of layers")
    rows = {}
    for index, layer in enumerate(listed):
        what = f"{source}: layers[{index}]"
        number = check_keys(layer, ("layer", "new_to_old"), what)["layer"]
        if type(number) is not int or number < 0 or number in rows:
            raise BadInput(f"{what}: layer = {str(number)[:40]!r} is not a layer number, or stands twice")
        rows[number] = expert_row(layer["new_to_old"], f"{what}.new_to_old")
        if not np.array_equal(np.sort(rows[number]), np.arange(len(rows[number]))):
            raise BadInput(f"{what}.new_to_old: not a permutation of 0 to {len(rows[number]) - 1}")
    layers = tuple(sorted(rows))
    return SlotFile(tuple(rows[layer] for layer in layers), rows_are="numbered", layers=layers)


FORMATS: dict[str, Callable[[bytes, str], SlotFile]] = {
    "eplb": read_eplb,
    "lp-shares": read_lp_shares,
    "megatron": read_megatron,
    "omni": read_omni,
    "sglang": read_sglang,
    "trtllm": read_trtllm,
    "vllm-14544": read_vllm_14544,
    "vllm-34811": read_vllm_34811,
    "vllm-49572": read_vllm_49572,
    "vllm-ascend": read_vllm_ascend,
    "vllm-hygon": read_vllm_hygon,
}


def _device(entry: Any, number: int, what: str) -> NDArray[np.int64]:
    device = check_keys(entry, ("device_expert",), what)
    if device.get("device_id", number) != number:
        raise BadInput(f"{what}: device_id is {str(device['device_id'])[:40]!r}, expected {number}")
    return expert_row(device["device_expert"], f"{what}.device_expert")


def _torch_dict(data: bytes, source: str, keys: tuple[str, ...]) -> dict[str, Any]:
    with open_zip(io.BytesIO(data), source) as archive:
        return check_keys(read_torch(archive, source), keys, source)


def _map_rows(content: dict[str, Any], source: str) -> tuple[NDArray[np.int64], ...]:
    array = content["physical_to_logical_map"]
    if not isinstance(array, np.ndarray):
        raise BadInput(f"{source}: physical_to_logical_map is a {type(array).__name__}, not a tensor")
    return tuple(integer_array(array, 2, 0, f"{source}: physical_to_logical_map"))
