"""Sessions whose tab is closed lose their files and searches; those that are open, or just blinked, keep them."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from app.whatif import janitor
from app.whatif.state import Session


def _clock(monkeypatch: pytest.MonkeyPatch, open_sessions: set[str]) -> None:
    monkeypatch.setattr(janitor, "EVERY_S", 0.02)
    monkeypatch.setattr(janitor, "PATIENCE_S", 0.2)
    monkeypatch.setattr(janitor.runtime, "exists", lambda: True)
    active = SimpleNamespace(is_active_session=open_sessions.__contains__)
    monkeypatch.setattr(janitor.runtime, "get_instance", lambda: active)


def test_closed_tabs_are_cleared_and_open_ones_are_not(monkeypatch):
    there = {"open", "closed"}
    _clock(monkeypatch, there)
    sessions = {name: Session() for name in ("open", "closed")}
    for name, mine in sessions.items():
        mine.uploads.add("routing", "loads.json", b"{}")
        monkeypatch.setattr(janitor, "get_script_run_ctx", lambda name=name: SimpleNamespace(session_id=name))
        janitor.watch_over(mine)
    time.sleep(0.1)
    assert all(mine.uploads.files for mine in sessions.values())
    there.remove("closed")
    end = time.monotonic() + 20
    while sessions["closed"].uploads.files:
        assert time.monotonic() < end, "the janitor did not come in 20 s"
        time.sleep(0.02)
    assert sessions["open"].uploads.files
    assert list(janitor._SESSIONS) == ["open"]
    there.clear()
    while sessions["open"].uploads.files:
        assert time.monotonic() < end, "the janitor did not come back in 20 s"
        time.sleep(0.02)


def test_without_a_server_there_is_nothing_to_watch():
    janitor.watch_over(Session())
    assert not janitor._SESSIONS
