"""Namespaces by name: making, entering and removing them, and working inside one without leaving one's own.

The kernel keeps a network namespace for each thread: a thread that enters one leaves the others where they are, and
sockets stay in the namespace that they were made in.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute, netns

from topologies.errors import BadInput

T = TypeVar("T")
FOLDER = Path(netns.NETNS_RUN_DIR)
SYSCTL = Path("/proc/sys/net")


def require_namespaces() -> None:
    """Raise BadInput unless this process may make network namespaces."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise BadInput("the lab needs root, for its network namespaces; run it as root")
    if not Path("/proc/self/ns/net").exists():
        raise BadInput("the lab needs network namespaces, which this kernel does not have")


def exists(name: str) -> bool:
    """Return whether there is a namespace of this name."""
    return (FOLDER / name).exists()


def create(name: str) -> None:
    """Make a namespace; raise BadInput where the system does not let us, or the name is taken."""
    try:
        with warnings.catch_warnings():  # of forking beside threads: the child makes three system calls and ends
            warnings.simplefilter("ignore", DeprecationWarning)
            netns.create(name)
    except OSError as error:
        raise BadInput(f"the lab cannot make the network namespace {name}: {error.strerror or error}") from error


def remove(name: str) -> None:
    """Remove a name; the namespace goes when the last process in it does."""
    netns.remove(name)


def enter(name: str) -> None:
    """Move the calling thread, and those that it starts from now on, into a namespace."""
    netns.setns(name, flags=0, fork=False)


def inside(name: str, work: Callable[[], T]) -> T:
    """Run a function in a namespace and return its result; the caller stays where it is."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            enter(name)
            results.append(work())
        except BaseException as error:  # passed on to the caller below
            errors.append(error)

    thread = threading.Thread(target=run, name=f"inside {name}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def with_netlink(name: str, work: Callable[[IPRoute], T]) -> T:
    """Run a function in a namespace, with a netlink socket of it."""

    def run() -> T:
        with IPRoute() as netlink:
            return work(netlink)

    return inside(name, run)


def set_sysctl(key: str, value: str) -> None:
    """Set `ipv4/ip_forward` and such, of the namespace that the calling thread is in, where this kernel has it."""
    path = SYSCTL / key
    if path.exists():
        path.write_text(value, encoding="ascii")
