"""What is fuzzed: one target for every reader of files, names and expressions that come from outside.

A target takes bytes and reads them as a user's file is read. It may return or raise an EpplanError of one line.
Anything else is a finding: another exception, a message of several lines, memory that ran out on the way, or no end.
"""

from __future__ import annotations

import tempfile
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from app.whatif.reports import read_report
from planner.calibrate import read_table
from planner.calibrate.cases import build_cases
from planner.calibrate.experts import build_expert_cases
from planner.hf_config import parse_config, read_config
from planner.importers import FORMATS
from planner.importers.match import match
from planner.model import MoEModel
from planner.plan import load_plan
from planner.rank_speeds import load_rank_speeds
from planner.readers.detect import read_raw
from planner.routing import assemble
from planner.timing import load_profile
from tests.fuzz.seeds import seeds, tables
from tests.planner.plans import model_of
from topologies.build import build_cluster
from topologies.cluster_file import load_spec
from topologies.errors import EpplanError
from topologies.importing import Knowledge, join_hosts, parse_topology
from topologies.lint import lint
from topologies.load import load_cluster
from topologies.routes import routes
from topologies.spec import ClusterSpec

Shape = Literal["json", "lines", "yaml", "xml", "zip", "text", "bytes"]
"""How a mutation may take the bytes apart."""

MAX_MESSAGE = 1000
MODEL = model_of(6)  # of 3 layers the last two have experts
WIDER = model_of(8, moe_layers=(1, 2, 3), num_layers=4)


@dataclass(frozen=True)
class Target:
    """A reader, valid files for it, and how they are built."""

    name: str
    shape: Shape
    read: Callable[[bytes], object]

    @property
    def seeds(self) -> list[bytes]:
        """Return valid files."""
        return _seeds()[self.name]


class Finding(Exception):
    """A reader did what it must not; the text says what."""


@cache
def _seeds() -> dict[str, list[bytes]]:
    return seeds()


def check(target: Target, data: bytes) -> str:
    """Read some bytes; return the words of a refusal, "" for none; raise what is neither an answer nor one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            target.read(data)
        except EpplanError as error:
            _check_refusal(error)
            return str(error)
    return ""


def _check_refusal(error: EpplanError) -> None:
    text, cause = str(error), error.__cause__
    if len(text.splitlines()) != 1 or len(text) > MAX_MESSAGE:
        raise Finding(f"a message of {len(text.splitlines())} lines and {len(text)} letters") from error
    text.encode("utf-8")  # lone surrogates cannot be printed everywhere
    while cause is not None:
        if isinstance(cause, MemoryError):
            raise Finding("memory ran out before the input was refused") from error
        cause = cause.__cause__


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    memory = Path("/dev/shm")  # where there is one, millions of small files wear out no disk
    return tempfile.TemporaryDirectory(prefix="epplan-fuzz-", dir=memory if memory.is_dir() else None)


def _file(data: bytes, name: str) -> Path:
    """Write what a reader opens by itself, always under the same name."""
    path = Path(_folder().name) / name
    path.write_bytes(data)
    return path


def _topology(data: bytes) -> None:
    """Read a host as it is, or complete it; what is slow is done on some of the inputs, the same ones each time."""
    try:
        hosts = _joined(data, Knowledge())
    except EpplanError as error:
        _check_refusal(error)
        hosts = _joined(data, Knowledge("hgx-h100", 50.0))
    if zlib.crc32(data) % 16 == 0:
        lint(hosts)
        build_cluster(hosts)


def _joined(data: bytes, knowledge: Knowledge) -> ClusterSpec:
    reading = parse_topology(data, "host.xml", knowledge)
    return join_hosts([reading], knowledge, name="fuzzed", hosts=2 * len(reading.hosts))


def _cluster_file(data: bytes) -> None:
    cluster = build_cluster(load_spec(_file(data, "cluster.yaml")))
    if cluster.num_ranks <= 64:
        routes(cluster)


def _name(data: bytes) -> None:
    load_cluster(data.decode("utf-8", errors="surrogateescape"))


def _config(data: bytes) -> None:
    file, document = read_config(_file(data, "config.json"))
    MoEModel(name="fuzzed", **parse_config(document, str(file)))


def _routing(data: bytes) -> None:
    """Read a recording with and without a model, as far as the statistics."""
    try:
        assemble(read_raw(data, "file", top_k=2), WIDER, source="file")
    except EpplanError as error:
        _check_refusal(error)
    else:
        return
    assemble(read_raw(data, "file"), None, source="file")


def _profile(data: bytes) -> None:
    load_profile(str(_file(data, "profile.yaml")))


def _table(data: bytes) -> None:
    table = read_table(_file(data, "table.csv"))
    (build_expert_cases if table.kind == "experts" else build_cases)(table)


@cache
def _a_table() -> object:
    return read_table(_file(tables()[0], "rows.csv"))


def _rows(data: bytes) -> None:
    _a_table().where(data.decode("utf-8", errors="surrogateescape"))  # type: ignore[attr-defined]


def _speeds(data: bytes) -> None:
    try:
        load_rank_speeds(_file(data, "speeds.csv"))
    except EpplanError as error:
        _check_refusal(error)
        load_rank_speeds(_file(data, "speeds.yaml"))


def _report(data: bytes) -> None:
    read_report(_file(data, "report.json"), "report.json")


def _importer(name: str) -> Callable[[bytes], None]:
    ranks = 2 if name == "megatron" else 4  # a permutation holds no copies: 6 experts fill 2 ranks evenly
    return lambda data: match(FORMATS[name](data, "file"), MODEL, ranks, 2, "file") and None


IMPORT_SHAPES: dict[str, Shape] = {
    "eplb": "zip", "lp-shares": "zip", "omni": "bytes", "trtllm": "yaml", "vllm-14544": "zip",
}  # fmt: skip
"""Those that are not JSON."""

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("nccl-xml", "xml", _topology),
        Target("nvidia-smi", "text", _topology),
        Target("cluster-yaml", "yaml", _cluster_file),
        Target("cluster-name", "text", _name),
        Target("hf-config", "json", _config),
        Target("routing-json", "json", _routing),
        Target("routing-jsonl", "lines", _routing),
        Target("routing-megatron", "lines", _routing),
        Target("routing-sglang-pt", "zip", _routing),
        Target("routing-npz", "zip", _routing),
        Target("routing-npy", "bytes", _routing),
        Target("routing-csv", "text", _routing),
        Target("routing-parquet", "bytes", _routing),
        Target("routing-safetensors", "bytes", _routing),
        Target("plan", "json", lambda data: load_plan(_file(data, "plan.json"))),
        Target("profile", "yaml", _profile),
        Target("table", "text", _table),
        Target("table-rows", "text", _rows),
        Target("rank-speeds", "text", _speeds),
        Target("report", "json", _report),
        *(Target(f"import-{name}", IMPORT_SHAPES.get(name, "json"), _importer(name)) for name in sorted(FORMATS)),
    )
}
