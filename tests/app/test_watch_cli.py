"""`epplan watch` with files that appear, commands that fail, and restarts, as a user runs it."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from app.apply_command import ApplyCommand
from app.commands.watch import watch
from app.watching import Watch
from planner import load_plan, load_profile
from planner.inbox import Inbox
from planner.watch import Threshold
from tests.app.test_plan_cli import failed

FLAT = np.random.default_rng(5).integers(20, 200, (16, 64))
ON_TWO = ["--model", "olmoe-1b-7b", "--cluster", "hgx-h100:2", "--workers", 1, "--exchange", "two-level"]
KEEP = f'{shlex.quote(sys.executable)} -c "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])" {{plan}} '
QUICK = ["--time-limit", 0, "--workers", 1, "--settle", 0]


@pytest.fixture
def service(run, loads, tmp_path):
    """A plan in force, an empty folder, and how to call the command on both."""
    plan, folder = tmp_path / "plan.json", tmp_path / "stats"
    folder.mkdir()
    code, _, err = run("plan", *ON_TWO, "--routing", loads(FLAT), "--time-limit", 0, "-o", plan)
    assert code == 0, err

    def once(apply=KEEP + str(tmp_path / "applied.json"), *options):
        code, out, err = run("watch", folder, "--plan", plan, "--apply", apply, "--once", "--json", *QUICK, *options)
        return code, [json.loads(line) for line in out.splitlines()], err

    return plan, folder, once


def _put(folder, load, name="now.json", at=None):
    """Write statistics; `at` seconds after the epoch where the order of several matters."""
    path = folder / name
    path.write_text(json.dumps({"logical_count": np.asarray(load).tolist()}))
    if at is not None:
        os.utime(path, (at, at))
    return path


def _events(told):
    return [one["event"] for one in told]


def test_new_statistics_become_the_plan_in_force_and_a_restart_knows(run, service, tmp_path):
    plan, folder, once = service
    before = plan.read_bytes()
    code, told, err = once()
    assert (code, _events(told)) == (0, ["watching"]), err
    stats = _put(folder, FLAT[:, ::-1])
    code, told, err = once()
    assert (code, _events(told)) == (0, ["watching", "applied"]), err
    assert plan.read_bytes() == (tmp_path / "applied.json").read_bytes() != before
    assert told[-1]["gain"] > 0.01
    assert not list(tmp_path.glob("*.next.json"))
    after = load_plan(plan)
    assert told[-1]["step_us_new"] == pytest.approx(after.predicted.total_us)
    assert after.provenance.inputs["from"].startswith("sha256:")
    code, out, err = run("evaluate", plan, "--routing", stats, "--json")
    assert json.loads(out)["plans"][0]["total_us"] == pytest.approx(told[-1]["step_us_new"])
    code, told, _ = once()
    assert (code, _events(told)) == (0, ["watching", "in force"])
    assert load_plan(plan) == after


def test_a_command_that_fails_leaves_the_plan_in_force_and_is_tried_again(service, tmp_path):
    plan, folder, once = service
    before = plan.read_bytes()
    _put(folder, FLAT[:, ::-1])
    for command, said in (
        (f"{sys.executable} -c 'import sys; sys.exit(7)' {{plan}}", "exit code 7"),
        (f"{sys.executable} -c 'import time; time.sleep(60)' {{plan}}", "did not end within 0.5 s"),
    ):
        code, told, err = once(command, "--apply-timeout", 0.5)
        assert (code, _events(told)) == (1, ["watching", "failed"]), err
        assert said in told[-1]["reason"]
        assert plan.read_bytes() == before
    assert load_plan(tmp_path / "plan.next.json").predicted.total_us == pytest.approx(told[-1]["step_us_new"])
    code, told, _ = once()
    assert (code, _events(told)) == (0, ["watching", "applied"])
    assert plan.read_bytes() != before


def test_what_does_not_pay_is_kept_and_said(service):
    plan, folder, once = service
    before = plan.read_bytes()
    _put(folder, FLAT[:, ::-1])
    for options, said in ((["--min-gain", 90], "less than the 90.00%"), (["--pay-back", 0], "pays back after")):
        code, told, err = once("false {plan}", *options)
        assert (code, _events(told)) == (0, ["watching", "kept"]), err
        assert said in told[-1]["reason"]
    _put(folder, FLAT + 1, "alike.json")
    assert _events(once("false {plan}")[1]) == ["watching", "kept"]
    assert plan.read_bytes() == before


def test_moves_are_limited(service):
    _, folder, once = service
    _put(folder, FLAT[:, ::-1])
    free = once("false {plan}")[1][-1]["moves"]
    _, told, _ = once(KEEP + os.devnull, "--max-moves", free // 2)
    assert _events(told) == ["watching", "applied"]
    assert 0 < told[-1]["moves"] <= free // 2


def test_drift_is_counted_from_the_first_statistics_seen(service):
    """The plan was made on FLAT, which never is in the folder: nothing is known of drift at first, then all of it is.

    Layer 0 of the second file has half of expert 0's load on expert 1; the other layers stay: drift / 16 layers.
    """
    plan, folder, _ = service
    told = []
    watching = Watch(
        plan, Inbox(folder, 0.0, {plan}), ApplyCommand.parse("false {plan}", 1.0), Threshold(0.9, 1e4), load_profile(),
        None, 0.0, 1, None, None, lambda event, text, **fields: told.append((event, text, fields)),
    )  # fmt: skip
    first = np.full((16, 64), 1_000_000)
    second = first.copy()
    second[0, :2] = 500_000, 1_500_000
    for name, load, at in (("one.json", first, 1_000), ("two.json", second, 2_000)):
        _put(folder, load, name, at=at)
        watching.turn()
    assert [event for event, _, _ in told] == ["kept", "kept"]
    assert told[0][2]["drift"] is None
    assert "of the load moved" not in told[0][1]
    assert told[1][2]["drift"] == pytest.approx(0.5 / 64 / 16, rel=0.1)
    assert "of the load moved" in told[1][1]


def test_a_cluster_that_has_to_be_named_is_asked_for_at_once(run, service):
    plan, folder, _ = service
    document = json.loads(plan.read_text())
    document["cluster"]["name"] = "ours"
    document.pop("sha256")
    plan.write_text(json.dumps(document))
    failed(run("watch", folder, "--plan", plan, "--apply", "true {plan}", "--once"), 2, "'ours'", "--cluster")


def test_bad_files_are_skipped_for_the_next_newest(service):
    _, folder, once = service
    _put(folder, FLAT[:, ::-1], "old.json", at=1_000)
    _put(folder, FLAT[:, :32], "narrow.json", at=2_000)
    (folder / "cut.json").write_text('{"logical_count": [[1, 2')
    code, told, err = once()
    assert (code, _events(told)) == (0, ["watching", "skipped", "skipped", "applied"]), err
    assert [one["file"] for one in told[1:]] == ["cut.json", "narrow.json", "old.json"]


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--apply", "reload plan"], ["must name the plan's file as {plan}"]),
        (["--apply", "'reload {plan}"], ["No closing quotation"]),
        (["--apply", "no-such-program {plan}"], ["no program 'no-such-program'"]),
        (["--apply", "true {plan}", "--max-moves", "many"], ["--max-moves", "many"]),
        (["--apply", "true {plan}", "--interval", "inf"], ["--interval", "finite"]),
    ],
)
def test_bad_input_is_one_line(run, service, options, fragments):
    plan, folder, _ = service
    failed(run("watch", folder, "--plan", plan, *options), 2, *fragments)


def test_no_plan_and_no_folder(run, service, tmp_path):
    plan, folder, _ = service
    failed(run("watch", folder, "--plan", tmp_path / "none.json", "--apply", "true {plan}"), 2, "none.json")
    failed(run("watch", tmp_path / "none", "--plan", plan, "--apply", "true {plan}"), 2, "cannot be watched")


def test_surface_is_frozen():
    assert {option for parameter in watch.params for option in parameter.opts} == {
        "folder", "--plan", "--apply", "--min-gain", "--pay-back", "--max-moves", "--interval", "--settle", "--once",
        "--apply-timeout", "--time-limit", "--tokens-per-rank", "--cluster", "--profile", "--workers", "--json",
    }  # fmt: skip


def test_a_service_follows_files_and_ends_cleanly(service, tmp_path):
    """Statistics arrive in halves while it runs; SIGTERM comes while the command works, which is not cut in two."""
    plan, folder, _ = service
    started, ended = tmp_path / "started", tmp_path / "ended"
    slow = f"sh -c 'touch {started}; sleep 1; cp $0 {ended}' {{plan}}"
    command = [sys.executable, "-m", "app.main", "watch", folder, "--plan", plan, "--apply", slow, "--json"]
    options = ["--time-limit", "0", "--workers", "1", "--interval", "0.1", "--settle", "0.5"]
    with subprocess.Popen(
        [str(word) for word in [*command, *options]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            whole = json.dumps({"logical_count": FLAT[:, ::-1].tolist()})
            _until(lambda: process.stdout.readline().count("watching"), process)
            (folder / "now.json").write_text(whole[:1000])
            _until(lambda: process.stdout.readline().count("waiting"), process)
            (folder / "now.json").write_text(whole)
            _until(started.exists, process)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert _events([json.loads(line) for line in out.splitlines()])[-2:] == ["applied", "stopped"]
    assert ended.read_bytes() == plan.read_bytes()


def _until(happened, process, limit_s=60):
    end = time.monotonic() + limit_s
    while not happened():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)
