"""`calibrate`, `accuracy` and `simulate` as the user types them."""

import json
import re
from pathlib import Path

import pytest
import yaml

HEADER = "system,ranks,nodes,dtype,bytes_per_rank,time_us\n"


def table(tmp_path, system="h200_sxm"):
    lines = [f"{system},{n},1,half,{2**p},{5 + n + 2**p * (n - 1) / n / 3e5}" for n in (2, 4, 8) for p in range(10, 28)]
    path = tmp_path / "nccl.csv"
    path.write_text(HEADER + "\n".join(lines) + "\n")
    return str(path)


def test_fit_then_check_on_what_was_not_fitted(run, tmp_path):
    profile = str(tmp_path / "mine.yaml")
    code, out, _ = run("calibrate", table(tmp_path), "--fit", "ranks != 4", "-o", profile, "--date", "2026-11-21")
    assert code == 0
    assert "nccl-alltoall" in out
    written = yaml.safe_load(Path(profile).read_text())
    assert written["status"] == "calibrated"
    assert written["exchanges"][0]["fit"]["selection"] == "ranks != 4"
    assert written["exchanges"][0]["fit"]["rows"] == 36
    code, out, _ = run("accuracy", "--profile", profile, table(tmp_path), "--on", "ranks == 4", "--json")
    assert code == 0
    document = json.loads(out)
    assert set(document) == {"groups", "all"}
    assert document["all"]["n"] == 18
    assert document["all"]["mape"] < 0.1
    assert {"key", "n", "mape", "median", "p95"} <= set(document["groups"][0])
    assert {group["key"]["size"] for group in document["groups"]} == {"<64KiB", "64KiB-16MiB", ">=16MiB"}


def test_the_plot_is_a_picture(run, tmp_path):
    picture = tmp_path / "a.svg"
    code, out, err = run("accuracy", "--profile", "vendor", table(tmp_path), "--svg", str(picture))
    assert code == 0
    assert "vendor" in out
    assert "uncalibrated" in out
    assert "wrote" in err
    text = picture.read_text()
    assert text.startswith("<svg")
    assert len(re.findall("<circle", text)) >= 54


@pytest.mark.parametrize(
    "words",
    [
        ("calibrate", "missing.csv", "-o", "x.yaml"),
        ("calibrate", "TABLE", "-o", "nowhere/deep/x.yaml"),
        ("calibrate", "TABLE", "-o", "TABLE"),
        ("calibrate", "TABLE", "--fit", "ranks.sum()", "-o", "OUT"),
        ("calibrate", "TABLE", "--fit", "ranks == 99", "-o", "OUT"),
        ("calibrate", "TABLE", "--base", "no-such", "-o", "OUT"),
        ("accuracy", "--profile", "no-such", "TABLE"),
        ("accuracy", "--profile", "vendor", "TABLE", "--on", "rnks == 4"),
        ("accuracy", "--profile", "vendor", "OTHER"),
        ("simulate", "missing.json"),
    ],
)
def test_mistakes_are_one_line_and_code_2(run, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    known = {"TABLE": table(tmp_path), "OTHER": "other.csv", "OUT": str(tmp_path / "x.yaml")}
    code, out, err = run(*(known.get(word, word) for word in words))
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("epplan: ")


def test_a_system_that_nobody_knows_is_still_fitted_in_gb_per_second(run, tmp_path):
    profile = str(tmp_path / "mine.yaml")
    assert run("calibrate", table(tmp_path, "homebrew"), "-o", profile)[0] == 0
    code, out, _ = run("accuracy", "--profile", profile, table(tmp_path, "homebrew"), "--json")
    assert code == 0
    assert json.loads(out)["all"]["mape"] < 0.05
    code, _, err = run("accuracy", "--profile", "vendor", table(tmp_path, "homebrew"))
    assert code == 2
    assert "homebrew" in err


def test_as_many_terms_as_rows_is_said(run, tmp_path):
    """Two sizes on 8 ranks tell a start-up and a price of a byte, whatever the times are; 18 sizes can contradict."""
    two, all_ = ("ranks == 8 and bytes_per_rank > 50_000_000", "ranks == 8")
    for chosen, said in ((two, True), (all_, False)):
        code, _, err = run("calibrate", table(tmp_path), "--fit", chosen, "-o", str(tmp_path / "mine.yaml"))
        assert code == 0
        assert ("2 rows for 2 terms" in err) == said


def test_a_price_of_bytes_that_is_noise_is_not_kept(run, tmp_path):
    """1 to 16 KiB on 8 ranks: 20 us, the bytes at 300 GB/s below 0.05 us of it, and 2 % of noise that grows by chance.

    Fitted to that noise a byte would cost 20 times what it does; kept, it would decide what 1 GB takes.
    """
    sizes = [2**k for k in range(10, 15)] * 3
    times = [(20 + size * 7 / 8 / 3e5) * (1 + 0.02 * size / 2**14) for size in sizes]
    lines = [f"h200_sxm,8,1,half,{size},{time:.4f}" for size, time in zip(sizes, times, strict=True)]
    (tmp_path / "small.csv").write_text(HEADER + "\n".join(lines) + "\n")
    profile = tmp_path / "mine.yaml"
    code, _, err = run("calibrate", str(tmp_path / "small.csv"), "-o", str(profile))
    assert code == 0
    assert "messages up to 2,048 bytes show no bandwidth" in err  # 16 KiB to 8 peers
    (range_,) = yaml.safe_load(profile.read_text())["exchanges"][0]["regimes"]
    assert list(range_["us"]) == ["start"]
    assert range_["us"]["start"] == pytest.approx(20, rel=0.02)
    assert run("calibrate", table(tmp_path), "--fit", "ranks == 8", "-o", str(profile))[0] == 0  # up to 128 MiB
    assert yaml.safe_load(profile.read_text())["exchanges"][0]["regimes"][-1]["us"]["wire"] == pytest.approx(
        1 / 300, rel=0.05
    )


def test_simulate_the_bundled_plan(run, tmp_path):
    plan, trace = str(tmp_path / "plan.json"), tmp_path / "trace.json"
    assert run("plan", "--time-limit", "0", "-o", plan)[0] == 0
    code, out, _ = run("simulate", plan, "-o", str(trace))
    assert code == 0
    assert "closed form" in out
    assert json.loads(trace.read_text())["traceEvents"]
    code, out, _ = run("simulate", plan, "--json", "--barriers")
    document = json.loads(out)
    assert document["simulated_us"] >= document["closed_form_us"] * (1 - 1e-9)
    assert run("simulate", plan, "--layer", "99")[0] == 2


def test_overlap_goes_from_plan_to_evaluate(run, tmp_path):
    plan = str(tmp_path / "plan.json")
    assert run("plan", "--time-limit", "0", "--overlap", "two-batches", "-o", plan)[0] == 0
    _, out, _ = run("evaluate", plan, "--json")
    assert json.loads(out)["plans"][0]["overlap"] == "two-batches"
    _, out, _ = run("evaluate", plan, "--overlap", "none", "--json")
    assert json.loads(out)["plans"][0]["overlap"] == "none"
    code, _, err = run("plan", "--overlap", "shared-expert", "--time-limit", "0")
    assert code == 2
    assert "no shared experts" in err
