"""`epplan app` up to the moment when it becomes the server."""

from __future__ import annotations

import importlib.util
import os
import socket
from typing import Any

import click
import pytest

from app.commands.app_ import app
from topologies import BadInput


def _start(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[list[str], dict[str, str]]:
    """Return the command line and environment of the server that would start."""
    started: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda _, command, environment: started.append((command, environment)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert isinstance(app, click.Command)
    assert app.callback is not None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    app.callback(**{"port": port, "host": "127.0.0.1", "no_browser": True, "reports": None} | options)
    command, environment = started[0]
    return list(command), dict(environment)


def test_the_surface_is_a_decision():
    assert {option for parameter in app.params for option in parameter.opts} == {
        "--port",
        "--host",
        "--no-browser",
        "--reports",
    }


def test_it_serves_this_machine_alone_and_tells_nobody(monkeypatch):
    command, _ = _start(monkeypatch)
    assert "--server.address=127.0.0.1" in command
    assert "--browser.gatherUsageStats=false" in command
    assert "--client.showErrorDetails=none" in command
    assert "--server.enableXsrfProtection=true" in command


def test_reports_reach_the_server_and_must_be_a_folder(monkeypatch, tmp_path):
    _, environment = _start(monkeypatch, reports=tmp_path)
    assert environment["EPPLAN_APP_REPORTS"] == str(tmp_path)
    with pytest.raises(BadInput, match="no such folder"):
        _start(monkeypatch, reports=tmp_path / "nowhere")


def test_a_port_in_use_and_a_missing_extra_are_one_line(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BadInput, match="cannot listen there"):
        _start(monkeypatch, port=taken.getsockname()[1])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert app.callback is not None
    with pytest.raises(BadInput, match=r"needs streamlit and plotly: pip install 'epplan\[app\]'"):
        app.callback(port=1, host="127.0.0.1", no_browser=True, reports=None)
