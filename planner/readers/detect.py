"""Which reader a routing file needs, decided by its content and never by its name."""

from __future__ import annotations

import zipfile

from planner.readers.csv_counts import read_csv
from planner.readers.json_counts import read_json, read_jsonl
from planner.readers.megatron_trace import read_megatron
from planner.readers.npz import read_npy_logits, read_npz
from planner.readers.parquet import read_parquet
from planner.readers.raw import RawRouting, names_held
from planner.readers.router_logits import is_logits, read_logits
from planner.readers.safetensors import array_file, is_safetensors, read_header
from planner.readers.sglang import read_sglang
from planner.readers.source import RoutingFile
from planner.readers.trtllm import is_statistics, read_trtllm
from planner.readers.zips import open_zip
from topologies.errors import BadInput
from topologies.json_text import parse_json

MAX_JSON_BYTES = 64 * 2**20
MAX_LINE_BYTES = 64 * 2**20
HEAD_BYTES = 65_536
FORMATS = (
    'JSON {"logical_count": [layers][experts]}, JSONL of such objects or of a Megatron routing trace, SGLang recorder '
    ".pt, .npz with topk_ids, counts or router logits, safetensors with router logits or TensorRT-LLM statistics, "
    "CSV or Parquet with columns layer, expert, count"
)
OTHERS = {
    b"\x93NUMPY": "a single .npy array; save it by name: np.savez(file, counts=array) or topk_ids=array",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"\x80": "a bare pickle (torch before 1.6, or pickle.dump), which is not read; save it with a current torch.save",
}
"""First bytes of files that are something else, and what to do about it."""


def read_raw(content: bytes | RoutingFile, source: str = "", top_k: int | None = None) -> RawRouting:
    """Return the content of a routing file.

    Args:
        content: the file, or its bytes.
        source: the name of the bytes, for errors.
        top_k: of the model, where it is known.

    Raises:
        BadInput: not a known format, or damaged.

    """
    file = content if isinstance(content, RoutingFile) else RoutingFile(source, content)
    head = file.head(HEAD_BYTES)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise BadInput(f"{file.source}: is empty")
    if head.startswith(b"PK"):
        with file.open() as stream, open_zip(stream, file.source) as archive:
            return _read_zip(archive, file.source, top_k)
    if head.startswith(b"PAR1"):
        return read_parquet(file)
    if head.startswith(b"\x93NUMPY") and (logits := read_npy_logits(file, top_k)):
        return logits
    if is_safetensors(head):
        return _read_safetensors(file, top_k)
    for start, advice in OTHERS.items():
        if head.startswith(start):
            raise BadInput(f"{file.source}: {advice}")
    if text[:1] in b"{[":
        return _read_json(file)
    if b"\x00" in head:
        raise BadInput(f"{file.source}: not a known routing format; known: {FORMATS}")
    return read_csv(file, FORMATS)


def _read_json(file: RoutingFile) -> RawRouting:
    """Read one JSON document, or one a line: JSONL is what has a whole object on its first line, and more after it."""
    with file.open() as stream:
        lines = iter(lambda: stream.readline(MAX_LINE_BYTES), b"")
        line = next((line for line in lines if line.strip()), b"")
        more = any(part.strip() for part in iter(lambda: stream.read(HEAD_BYTES), b""))
    if not more and b'"top_indices"' not in line:
        return read_json(file.read(MAX_JSON_BYTES), file.source)
    try:
        first = parse_json(line, file.source)
    except BadInput:
        first = None
    if not isinstance(first, dict):
        return read_json(file.read(MAX_JSON_BYTES), file.source)
    return read_megatron([file], file.source) if "top_indices" in first else read_jsonl(file)


def _read_safetensors(file: RoutingFile, top_k: int | None) -> RawRouting:
    tensors, _ = read_header(file)
    if is_statistics(list(tensors)):
        return read_trtllm([(0, file)], None, file.source)
    arrays = {name: array_file(file, name, tensor) for name, tensor in tensors.items()}
    if is_logits(arrays):
        return read_logits(arrays, file.source, top_k)
    raise BadInput(
        f"{file.source}: safetensors of {names_held(tensors)}; neither router logits [tokens, experts] in layers nor "
        "TensorRT-LLM statistics named ITERATION_LAYER"
    )


def _read_zip(archive: zipfile.ZipFile, source: str, top_k: int | None) -> RawRouting:
    names = archive.namelist()
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return read_sglang(archive, source)
    if any(name.endswith(".npy") for name in names):
        return read_npz(archive, source, top_k)
    raise BadInput(f"{source}: a zip archive of {names_held(names)}; neither a torch file nor an .npz")
