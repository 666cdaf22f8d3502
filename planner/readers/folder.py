"""A folder that holds one recording: the files of all of its ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from planner.readers.megatron_trace import read_megatron
from planner.readers.raw import RawRouting
from planner.readers.sglang import read_ranks
from planner.readers.source import Progress, RoutingFile
from planner.readers.trtllm import RANK_FILE, read_trtllm
from topologies.errors import BadInput

KNOWN = (
    "router_trace_rank*.jsonl (Megatron), rank*.safetensors (TensorRT-LLM statistics), "
    "expert_distribution_recorder_*.pt (SGLang, per_pass or per_token)"
)


def read_folder(folder: Path, progress: Progress | None = None) -> tuple[RawRouting, str]:
    """Return the routing of a folder, and the digest of its files; raise BadInput where it holds no recording."""
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    except OSError as error:
        raise BadInput(f"{folder}: cannot be read: {error.strerror}") from error
    total = sum((folder / name).stat().st_size for name in names)
    done = 0

    def file(name: str) -> RoutingFile:
        nonlocal done
        before, size = done, (folder / name).stat().st_size
        done += size
        listen = None if progress is None else _shifted(progress, before, total)
        return RoutingFile(str(folder / name), folder / name, listen)

    traces = [name for name in names if name.startswith("router_trace_rank") and name.endswith(".jsonl")]
    matches = {name: match for name in names if (match := RANK_FILE.fullmatch(name))}
    counts = [name for name, match in matches.items() if match[2] is None]
    dumps = [name for name in names if name.endswith(".pt")]
    chosen = [group for group in (traces, counts or list(matches), dumps) if group]
    if len(chosen) != 1:
        found = "recordings of several kinds" if chosen else f"{len(names)} files, none of a recording"
        raise BadInput(f"{folder}: is a directory with {found}; known: {KNOWN}")
    digest = hashlib.sha256("".join(file(name).sha256() for name in chosen[0]).encode()).hexdigest()
    done = 0
    files = [file(name) for name in chosen[0]]
    if traces:
        return read_megatron(files, str(folder)), digest
    if dumps:
        return read_ranks(files, str(folder)), digest
    meta = file("meta_info.json") if "meta_info.json" in names else None
    ranked = [(int(matches[name][1]), one) for name, one in zip(chosen[0], files, strict=True)]
    return read_trtllm(ranked, meta, str(folder)), digest


def _shifted(progress: Progress, before: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _: progress(before + done, total)
