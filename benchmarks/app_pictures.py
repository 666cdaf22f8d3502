"""Pictures of every page of the what-if app in a real browser, at the widths of a laptop and of a projector.

    python -m benchmarks.app_pictures ROUTING OUT [--report report.json] [--dark] [--widths 1280 1920]

ROUTING are statistics of DeepSeek-V3; they are uploaded, planned on hgx-h100:4 x 9 slots, and searched with the fixed
amount of work that gives the same numbers on every machine. Needs Playwright and Debian's chromium. The page Measured
is taken where a validation report is named. Look at every picture.
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from benchmarks.app_users import serve

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
LINK = "?model=deepseek-v3&cluster=hgx-h100%3A4&routing=power-law&tokens=4096&slots=9"
PAGES = ("Inputs", "Cluster", "Plan", "What if", "Sweep", "Timeline", "Measured", "Export")
PATIENCE_MS = 600_000
COLOURS = 255


def settled(tab: Any) -> None:
    """Wait until the script has run to its end and the charts are drawn."""
    tab.wait_for_timeout(400)
    tab.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
    tab.wait_for_timeout(1200)


def upload(tab: Any, routing: Path) -> None:
    """Take the statistics from a file."""
    tab.get_by_role("radio", name="a file").last.click()
    settled(tab)
    tab.get_by_test_id("stFileUploaderDropzoneInput").first.set_input_files(str(routing))
    tab.get_by_text("in use:").wait_for()
    settled(tab)


def prepare(tab: Any, page: str, report: Path | None) -> None:
    """Do on a page what makes it worth a look."""
    if page == "Plan" and tab.get_by_text("Searched plan").count() == 0:
        tab.get_by_role("button", name="Search for a better plan").click()
        tab.get_by_text("Searched plan").wait_for()
    elif page == "What if":
        tab.get_by_role("combobox", name="Lost parts").click()
        tab.get_by_role("combobox", name="Lost parts").fill("host0/nic4")
        tab.keyboard.press("Enter")
        tab.keyboard.press("Escape")
    elif page == "Sweep":
        tab.get_by_role("radio", name="Is redundancy worth its memory?").click()
        settled(tab)
        tab.get_by_role("button", name=re.compile(r"\bRun$")).click()
        tab.get_by_text("lightbulb").first.wait_for()
    elif page == "Measured" and report is not None:
        tab.get_by_test_id("stFileUploaderDropzoneInput").first.set_input_files(str(report))
    settled(tab)


def picture(tab: Any, width: int, path: Path) -> None:
    """Take the whole page, as high as it is, in few colours."""
    tab.set_viewport_size({"width": width, "height": 900})
    settled(tab)
    height = tab.evaluate(
        "document.querySelector('[data-testid=\"stMainBlockContainer\"]').getBoundingClientRect().height"
    )
    tab.set_viewport_size({"width": width, "height": max(int(height) + 10, 700)})
    settled(tab)
    shot = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
    shot.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Walk through the pages once for all widths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("routing", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--widths", type=int, nargs="+", default=[1280, 1920])
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    server, port = serve()
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            tab = browser.new_context(color_scheme="dark" if chosen.dark else "light").new_page()
            tab.set_default_timeout(PATIENCE_MS)
            tab.goto(f"http://127.0.0.1:{port}/{LINK}")
            settled(tab)
            upload(tab, chosen.routing)
            for page in PAGES:
                if page == "Measured" and chosen.report is None:
                    continue
                tab.get_by_role("link", name=re.compile(rf"\b{page}$")).click()
                settled(tab)
                prepare(tab, page, chosen.report)
                for width in chosen.widths:
                    name = page.lower().replace(" ", "-")
                    picture(tab, width, chosen.out / f"app-{name}-{width}{'-dark' if chosen.dark else ''}.png")
                tab.set_viewport_size({"width": 1280, "height": 900})
                print(page, flush=True)
            browser.close()
    finally:
        server.terminate()
        server.wait(timeout=30)


if __name__ == "__main__":
    main()
