"""Renumber the experts of a Hugging Face checkpoint, layer by layer; the model computes the same.

New expert j of a layer is old expert `new_to_old[j]`. In safetensors that means: tensors of single experts
(`...experts.3.up_proj.weight`) change their names, tensors of all experts (`...experts.gate_up_proj` [E, ...]) and of
the router (`...gate.weight` [E, hidden], its bias, `e_score_correction_bias`) change the order of their rows. Shards
keep their tensors, so that nothing but names and rows moves; the bytes of a row are never interpreted.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from planner.placement import IntArray
from planner.readers.safetensors import SafeTensor, read_header
from planner.readers.source import RoutingFile
from topologies.errors import BadInput

INDEX = "model.safetensors.index.json"
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
ONE_EXPERT = re.compile(r"(.*(?<![A-Za-z_])experts\.)(\d+)(\..+)")
ALL_EXPERTS = re.compile(r"(.*)(?<![A-Za-z_])experts\.[A-Za-z_][\w.]*")
ROUTERS = ("gate", "router")
COPY_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Change:
    """What happens to one tensor: its new name, and the order of its rows where it changes."""

    name: str
    rows: IntArray | None = None


def permute_checkpoint(
    checkpoint: Path,
    new_to_old: Mapping[int, IntArray],
    output: Path,
    on_bytes: Callable[[int, int], None] | None = None,
) -> int:
    """Write a renumbered copy of a checkpoint folder, whole or not at all; return the number of tensors that changed.

    Args:
        checkpoint: folder with *.safetensors (and their index), config.json and whatever belongs to the model.
        new_to_old: permutation of the experts of each layer, by its number in the model.
        output: a folder that does not exist yet.
        on_bytes: called with the bytes written so far and their total.

    Raises:
        BadInput: no checkpoint, an output that exists, a permutation that does not fit the model, or a tensor of
        experts
            or routers that is not known.

    """
    shards = sorted(checkpoint.glob("*.safetensors")) if checkpoint.is_dir() else []
    if not shards:
        raise BadInput(f"{checkpoint}: no folder with *.safetensors")
    if output.exists():
        raise BadInput(f"{output}: exists; name a new folder")
    headers = {shard.name: read_header(RoutingFile(str(shard), shard)) for shard in shards}
    tensors = {name: tensor for found, _ in headers.values() for name, tensor in found.items()}
    changes = plan_changes(tensors, new_to_old, str(checkpoint))
    total, done = sum(shard.stat().st_size for shard in shards), 0
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name[:100]}.", dir=output.resolve().parent))
    except OSError as error:
        raise BadInput(f"{output}: cannot be written: {error.strerror}") from error
    try:
        for shard in shards:
            for written in _write_shard(shard, *headers[shard.name], changes, folder / shard.name):
                done += written
                if on_bytes is not None:
                    on_bytes(min(done, total), total)
        _copy_others(checkpoint, folder, {old: change.name for old, change in changes.items()})
        folder.chmod(0o755)
        folder.replace(output)
    except OSError as error:
        raise BadInput(f"{output}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return sum(change.rows is not None or change.name != name for name, change in changes.items())


def plan_changes(
    tensors: Mapping[str, SafeTensor], new_to_old: Mapping[int, IntArray], source: str
) -> dict[str, Change]:
    """Return what happens to every tensor; raise BadInput where one belongs to experts and is not understood."""
    changes = {name: Change(name) for name in tensors}
    parents: dict[str, int] = {}
    for name in tensors:
        layer = LAYER.search(name)
        match = ONE_EXPERT.fullmatch(name) or ALL_EXPERTS.fullmatch(name)
        if layer is not None and match is not None and int(layer[1]) in new_to_old:
            parents[match[1].removesuffix("experts.")] = int(layer[1])
    missing = sorted(set(new_to_old) - set(parents.values()))
    if missing:
        raise BadInput(f"{source}: no experts in layer {missing[0]}, which the permutation renumbers")
    for name, tensor in tensors.items():
        parent = next((p for p in _prefixes(name) if p in parents), None)
        if parent is not None:
            order = new_to_old[parents[parent]]
            changes[name] = _change(name, tensor, parent, order, f"{source}: {name}")
    _check_whole(changes, parents, new_to_old, source)
    return changes


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) + "." for end in range(1, len(parts)))


def _change(name: str, tensor: SafeTensor, parent: str, order: IntArray, what: str) -> Change:
    experts = len(order)
    if (match := ONE_EXPERT.fullmatch(name)) is not None and match[1] == f"{parent}experts.":
        if int(match[2]) >= experts:
            raise BadInput(f"{what}: the permutation is of {experts} experts")
        new = int(np.flatnonzero(order == int(match[2]))[0])
        return Change(f"{match[1]}{new}{match[3]}")
    child = name.removeprefix(parent).split(".")[0]
    if child in (*ROUTERS, "experts"):
        if not tensor.shape or tensor.shape[0] != experts:
            raise BadInput(
                f"{what}: shape {list(tensor.shape)}; a tensor of {child} has a row for each of {experts} experts"
            )
        return Change(name, order)
    if not child.startswith("shared") and experts in tensor.shape:
        raise BadInput(f"{what}: shape {list(tensor.shape)} may belong to the {experts} experts, and is not known")
    return Change(name)


def _check_whole(
    changes: Mapping[str, Change], parents: Mapping[str, int], new_to_old: Mapping[int, IntArray], source: str
) -> None:
    """Refuse a layer without a router, or with other experts than the permutation's."""
    for parent, layer in parents.items():
        own = [name for name in changes if name.startswith(parent)]
        if not any(name.removeprefix(parent).split(".")[0] in ROUTERS for name in own):
            raise BadInput(f"{source}: {parent[:-1]} has experts and no router ({' or '.join(ROUTERS)})")
        numbers = {int(match[2]) for name in own if (match := ONE_EXPERT.fullmatch(name))}
        if numbers and numbers != set(range(len(new_to_old[layer]))):
            raise BadInput(
                f"{source}: layer {layer} has {len(numbers)} experts, the permutation {len(new_to_old[layer])}"
            )


def _write_shard(
    shard: Path,
    tensors: Mapping[str, SafeTensor],
    metadata: Mapping[str, str],
    changes: Mapping[str, Change],
    output: Path,
) -> Iterator[int]:
    """Write a shard with its tensors in the same places, and yield the bytes of each piece."""
    start = min((tensor.start for tensor in tensors.values()), default=0)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, tensor in tensors.items():
        offsets = [tensor.start - start, tensor.end - start]
        header[changes[name].name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns tensors to 8 bytes
    with shard.open("rb") as source, output.open("wb") as target:
        yield target.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            yield from _copy(source, target, tensor, changes[name].rows)


def _copy(source: BinaryIO, target: BinaryIO, tensor: SafeTensor, rows: IntArray | None) -> Iterator[int]:
    if rows is None:
        parts = [replace(tensor)]
    else:
        each = (tensor.end - tensor.start) // len(rows)
        starts = (tensor.start + int(row) * each for row in rows)
        parts = [replace(tensor, start=start, end=start + each) for start in starts]
    for part in parts:
        source.seek(part.start)
        for at in range(part.start, part.end, COPY_BYTES):
            yield target.write(source.read(min(COPY_BYTES, part.end - at)))


def _copy_others(checkpoint: Path, folder: Path, new_name: Mapping[str, str]) -> None:
    """Copy all other files; the index says which shard holds which tensor, so its names change, too."""
    for file in sorted(checkpoint.iterdir()):
        if not file.is_file() or file.suffix == ".safetensors":
            continue
        if file.name != INDEX:
            shutil.copyfile(file, folder / file.name)
            continue
        index = json.loads(file.read_text(encoding="utf-8"))
        index["weight_map"] = {new_name.get(name, name): shard for name, shard in index["weight_map"].items()}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
