"""Uploads: limits, names, and that nothing of them is left behind."""

from __future__ import annotations

import gc
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from app.whatif.cases import make_case
from app.whatif.settings import Settings
from app.whatif.uploads import ENDINGS, LIMIT_MB, MAX_FILES, Uploads, harmless
from planner import load_model
from planner.synthetic import logical_count_json, power_law
from tests.topologies.samples import two_sockets
from topologies import BadInput

MODEL = load_model("deepseek-v2-lite")


@pytest.fixture
def uploads() -> Uploads:
    return Uploads()


def _loads(exponent: float = 0.5) -> bytes:
    return logical_count_json(power_law(MODEL, exponent), MODEL).encode()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd.json", "passwd.json"),
        ("C:\\temp\\loads.csv", "loads.csv"),
        ("a\nb\x00.json", "ab.json"),
        ("<script>alert(1)</script>.json", "script.json"),
        ("x" * 500 + ".json", "x" * 80 + ".json"),
        ("", "unnamed"),
    ],
)
def test_names_are_shown_and_never_paths(name, shown):
    assert harmless(name) == shown


def test_files_lie_under_random_names_and_go_with_the_session():
    mine = Uploads()
    upload = mine.add("routing", "loads.json", _loads())
    folder = mine.folder
    assert upload.path.parent == folder
    assert "loads" not in upload.path.name
    assert folder.stat().st_mode & 0o077 == 0
    del mine, upload
    gc.collect()
    assert not folder.exists()


def test_a_closed_session_keeps_no_file(uploads):
    upload = uploads.add("routing", "loads.json", _loads())
    assert uploads.routing(upload.reference, MODEL).name == "loads.json"
    uploads.clear()
    assert not upload.path.exists()
    with pytest.raises(BadInput, match="upload it on the page Inputs"):
        uploads.routing(upload.reference, MODEL)


def test_the_same_file_twice_is_one_and_the_oldest_goes(uploads):
    first = uploads.add("routing", "a.json", b"{}")
    assert uploads.add("routing", "a.json", b"{}") is first
    for number in range(MAX_FILES):
        uploads.add("routing", f"{number}.json", b"{}")
    assert len(uploads.files) == MAX_FILES
    assert not first.path.exists()
    with pytest.raises(BadInput, match="upload it on the page Inputs"):
        uploads.get("routing", first.reference)


@pytest.mark.parametrize("kind", list(ENDINGS))
def test_limits_name_both_values(uploads, kind):
    ending = ENDINGS[kind][0]
    with pytest.raises(BadInput, match=f"over the limit of {LIMIT_MB[kind]} MB"):
        uploads.add(kind, f"big.{ending}", b"x" * (LIMIT_MB[kind] * 10**6 + 1))
    with pytest.raises(BadInput, match="the file is empty"):
        uploads.add(kind, f"none.{ending}", b"")
    with pytest.raises(BadInput, match="file ends in"):
        uploads.add(kind, "evil.exe", b"MZ")


def test_an_upload_is_planned_with(uploads):
    reference = uploads.add("routing", "loads.json", _loads()).reference
    case = make_case(Settings(model="deepseek-v2-lite", routing=reference), uploads)
    assert case.routing.name == "loads.json"
    assert case.fast_plan(case.workload()).predictions[-1].total_us > 0


def test_errors_name_the_users_file_and_never_ours(uploads):
    reference = uploads.add("routing", "other.json", _loads()).reference
    with pytest.raises(BadInput) as caught:
        make_case(Settings(model="mixtral-8x7b", routing=reference), uploads)
    assert str(caught.value) == "other.json: counts of 64 experts; the model mixtral-8x7b has 8"
    broken = uploads.add("model", "config.json", b"{]").reference
    with pytest.raises(BadInput) as caught:
        uploads.model(broken)
    assert str(caught.value).startswith("config.json: ")
    assert str(uploads.folder) not in str(caught.value)


class _Bomb:
    def __reduce__(self):
        return (Path.touch, (Path(__file__).with_name("owned"),))


def test_no_pickle_is_loaded(uploads):
    evil = pickle.dumps({"logical_count": _Bomb()})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("archive/data.pkl", evil)
        target.writestr("archive/version", "3")
    npz = io.BytesIO()
    np.savez(npz, topk_ids=np.array([_Bomb()], dtype=object))
    for name, data in (("x.pt", evil), ("y.pt", archive.getvalue()), ("z.npz", npz.getvalue())):
        reference = uploads.add("routing", name, data).reference
        with pytest.raises(BadInput, match=name):
            uploads.routing(reference, MODEL)
    assert not Path(__file__).with_name("owned").exists()


def test_a_cluster_file_and_a_topology_file(uploads):
    dumped = uploads.add("cluster", "host.xml", two_sockets())
    spec, _ = uploads.spec(dumped.reference, "hgx-h100")
    assert spec.name == "host"
    case = make_case(Settings(cluster=dumped.reference, system="hgx-h100", hosts=2, nic_gbps=50.0), uploads)
    assert case.cluster.num_hosts == 2
    with pytest.raises(BadInput, match=r"notes\.txt: neither NCCL topology XML"):
        uploads.spec(uploads.add("cluster", "notes.txt", b"hello").reference, None)
