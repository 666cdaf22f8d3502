"""What labs there are: a file for each, written before anything is made and removed after all is gone.

So whatever a crash leaves behind is known by name, and nothing else is ever touched: a namespace is removed only if a
file here names it and its loopback carries the mark of that lab, or it is as empty as the kernel makes it.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pyroute2 import IPRoute

from executor.lab import inside
from executor.lab.network import Network
from topologies.errors import BadInput
from topologies.files import read_text, write_text
from topologies.spec import Frozen

FOLDER = Path("/run/epplan")
PREFIX = "epplan"
Standing = Literal["standing", "held", "stale"]


class Owner(Frozen):
    """A process, told from a later one of the same number by when it started."""

    pid: int
    started: str


class Record(Frozen):
    """One lab.

    Attributes:
        name: unique on this machine, such as `epplan-3f9a1c`.
        network: what it consists of.
        owner: the process whose end is the lab's end; None where it stands until `epplan lab down`.
        throttled: links slowed by hand, with the factor.
    """

    name: str
    network: Network
    owner: Owner | None
    throttled: dict[int, float] = Field(default_factory=dict)

    @property
    def mark(self) -> str:
        """What the loopback of every namespace of this lab is labelled with."""
        return f"epplan lab {self.name}"

    def namespace(self, place: str) -> str:
        """Return the full name of a namespace."""
        return f"{self.name}-{place}"

    def standing(self) -> Standing:
        """Say whether the lab stands by itself, is held by a running process, or is left over from one that died."""
        if self.owner is None:
            return "standing"
        return "held" if _started(self.owner.pid) == self.owner.started else "stale"


def new_record(network: Network, *, until_down: bool) -> Record:
    """Return the record of a lab to be made, under a fresh name."""
    owner = None if until_down else Owner(pid=os.getpid(), started=_started(os.getpid()))
    return Record(name=f"{PREFIX}-{secrets.token_hex(3)}", network=network, owner=owner)


def _started(pid: int) -> str:
    """Return when a process started, in the kernel's clock; nothing where it is gone."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
    except OSError:
        return ""
    return after_name.split()[19]


def save(record: Record) -> None:
    """Write a lab's file."""
    try:
        FOLDER.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{FOLDER}: cannot be made, and labs are recorded there: {error.strerror}") from error
    write_text(_file(record.name), record.model_dump_json(indent=1))


def load(name: str) -> Record:
    """Return a lab by name; raise BadInput with those that there are."""
    known = names()
    if name not in known:
        raise BadInput(f"no lab {name!r}; there is {', '.join(known) or 'none'} (epplan lab status)")
    try:
        return Record.model_validate_json(read_text(_file(name)))
    except ValidationError as error:
        raise BadInput(f"{_file(name)}: not the record of a lab: {error.errors()[0]['msg']}") from error


def names() -> list[str]:
    """Return the names of all recorded labs."""
    return sorted(file.stem for file in FOLDER.glob(f"{PREFIX}-*.json"))


def _file(name: str) -> Path:
    return FOLDER / f"{name}.json"


def erase(record: Record) -> list[str]:
    """Remove a lab; return the namespaces of its names that are not its own, and are left alone."""
    foreign = []
    for place in record.network.places:
        name = record.namespace(place)
        if inside.exists(name):
            if _is_ours(record, name):
                inside.remove(name)
            else:
                foreign.append(name)
    with suppress(FileNotFoundError):
        _file(record.name).unlink()
    return foreign


def _is_ours(record: Record, namespace: str) -> bool:
    """Tell by the mark; a namespace without one is ours if nothing was ever put into it: we died before marking it."""
    try:
        links = inside.with_netlink(namespace, lambda netlink: list(netlink.get_links()))
    except OSError:  # the name was made, the namespace not yet
        return (inside.FOLDER / namespace).stat().st_size == 0
    marks = [link.get("ifalias") for link in links if link.get("ifname") == "lo"]
    return marks == [record.mark] or (marks == [None] and len(links) == 1)


def mark(record: Record, place: str) -> None:
    """Label a namespace as this lab's, by its loopback, which is also set up."""

    def work(netlink: IPRoute) -> None:
        loopback = netlink.link_lookup(ifname="lo")[0]
        netlink.link("set", index=loopback, ifalias=record.mark, state="up")

    inside.with_netlink(record.namespace(place), work)
