"""Takes away what sessions leave behind: files and searches of users who have closed their tab.

Streamlit keeps a session that lost its connection for two minutes, in case it comes back, and lets go of it only when
the next user comes; uploads should not wait for that.
"""

from __future__ import annotations

import threading
import time
from weakref import WeakValueDictionary

from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from app.whatif.state import Session

EVERY_S = 15.0
PATIENCE_S = 150.0  # after which Streamlit lets nobody come back to a session

_SESSIONS: WeakValueDictionary[str, Session] = WeakValueDictionary()
_LOCK = threading.Lock()


def watch_over(mine: Session) -> None:
    """Take a session into care; call it in every run of a script."""
    context = get_script_run_ctx()
    if context is None or not runtime.exists():  # a test without a server
        return
    with _LOCK:
        first = not _SESSIONS
        _SESSIONS[context.session_id] = mine
    if first:
        server = (runtime.get_instance(),)
        threading.Thread(target=_rounds, args=server, name="epplan janitor", daemon=True).start()


def _rounds(server: runtime.Runtime) -> None:
    """Look after the sessions until there are none."""
    seen: dict[str, float] = {}
    while _SESSIONS:
        time.sleep(EVERY_S)
        with _LOCK:
            sessions = dict(_SESSIONS)
        for name, mine in sessions.items():
            if server.is_active_session(name):
                seen[name] = time.monotonic()
            elif time.monotonic() - seen.setdefault(name, time.monotonic()) > PATIENCE_S:
                mine.close()
                with _LOCK:
                    _SESSIONS.pop(name, None)
