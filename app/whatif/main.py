"""The script that Streamlit runs: it lists the pages. Start it with `epplan app`."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

VIEWS = Path(__file__).with_name("views")
ICON = (  # drawn here: a named icon would be fetched from the network
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#0072B2"/>'
    '<path d="M3 4h10M3 8h6M3 12h10" stroke="white" stroke-width="2"/></svg>'
)
PAGES = {
    "inputs": ("Inputs", ":material/tune:"),
    "cluster": ("Cluster", ":material/hub:"),
    "plan": ("Plan", ":material/view_module:"),
    "what_if": ("What if", ":material/compare_arrows:"),
    "sweep": ("Sweep", ":material/show_chart:"),
    "timeline": ("Timeline", ":material/view_timeline:"),
    "measured": ("Measured", ":material/straighten:"),
    "export": ("Export", ":material/ios_share:"),
}


def main() -> None:
    """Run the page that the address names."""
    st.set_page_config(page_title="epplan", page_icon=ICON, layout="wide")
    pages = [
        st.Page(VIEWS / f"{name}.py", title=title, icon=icon, url_path=name, default=name == "inputs")
        for name, (title, icon) in PAGES.items()
    ]
    st.navigation(pages, position="top").run()


main()
