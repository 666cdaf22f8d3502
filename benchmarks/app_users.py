"""Many users at once on one server of the what-if app: latencies, errors, and whether anybody sees another's state.

    python benchmarks/app_users.py --users 10 --seconds 60

Every user is a browser tab's worth of WebSocket traffic without the browser: a session of its own with settings of its
own (tokens per rank tell users apart), which opens pages and moves the knobs of What if. A latency is the time from a
click to the end of the script run that it causes, everything the page shows being sent; `A's plan in B` is the moment
within it when the plan that there is has its new time, before a new plan is made.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field

import numpy as np
import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

PAGES = ("", "cluster", "plan", "what_if", "timeline", "export")
NIC_SPEEDS = ("100", "200", "400", "800", "1600")
PATIENCE_S = 120.0


@dataclass
class Figures:
    """What one user met."""

    open_s: list[float] = field(default_factory=list)
    knob_s: list[float] = field(default_factory=list)
    moved_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class User:
    """One session: opens pages, moves knobs, and checks that what it sees is its own."""

    def __init__(self, number: int, address: str) -> None:
        self.number, self.address = number, address
        self.tokens = 512 + 64 * number
        self.query = f"model=deepseek-v3&routing=power-law&cluster=hgx-h100%3A4&tokens={self.tokens}&slots=9"
        self.figures = Figures()
        self.hashes: dict[str, str] = {}
        self.sliders: dict[str, str] = {}

    async def run(self, seconds: float) -> Figures:
        """Work for some seconds, with the pauses of a person."""
        chance = random.Random(self.number)
        url = f"{self.address}/_stcore/stream"
        async with websockets.connect(url, subprotocols=["streamlit"], max_size=None) as self.line:  # type: ignore[list-item]  # its type is a plain str
            end = time.monotonic() + seconds
            await self._ask("", self.figures.open_s)
            while time.monotonic() < end:
                await asyncio.sleep(chance.uniform(0.5, 2.0))
                if chance.random() < 0.5:
                    await self._ask(chance.choice(PAGES), self.figures.open_s)
                else:
                    await self._ask("what_if", self.figures.open_s)
                    for _ in range(3):
                        await asyncio.sleep(chance.uniform(0.2, 1.0))
                        await self._ask("what_if", self.figures.knob_s, chance.choice(NIC_SPEEDS))
        return self.figures

    async def _ask(self, page: str, into: list[float], nic: str | None = None) -> None:
        """Send a rerun, of a page or with a knob moved, and read until the script has ended."""
        message = BackMsg()
        message.rerun_script.query_string = self.query
        if page in self.hashes:
            message.rerun_script.page_script_hash = self.hashes[page]
        else:
            message.rerun_script.page_name = page
        if nic is not None and "NIC speed" in self.sliders:
            state = message.rerun_script.widget_states.widgets.add()
            state.id = self.sliders["NIC speed"]
            state.string_array_value.data.append(nic)
        self.started = started = time.monotonic()
        await self.line.send(message.SerializeToString())
        said = await asyncio.wait_for(self._read(), PATIENCE_S)
        into.append(time.monotonic() - started)
        if f"{self.tokens:,} tokens per rank" not in said:
            self.figures.errors.append(f"user {self.number} on {page or 'inputs'}: not its own state: {said[:200]!r}")

    async def _read(self) -> str:
        """Return the text of everything sent until the run's end."""
        said: list[str] = []
        while True:
            forward = ForwardMsg()
            forward.ParseFromString(await self.line.recv())
            kind = forward.WhichOneof("type")
            if kind == "navigation":
                self.hashes |= {page.url_pathname: page.page_script_hash for page in forward.navigation.app_pages}
            elif kind == "delta" and forward.delta.WhichOneof("type") == "new_element":
                self._note(forward.delta.new_element, said)
            elif kind == "script_finished":
                return "\n".join(said)

    def _note(self, element: object, said: list[str]) -> None:
        kind = element.WhichOneof("type")  # type: ignore[attr-defined]  # a protobuf message
        content = getattr(element, kind)
        if kind == "markdown":
            said.append(content.body)
        elif kind in ("exception", "alert"):
            text = content.message if kind == "exception" else content.body
            if kind == "exception" or content.format == content.ERROR:
                self.figures.errors.append(f"user {self.number}: {text[:300]}")
        elif kind == "metric" and content.label.startswith("A's plan in B, predicted"):
            self.figures.moved_s.append(time.monotonic() - self.started)
        elif kind == "slider" and content.label.startswith("NIC speed"):
            self.sliders["NIC speed"] = content.id


def serve() -> tuple[subprocess.Popen[bytes], int]:
    """Start a server on a free port, and wait until it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app.main", "app", "--port", str(port), "--no-browser"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(360):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2)
            return server, port
        except OSError:
            time.sleep(0.5)
    server.kill()
    server.wait()
    raise SystemExit("the server did not come up in 180 s")


def main() -> None:
    """Run all users at once and print what they met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    server, port = serve()

    async def everybody() -> list[Figures]:
        users = [User(number, f"ws://127.0.0.1:{port}") for number in range(options.users)]
        return list(await asyncio.gather(*(user.run(options.seconds) for user in users)))

    try:
        found = asyncio.run(everybody())
    finally:
        server.terminate()
        server.wait(timeout=30)
    load = os.getloadavg()[0]
    print(f"{options.users} users, {options.seconds:g} s, {os.cpu_count()} cores, load {load:.1f} at the end")
    for name, attribute in (("page opened", "open_s"), ("knob moved", "knob_s"), ("  A's plan in B", "moved_s")):
        times = np.concatenate([np.asarray(getattr(one, attribute)) for one in found])
        if times.size:
            median, p95 = np.quantile(times, (0.5, 0.95))
            spread = f"median {median:.2f} s, 95th percentile {p95:.2f} s, worst {times.max():.2f} s"
            print(f"{name}: {times.size} times; {spread}")
    errors = [error for one in found for error in one.errors]
    print(f"errors or foreign state: {len(errors)}")
    for error in errors[:10]:
        print(f"  {error}")
    sys.exit(bool(errors))


if __name__ == "__main__":
    main()
