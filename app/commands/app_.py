"""`epplan app`: serves the what-if app on this machine."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from pathlib import Path

import click

from app.console import messages
from topologies.errors import BadInput

MAIN = Path(__file__).parents[1] / "whatif" / "main.py"
MAX_UPLOAD_MB = 100

OPTIONS = {
    "browser.gatherUsageStats": "false",
    "client.showErrorDetails": "none",
    "client.toolbarMode": "minimal",
    "server.enableXsrfProtection": "true",
    "server.fileWatcherType": "none",
    "server.maxUploadSize": str(MAX_UPLOAD_MB),
    "theme.light.primaryColor": "#0072B2",
    "theme.dark.primaryColor": "#2A80C8",
}


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=8501, show_default=True, help="Where to listen.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 serves the whole network."
)
@click.option("--no-browser", is_flag=True, help="Open no browser here.")
@click.option(
    "--reports",
    type=click.Path(path_type=Path),
    help="Folder whose reports (*.json) every user of the page Measured may open.",
)
def app(*, port: int, host: str, no_browser: bool, reports: Path | None) -> None:
    """Open the what-if app: cluster, plan, what-if questions, sweeps, timeline, measurements, exports.

    It runs until Ctrl-C. Uploads stay in the session of the user who made them, and are deleted with it.

    \b
    epplan app                              for yourself, at http://localhost:8501
    epplan app --host 0.0.0.0 --no-browser  for your team
    """
    missing = [name for name in ("streamlit", "plotly") if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(f"`epplan app` needs {' and '.join(missing)}: pip install 'epplan[app]'")
    if reports is not None and not reports.is_dir():
        raise BadInput(f"--reports {reports}: no such folder")
    environment = os.environ | ({} if reports is None else {"EPPLAN_APP_REPORTS": str(reports.resolve())})
    options = OPTIONS | {
        "server.port": str(port),
        "server.address": host,
        "server.headless": str(no_browser).lower(),
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    _check_free(host, port)
    messages().print(f"serving on http://{host}:{port} until Ctrl-C", highlight=False)
    command = [sys.executable, "-m", "streamlit", "run", str(MAIN), *arguments]
    os.execve(sys.executable, command, environment)  # the server is this process: it gets Ctrl-C, and cleans up


def _check_free(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on, before the server starts."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise BadInput(f"--host {host} --port {port}: cannot listen there: {error.strerror or error}") from error
