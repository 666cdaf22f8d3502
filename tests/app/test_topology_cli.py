"""`epplan topology` from the outside: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from app.commands.topology import topology
from app.main import main
from tests.topologies.samples import MATRIX, data_file, two_sockets
from topologies import BadInput, load_cluster

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Return a runner that raises what the command raises."""

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(topology, [str(argument) for argument in arguments], catch_exceptions=False)

    return invoke


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Return the file of a small host."""
    path = tmp_path / "host.xml"
    path.write_bytes(two_sockets())
    return path


def _json(result: Result) -> Any:
    assert result.exit_code == 0
    return json.loads(result.stdout)


def test_the_surface_is_a_decision() -> None:
    surface = {
        name: sorted(option for parameter in command.params for option in parameter.opts)
        for name, command in topology.commands.items()
        if isinstance(command, click.Command)
    }
    fabric = ["--oversubscription", "--radix"]
    known = ["--json", "--nic-gbps", "--system"]
    assert surface == {
        "discover": sorted([*known, "--output", "-o"]),
        "export": sorted(["--to", "--host", "--system", "--output", "-o", "spec"]),
        "import": sorted(
            [*known, *fabric, "--domain-hosts", "--fabric", "--hosts", "--name", "--output", "-o", "files"]
        ),
        "lint": sorted([*known, *fabric, "spec"]),
        "show": sorted([*known, *fabric, "--svg", "spec"]),
    }


def test_show_prints_ranks_domains_links_and_bisection(run: Run) -> None:
    output = run("show", "hgx-h100:4").output
    for words in ("32 (32 x H100 SXM 80 GB)", "4 of 8 ranks", "bisection", "800 GB/s", "NVLink", "450", "NIC to leaf"):
        assert words in output
    summary = _json(run("show", "gb200-nvl72:2", "--json"))
    assert (summary["ranks"], summary["hosts"], summary["domains"]) == (144, 36, 2)
    assert summary["host_kinds"][0]["gpus"][3]["scale_up_gbps"] == 900
    assert summary["host_kinds"][0]["gpus"][3]["nics"] == ["nic3"]


UNEVEN = """\
format: epplan.cluster
version: 1
name: uneven
hosts:
  one: {nodes: [{name: gpu0, kind: gpu}], links: []}
  two:
    nodes: [{name: gpu0, kind: gpu}, {name: gpu1, kind: gpu}]
    links: [{a: gpu0, b: gpu1, kind: nvlink, gbps: 450}]
layout: [{host: two, count: 2}, {host: one}]
"""


def test_show_tells_domains_of_several_sizes(run: Run, tmp_path: Path) -> None:
    (tmp_path / "uneven.yaml").write_text(UNEVEN)
    assert "3 of 1 to 2 ranks" in run("show", str(tmp_path / "uneven.yaml")).output
    assert _json(run("show", str(tmp_path / "uneven.yaml"), "--json"))["domain_ranks"] == {"least": 1, "most": 2}


def test_show_without_a_cluster_lists_the_catalog(run: Run) -> None:
    assert "hgx-h100" in run("show").output
    assert _json(run("show", "--json"))[0]["name"] == "dgx-a100"


def test_show_draws(run: Run, tmp_path: Path, host: Path) -> None:
    run("show", host, "--svg", tmp_path / "host.svg")
    assert (tmp_path / "host.svg").read_text().startswith("<svg")


def test_import_repeats_a_host_and_the_file_loads(run: Run, tmp_path: Path, host: Path) -> None:
    target = tmp_path / "cluster.yaml"
    summary = _json(run("import", host, "--hosts", 4, "--fabric", "fat-tree", "--radix", 16, "-o", target, "--json"))
    assert (summary["ranks"], summary["fabric"]["kind"], summary["fabric"]["leaves"]) == (16, "fat-tree", 2)
    assert load_cluster(str(target)).num_ranks == 16
    assert _json(run("show", target, "--json")) == summary


def test_import_of_unequal_hosts(run: Run, tmp_path: Path, host: Path) -> None:
    matrix = tmp_path / "matrix.txt"
    matrix.write_text(MATRIX)
    summary = _json(run("import", host, matrix, "--system", "hgx-h100", "--nic-gbps", 50, "--json"))
    assert [kind["count"] for kind in summary["host_kinds"]] == [1, 1]
    assert summary["ranks"] == 8


def test_import_says_what_is_missing_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    matrix, target = tmp_path / "matrix.txt", tmp_path / "c.yaml"
    matrix.write_text(MATRIX)
    with pytest.raises(BadInput, match="--system"):
        run("import", matrix, "--hosts", 2, "--nic-gbps", 50, "-o", target)
    with pytest.raises(BadInput, match="--nic-gbps"):
        run("import", matrix, "--hosts", 2, "--system", "hgx-h100", "-o", target)
    with pytest.raises(BadInput, match="nearest: hgx-h100"):
        run("import", matrix, "--system", "hgx-h10")
    assert not target.exists()


def test_lint_prints_findings_with_cost_and_fix_and_nothing_when_clean(run: Run, host: Path) -> None:
    assert run("lint", host).output == ""
    assert _json(run("lint", host, "--json")) == {"findings": []}
    host.write_bytes(two_sockets().replace(b'speed="400000"', b'speed="100000"', 1))
    (finding,) = _json(run("lint", host, "--json"))["findings"]
    assert finding["check"] == "slow-nic"
    assert finding["cost_gbps"] > 50
    assert finding["fix"]
    assert "nic0" in run("lint", host).stdout


def test_notes_go_to_stderr(run: Run, tmp_path: Path) -> None:
    matrix = tmp_path / "matrix.txt"
    matrix.write_text(MATRIX)
    result = run("show", matrix, "--json")
    json.loads(result.stdout)
    assert "the matrix holds no speeds" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "hgx-h10:4"], ["show", "missing.xml"], ["show", "hgx-h100:4", "--oversubscription", "0"],
        ["lint", "bad.xml"], ["import", "bad.xml"], ["import"], ["import", "good.xml", "--fabric", "torus"],
        ["show", "bad.xml"], ["show", "bad.yaml"],
        ["import", "good.xml", "-o", "no/such/folder.yaml"], ["import", "good.xml", "--nic-gbps", "0"], ["show", "."],
    ],
    ids=" ".join,
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.xml").write_bytes(b'<!DOCTYPE a [<!ENTITY b "c">]><system>&b;</system>')
    (tmp_path / "bad.yaml").write_bytes(b"format: epplan.cluster\nversion: 1\nname: [\n")
    (tmp_path / "good.xml").write_bytes(two_sockets())
    monkeypatch.setattr(sys, "argv", ["epplan", "topology", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1
    assert lines[0].startswith("epplan: ")


def test_the_installed_command_on_a_real_dump() -> None:
    path = data_file("nvidia_smi/a100_8x_4nic_asymmetric.txt")
    command = [sys.executable, "-c", "from app.main import main; main()", "topology", "lint", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    (finding,) = json.loads(done.stdout)["findings"]
    assert finding["parts"] == ["gpu4", "gpu5", "gpu6", "gpu7"]


@pytest.mark.parametrize("spec", ["hgx-h100:2", "cluster.yaml"])
def test_a_nic_speed_that_would_be_ignored_is_refused(
    run: Run, host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run("import", host, "-o", "cluster.yaml")
    with pytest.raises(BadInput, match=f"--nic-gbps 25 completes a topology file .*; {spec} states its own"):
        run("show", spec, "--nic-gbps", 25)


@pytest.mark.parametrize("option", ["--nic-gbps", "--oversubscription"])
def test_nan_is_no_speed(run: Run, host: Path, tmp_path: Path, option: str) -> None:
    result = run("import", host, option, "nan", "-o", tmp_path / "cluster.yaml")
    assert result.exit_code == 2
    assert "nan is not a number" in result.stderr
    assert not (tmp_path / "cluster.yaml").exists()


def test_the_speed_of_nics_that_no_gpu_uses_is_not_asked_for(run: Run) -> None:
    result = run("show", data_file("nvidia_smi/dgx_a100_8x_12nic.txt"), "--system", "dgx-a100", "--nic-gbps", 25)
    assert "8 NICs taken as 25 GB/s" in result.stderr
    assert "not known" not in result.stderr


def _epplan(arguments: str, redirection: str = "") -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -m app.main {arguments} {redirection}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)


def test_no_verb_is_answered_with_the_help_as_it_is_laid_out() -> None:
    for verb in ("", "topology"):
        result = _epplan(verb)
        assert (result.returncode, result.stdout) == (2, "")
        assert len(result.stderr.splitlines()) > 10


def test_a_full_disk_under_the_results_is_one_line() -> None:
    result = _epplan("topology show", "> /dev/full")
    assert (result.returncode, result.stderr) == (2, "epplan: the results cannot be written: No space left on device\n")


def test_results_may_go_nowhere() -> None:
    result = _epplan("topology show hgx-h100:1", ">&-")
    assert (result.returncode, result.stderr) == (0, "")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    result = _epplan("topology show hgx-h100:64", "| head -c 1; exit ${PIPESTATUS[0]}")
    assert (result.returncode, result.stderr) == (0, "")


def test_a_cluster_file_may_go_to_a_pipe(host: Path) -> None:
    result = _epplan(f"topology import {host} -o /dev/stdout", "| cat")
    assert "format: epplan.cluster" in result.stdout


def test_case_does_not_matter_in_a_catalog_name() -> None:
    assert load_cluster("HGX-H100:2").num_ranks == 16
