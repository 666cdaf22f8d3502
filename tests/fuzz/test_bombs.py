"""Small files that would unfold into gigabytes or hours, large ones of nothing but brackets, and what is no file.

Each is read in a child that may take 1 GiB of memory and 10 s of the processor for it.
"""

import io
import json
import os
import struct
import subprocess
import sys
import zipfile

import pytest

from planner import load_model, load_plan, load_profile, load_routing
from planner.calibrate import read_table
from planner.importers import read_placement
from planner.rank_speeds import load_rank_speeds
from tests.fuzz.seeds import a_plan, without_digest
from tests.planner.test_importers import MODEL
from tests.planner.test_readers_torch import Storage, archive, tensor, torch_bytes
from topologies import BadInput, load_cluster

MILLION = 10**6
TIME_S = 10.0
JSON_TARGETS = ("hf-config", "routing-json", "plan", "report", "import-sglang", "import-vllm-ascend", "import-megatron")


def packed(members: dict[str, bytes]) -> bytes:
    """A zip archive, packed as tightly as deflate can."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return stream.getvalue()


def npy_header(shape: str, descr: str = "<i8") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def zeros(name: str, shape: str, size: int, descr: str = "<i8") -> bytes:
    """An .npz whose array is nothing but zeros."""
    return packed({f"{name}.npy": npy_header(shape, descr) + bytes(size)})


def shared_tuples(levels: int) -> bytes:
    """A pickle whose dict has a tuple as key that holds the tuple below twice, `levels` times over."""
    program = (
        b"\x80\x02}"
        + b")"
        + b"q\x00"
        + b"".join(b"h%c" % (i % 256) + b"\x86q" + b"%c" % (i + 1) for i in range(levels))
    )
    return archive(program + b"K\x01s.")


def many_views(records: int) -> bytes:
    """Records whose tensors all read one storage of 200 MB of zeros, packed to a thousandth."""
    view = tensor(Storage("LongStorage", "0", 25 * MILLION), 0, (2, 8), (8, 1))
    record = {"forward_pass_id": 0, "rank": 1, "global_physical_count": view}
    mapped = tensor(Storage("LongStorage", "1", 16), 0, (2, 8), (8, 1))
    plain = torch_bytes({"records": [dict(record) for _ in range(records)], "last_physical_to_logical_map": mapped})
    with zipfile.ZipFile(io.BytesIO(plain)) as file:
        program = file.read("archive/data.pkl")
    return packed({"archive/data.pkl": program, "archive/data/0": bytes(200 * MILLION), "archive/data/1": bytes(128)})


def plan_with(**fields: object) -> bytes:
    return json.dumps(json.loads(without_digest(a_plan())) | fields).encode()


def scattered_csv(rows: int) -> bytes:
    """Each row is of another layer and source, and of the last expert there may be."""
    lines = (f"{n % 1000},{n // 1000},32767,1" for n in range(rows))
    return "layer,source,expert,count\n{}\n".format("\n".join(lines)).encode()


def windowed_csv(steps: int) -> bytes:
    lines = (f"{step},{layer},32767,1" for step in range(steps) for layer in range(700))
    return "step,layer,expert,count\n{}\n".format("\n".join(lines)).encode()


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(12)
)
BOMBS = {
    **{f"deep {name}": (name, lambda: b"[" * 10 * MILLION) for name in JSON_TARGETS},
    **{f"deep objects {name}": (name, lambda: b'{"a":' * MILLION) for name in ("plan", "hf-config")},
    **{f"many lists {name}": (name, lambda: b"[" + b"[]," * (5 * MILLION) + b"[]]") for name in JSON_TARGETS[:4]},
    "many keys": ("hf-config", lambda: json.dumps({str(n): 0 for n in range(MILLION)}).encode()),
    "long number": ("plan", lambda: b'{"version": ' + b"9" * 10 * MILLION + b"}"),
    "many zeros": ("routing-json", lambda: b'{"logical_count": [[' + b"0," * (30 * MILLION) + b"0]]}"),
    "many floats": ("routing-json", lambda: b'{"logical_count": [[' + b"1e1," * (15 * MILLION) + b"0]]}"),
    "plan of a million wrong layers": ("plan", lambda: plan_with(layers=[0] * MILLION)),
    "plan of a million wrong shares": ("plan", lambda: plan_with(layers=[{"layer": 1, "slots": [[0]] * 900_000}])),
    "plan of a million ranks": (
        "plan",
        lambda: plan_with(cluster={"name": "x", "ranks": [{"rank": 0, "host": 0, "gpu": 0, "domain": 0}] * 300_000})),
    "plan of endless experts": ("plan", lambda: plan_with(model=json.loads(a_plan())["model"] | {"experts": 10**9})),
    "report of a million wrong cases": (
        "report", lambda: json.dumps({"format": "epplan.validation", "cases": [0] * (3 * MILLION)}).encode()),
    "billion laughs": ("cluster-yaml", LAUGHS.encode),
    "billion laughs in a profile": ("profile", LAUGHS.encode),
    "billion laughs of slots": (
        "import-trtllm", lambda: b"num_slots: 8\ninitial_global_assignments:\n  0: &a [0, 1]\n" + b"".join(
            b"  %d: *a\n" % n for n in range(1, 9000))),
    "deep yaml": ("cluster-yaml", lambda: b"[" * MILLION),
    "cluster of a million wrong hosts": (
        "cluster-yaml", lambda: b"format: epplan.cluster\nversion: 1\nname: x\nhosts: {}\nlayout: ["
        + b"0," * (900_000) + b"0]\n"),
    "profile of wrong regimes": ("profile", lambda: b"format: x\nregimes: [" + b"0," * 400_000 + b"0]\n"),
    "xml attributes": ("nccl-xml", lambda: b"<system " + b" ".join(b'a%d="b"' % n for n in range(600_000)) + b"/>"),
    "xml text": ("nccl-xml", lambda: b"<system>" + b"&amp;" * MILLION + b"</system>"),
    "wide matrix": ("nvidia-smi", lambda: b"\t".join(b"GPU%d" % (n % 999) for n in range(MILLION))),
    "long matrix": ("nvidia-smi", lambda: b"\tGPU0\tGPU1\n" + b"GPU0\tX\tNV18\nGPU1\tNV18\tX\n" * 200_000),
    "full matrix": ("nvidia-smi", lambda: full_matrix(256)),
    "npz of zeros": ("routing-npz", lambda: zeros("counts", "(1000, 1000, 128)", 8 * 128 * MILLION)),
    "npz of zero ids": ("routing-npz", lambda: zeros("topk_ids", "(10, 100000, 128)", 128 * MILLION, "|i1")),
    "npz of as many ids as fit": (
        "routing-npz", lambda: zeros("topk_ids", "(61, 500000, 8)", 244 * MILLION, "|i1")),
    "npy that declares the world": ("routing-npy", lambda: npy_header("(100000, 100000, 100000)", "<f4") + bytes(4000)),
    "npy of many sides": ("routing-npy", lambda: npy_header("(" + "1," * 3000 + ")", "<f4") + bytes(4)),
    "cube that declares the world": ("import-omni", lambda: npy_header("(4294967296, 4294967296, 2)")),
    "storage of zeros": ("routing-sglang-pt", lambda: many_views(1)),
    "many tensors on one storage": ("routing-sglang-pt", lambda: many_views(2000)),
    "pickle of empty lists": (
        "routing-sglang-pt", lambda: packed({"a/data.pkl": b"\x80\x02" + b"]" * 60 * MILLION + b"."})),
    "tuples held twice": ("routing-sglang-pt", lambda: shared_tuples(45)),
    "scattered rows": ("routing-csv", lambda: scattered_csv(20_000)),
    "scattered windows": ("routing-csv", lambda: windowed_csv(17)),
    "one long line": ("routing-csv", lambda: b"layer,expert,count\n" + b"1" * 30 * MILLION),
    "safetensors header": ("routing-safetensors", lambda: struct.pack("<Q", 5 * MILLION) + b"{" + b"[" * 5 * MILLION),
    "megatron line": ("routing-megatron", lambda: b'{"top_indices": [' + b"[0,1]," * (2 * MILLION) + b"[0]]}\n{}"),
    "table of columns": ("table", lambda: b",".join(b"c%d" % n for n in range(300_000))),
    "table of one column": ("table", lambda: b"x\n" + b"1\n" * (2 * MILLION)),
    "expression": ("table-rows", lambda: b"1" + b"+1" * 900),
}  # fmt: skip


def full_matrix(devices: int) -> bytes:
    """A matrix of that many GPUs, all on one switch."""
    names = [f"GPU{n}" for n in range(devices)]
    rows = ["\t".join([name, *("X" if name == other else "NV1" for other in names)]) for name in names]
    return "\n".join(["\t" + "\t".join(names), *rows]).encode()


QUICK = (
    "deep objects plan", "long number", "plan of endless experts", "billion laughs", "billion laughs of slots",
    "deep yaml", "cluster of a million wrong hosts", "npy that declares the world", "cube that declares the world",
    "tuples held twice", "expression",
)  # fmt: skip
"""Those that are made and read in no time, where all goes well."""


def answers(names, folder) -> dict[str, dict]:
    """Return what came of some bombs, read by one child after the other."""
    arguments = []
    for name in names:
        target, make = BOMBS[name]
        path = folder / name.replace(" ", "-")
        path.write_bytes(make())
        arguments.append(f"{target}={path}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.feed", *arguments], capture_output=True, text=True, timeout=500, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    died = {"outcome": f"the child ended with {done.returncode}: {done.stderr[-500:]}", "seconds": 0.0}
    return dict(zip(names, [*found, *[died] * (len(names) - len(found))], strict=True))


def check_answers(found: dict[str, dict]) -> None:
    wrong = [f"{name}: {one}" for name, one in found.items() if one["outcome"] not in ("refused", "accepted")]
    late = [f"{name}: {one}" for name, one in found.items() if one["seconds"] > TIME_S]
    assert not wrong + late, "\n".join(wrong + late)


def test_quick_bombs(tmp_path):
    check_answers(answers(QUICK, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_read_or_refused_in_time_and_memory(name, tmp_path):
    check_answers(answers([name], tmp_path))


READERS = {
    "plan": load_plan, "profile": lambda path: load_profile(str(path)), "model": lambda path: load_model(str(path)),
    "routing": load_routing, "table": read_table, "speeds": load_rank_speeds,
    "cluster": lambda path: load_cluster(str(path)),
    "placement": lambda path: read_placement(path, "sglang", MODEL, load_cluster("hgx-h100:1")),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file(name, tmp_path):
    """Pipes that nobody writes to, devices without end, folders, links to nowhere and in a circle, odd names."""
    ending = ".yaml" if name in ("profile", "cluster") else ".json"
    os.mkfifo(tmp_path / f"pipe{ending}")
    (tmp_path / f"folder{ending}").mkdir()
    (tmp_path / f"nowhere{ending}").symlink_to(tmp_path / "missing")
    (tmp_path / f"circle{ending}").symlink_to(tmp_path / f"circle{ending}")
    (tmp_path / f"zero{ending}").symlink_to("/dev/zero")
    (tmp_path / f"random{ending}").symlink_to("/dev/urandom")
    (tmp_path / f"empty{ending}").touch()
    odd = ("\x00", "x" * 5000, "a\nb", "\udcff")
    paths = [*tmp_path.iterdir(), *(tmp_path / f"{part}{ending}" for part in odd), tmp_path / "empty" / "below"]
    assert len(paths) == 12
    for path in paths:
        with pytest.raises(BadInput) as caught:
            READERS[name](path)
        assert str(caught.value).isprintable()
