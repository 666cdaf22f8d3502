"""The conversation that the app is for, in a real browser: plan, compare, lose a host, plan again, take it away."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from planner import load_model
from planner.synthetic import logical_count_json, power_law

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser test needs Playwright")

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
REAL = "routing/sglang_deepseek_r1/prefill_in1024.json"
PATIENCE_MS = 120_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}"),
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Serve the app on a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app.main", "app", "--port", str(port), "--no-browser"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{url}/_stcore/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail("the app's server did not come up in 60 s")
        yield url
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=20)


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    """Open the app in a fresh browser profile; fail on errors of scripts."""
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        tab = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True).new_page()
        tab.set_default_timeout(PATIENCE_MS)
        faults: list[str] = []
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto(address)
        settled(tab)
        yield tab
        browser.close()
        assert not faults


@pytest.fixture
def routing(tmp_path: Path) -> Path:
    """Return recorded statistics of DeepSeek-R1, or the like of them where the shared data is not there."""
    shared = Path(os.environ.get("EPPLAN_DATA") or Path(__file__).parents[3] / ".." / "shared" / "data") / REAL
    if shared.is_file():
        return shared
    model = load_model("deepseek-v3")
    path = tmp_path / "power_law.json"
    path.write_text(logical_count_json(power_law(model, 0.5), model))
    return path


def settled(tab: Any) -> None:
    """Wait until the script has run to its end."""
    tab.wait_for_timeout(300)
    tab.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
    tab.wait_for_timeout(200)


def choose(tab: Any, label: str, option: str) -> None:
    """Pick an option of a select box."""
    tab.get_by_label(label, exact=True).first.click()
    tab.get_by_role("option", name=option, exact=True).click()
    settled(tab)


def fill(tab: Any, label: str, value: str) -> None:
    """Type a number."""
    tab.get_by_label(label, exact=True).first.fill(value)
    tab.keyboard.press("Enter")
    settled(tab)


def goto(tab: Any, name: str) -> None:
    """Open a page by its name in the navigation."""
    tab.get_by_role("link", name=re.compile(rf"\b{name}$")).click()
    settled(tab)


def metric(tab: Any, label: str) -> str:
    """Return the value of the figure of a name."""
    found = tab.get_by_test_id("stMetric").filter(has=tab.get_by_text(label, exact=True))
    return str(found.first.get_by_test_id("stMetricValue").inner_text())


def number(text: str) -> float:
    """Return the number in a figure."""
    return float(re.sub(r"[^0-9.]", "", text))


def evaluate(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run `epplan evaluate plan.json` as the user would."""
    done = subprocess.run(
        [sys.executable, "-m", "app.main", "evaluate", "plan.json", *arguments, "--json"],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["plans"][0])


def test_plan_lose_a_host_plan_again_and_take_it_away(page: Any, routing: Path, tmp_path: Path) -> None:
    """hgx-h100:4, DeepSeek-V3, a real file; host 3 is lost; `epplan evaluate` says of plan.json what the page says."""
    choose(page, "System", "hgx-h100")
    fill(page, "Hosts", "4")
    choose(page, "Model", "deepseek-v3")
    page.get_by_role("radio", name="a file").last.click()
    settled(page)
    page.get_by_test_id("stFileUploaderDropzoneInput").first.set_input_files(str(routing))
    page.get_by_text("in use:").wait_for()
    settled(page)
    fill(page, "Tokens per rank in a step", "4096")
    fill(page, "Expert slots per rank", "9")

    goto(page, "Plan")
    choose(page, "Search effort", "10 s")
    fast_us = number(metric(page, "layer, mean of all"))
    page.get_by_role("button", name="Search for a better plan").click()
    page.get_by_text("Searched plan").wait_for()
    settled(page)
    searched_us = number(metric(page, "layer, mean of all"))
    assert searched_us <= fast_us

    goto(page, "What if")
    page.get_by_role("combobox", name="Lost parts").click()
    page.get_by_role("option", name="host3", exact=True).click()
    page.keyboard.press("Escape")
    settled(page)
    page.get_by_text("the fewest that do").wait_for()
    b_us = number(metric(page, "B, fast plan, predicted"))
    page.get_by_role("button", name="Make B the setting of all pages").click()
    settled(page)

    goto(page, "Plan")
    assert number(metric(page, "layer, mean of all")) == b_us
    goto(page, "Export")
    shown_us = number(metric(page, "all MoE layers"))
    with page.expect_download() as waiting:
        page.get_by_role("button", name=re.compile(r"plan\.json:")).click()
    waiting.value.save_as(tmp_path / "plan.json")
    found = evaluate(tmp_path, "--routing", str(routing))
    assert round(found["total_us"], 1) == shown_us
    assert len(found["layers"]) == 58
    assert round(found["total_us"] / 58, 1) == pytest.approx(b_us, abs=0.06)
