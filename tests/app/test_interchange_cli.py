"""`epplan export`, `import`, `routing` and `permute` as a user calls them."""

import json
from pathlib import Path

import click
import numpy as np
import pytest

from app import main as entry
from app.commands.export import export
from app.commands.import_ import import_
from app.commands.permute import permute
from app.commands.routing import routing
from planner import load_plan
from planner.exporters import TARGETS
from tests.planner.routing_data import RECORDER, data_file
from tests.planner.test_permute import block, checkpoint


def refused(result, *fragments):
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("epplan: ")
    for fragment in fragments:
        assert fragment in err


@pytest.fixture
def loads(tmp_path):
    """Counts of 16 layers of OLMoE's 64 experts."""
    path = tmp_path / "loads.json"
    counts = np.random.default_rng(0).zipf(1.6, (16, 64)).clip(1, 200) * 10
    path.write_text(json.dumps({"logical_count": counts.tolist()}))
    return path


SETTING = ["--model", "olmoe-1b-7b", "--cluster", "hgx-h100:1"]


def planned(run, loads, tmp_path, *more) -> Path:
    path = tmp_path / "plan.json"
    code, _, err = run("plan", *SETTING, "--routing", loads, "--workers", 1, "--time-limit", 0, "-o", path, *more)
    assert code == 0, err
    return path


def surface(command):
    return sorted(option for parameter in command.params for option in parameter.opts)


def test_the_surface_is_a_decision():
    assert surface(export) == sorted(
        ["plan", "--to", "-o", "--output", "--lossy", "--routing", "--cluster", "--profile"]
    )
    assert surface(import_) == sorted(
        ["file", "--from", "--model", "--cluster", "--routing", "--tokens-per-rank", "--exchange", "--profile", "-o",
         "--output", "--json"]
    )  # fmt: skip
    assert surface(permute) == sorted(["checkpoint", "--by", "-o", "--output", "--prove"])
    assert isinstance(routing, click.Group)
    assert {name: surface(command) for name, command in routing.commands.items()} == {
        "show": sorted(["files", "--model", "--ranks", "--svg", "--json"])
    }
    assert {"export", "import", "permute", "routing"} <= set(entry.COMMANDS)


def test_export_import_evaluate(run, loads, tmp_path):
    """A plan without replicas goes to SGLang and back, and keeps its prediction."""
    plan = planned(run, loads, tmp_path, "--slots-per-rank", 8)
    code, out, err = run("export", plan, "--to", "sglang", "-o", tmp_path / "map.json")
    assert (code, out) == (0, ""), err
    assert "--init-expert-location" in err
    again = tmp_path / "again.json"
    code, out, err = run("import", tmp_path / "map.json", "--from", "sglang", *SETTING, "--routing", loads, "-o", again)
    assert code == 0, err
    assert "sglang placement" in out
    assert [layer.slots for layer in load_plan(again).layers] == [layer.slots for layer in load_plan(plan).layers]
    code, out, _ = run("evaluate", plan, again, "--routing", loads, "--json")
    first, second = (row["total_us"] for row in json.loads(out)["plans"])
    assert code == 0
    assert first == pytest.approx(second)


def test_lossy_export_says_what_it_costs(run, loads, tmp_path):
    plan = planned(run, loads, tmp_path, "--slots-per-rank", 9)
    target = tmp_path / "permutation.json"
    refused(
        run("export", plan, "--to", "megatron", "-o", target), str(plan), "replicas", "--slots-per-rank 8", "--lossy"
    )
    assert not target.exists()
    code, _, err = run("export", plan, "--to", "megatron", "--lossy", "--routing", loads, "-o", target)
    assert code == 0
    assert "warning: megatron: lost replicas" in err
    assert "predicted cost of the losses: +" in err
    assert len(json.loads(target.read_text())["layers"]) == 16
    refused(run("export", plan, "--to", "megatron", "--lossy", "-o", target), "--routing is missing")
    refused(run("export", plan, "--to", "sglnag", "-o", target), "nearest: sglang")
    away = ["-o", tmp_path / "no" / "f", "--lossy", "--routing", loads]
    refused(run("export", plan, "--to", "omni", *away), "cannot be written")


def test_every_target_writes_a_bundled_plan_that_has_no_replicas(run, tmp_path):
    plan = tmp_path / "plan.json"
    code, _, err = run("plan", "--slots-per-rank", 2, "--time-limit", 0, "--workers", 1, "-o", plan)
    assert code == 0, err
    for target in TARGETS:
        code, _, err = run("export", plan, "--to", target, "--lossy", "-o", tmp_path / target)
        assert code == 0, err
        assert (tmp_path / target).stat().st_size > 0


@pytest.mark.parametrize(
    ("name", "target", "fragment"),
    [
        ("plan.pt", "lp-shares", "plan.json, which is read here"),  # its map goes to plan.json
        ("plan.json", "sglang", "plan.json, which is read here"),
        ("shares.json", "lp-shares", "end the name of the first in .pt"),  # both files would be shares.json
    ],
)
def test_export_overwrites_neither_the_plan_nor_itself(run, loads, tmp_path, name, target, fragment):
    plan = planned(run, loads, tmp_path, "--engine-compatible")
    before = plan.read_bytes()
    refused(run("export", plan, "--to", target, "-o", tmp_path / name), fragment)
    assert plan.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loads.json", "plan.json"]


def test_no_command_writes_over_what_it_reads(run, loads, tmp_path):
    plan, file = planned(run, loads, tmp_path, "--engine-compatible"), tmp_path / "location.json"
    assert run("export", plan, "--to", "sglang", "-o", file)[0] == 0
    link = tmp_path / "link.json"
    link.symlink_to(plan)
    before = plan.read_bytes(), file.read_bytes()
    for words in (
        ["simulate", plan, "--routing", loads, "-o", plan],
        ["simulate", plan, "--routing", loads, "-o", link],
        ["validate", plan, "--routing", loads, "-o", plan],
        ["validate", plan, "--routing", loads, "--page", link],
        ["import", file, "--from", "sglang", *SETTING, "--routing", loads, "-o", file],
    ):
        refused(run(*words), "which is read here")
    assert (plan.read_bytes(), file.read_bytes()) == before


def test_imports_that_are_refused(run, loads, tmp_path):
    file = tmp_path / "map.json"
    base = ["import", file, "--from", "sglang", *SETTING, "--routing", loads]
    refused(run(*base), str(file), "no such file")
    file.write_text('{"physical_to_logical_map": [[0, 1, 2]]}')
    refused(run(*base), str(file), "1 rows", "16")
    file.write_text(json.dumps({"physical_to_logical_map": [[64, *range(1, 64)]] * 16}))
    refused(run(*base, "-o", tmp_path / "p.json"), str(file), "expert 64", "0..63")
    assert not (tmp_path / "p.json").exists()


def test_routing_show(run, loads, tmp_path):
    picture = tmp_path / "loads.svg"
    code, out, err = run("routing", "show", loads, "--model", "olmoe-1b-7b", "--svg", picture)
    assert code == 0, err
    for word in ("16 layers x 64 experts", "skew", "co-activation", "placement helps balance", "blocks on 8"):
        assert word in out
    assert picture.read_text().startswith("<svg")
    code, out, _ = run("routing", "show", loads, "--json", "--ranks", 4)
    document = json.loads(out)
    assert (document["ranks"], len(document["layers"])) == (4, 16)
    assert document["verdict"]["placement"] is True
    assert document["layers"][0]["drift"] is None


def test_routing_show_compares_files(run, loads, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"logical_count": np.ones((16, 64)).tolist()}))
    code, out, _ = run("routing", "show", loads, other, "--json")
    assert code == 0
    assert json.loads(out)["windows"] == 2
    assert json.loads(out)["layers"][0]["drift"] > 0.05
    other.write_text(json.dumps({"logical_count": np.ones((4, 64)).tolist()}))
    refused(run("routing", "show", loads, other), "other.json", "4 layers x 64", "16 x 64")
    refused(run("routing", "show", loads, "--ranks", 7), "--ranks 7 does not divide the 64 experts")


def test_routing_show_reads_a_real_recorder_dump(run):
    code, out, err = run("routing", "show", data_file(RECORDER), "--model", "deepseek-r1", "--ranks", 32)
    assert code == 0, err
    assert "58 layers x 256 experts" in out
    assert "redundancy helps balance" in out


def test_permute(run, tmp_path):
    source = checkpoint(tmp_path / "a", block())
    order = {"format": "epplan.expert-permutation", "version": 1, "layers": [{"layer": 1, "new_to_old": [2, 0, 1]}]}
    (tmp_path / "order.json").write_text(json.dumps(order))
    code, out, err = run("permute", source, "--by", tmp_path / "order.json", "-o", tmp_path / "b")
    assert code == 0, err
    assert "4 tensors renumbered in 1 layers" in out
    refused(run("permute", source, "--by", tmp_path / "order.json", "-o", tmp_path / "b"), "exists; name a new folder")
    refused(run("permute", tmp_path, "--by", tmp_path / "order.json", "-o", tmp_path / "c"), "no folder with")


@pytest.mark.parametrize("target", ["nccl-xml", "sglang-cost-matrix"])
def test_topology_export(run, tmp_path, target):
    file = tmp_path / "file"
    code, out, err = run("topology", "export", "hgx-h100:2", "--to", target, "-o", file)
    assert (code, out) == (0, ""), err
    assert f"{file}" in err
    if target == "nccl-xml":
        code, out, err = run("topology", "import", file, "--hosts", 2, "--json")
        assert (code, json.loads(out)["ranks"]) == (0, 16)
        refused(run("topology", "export", "hgx-h100:2", "--to", target, "--host", 2, "-o", file), "has hosts 0..1")
    else:
        assert len(json.loads(file.read_text())) == 16
        refused(run("topology", "export", "hgx-h100:2", "--to", target, "--host", 0, "-o", file), "leave --host out")
