"""Labs for tests: skipped where there can be none, and always taken down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from executor.lab import Lab, inside, open_lab
from topologies import BadInput
from topologies.graph import Cluster

Open = Callable[..., Lab]


@pytest.fixture
def namespaces() -> None:
    """Skip where no namespaces can be made, with the reason."""
    try:
        inside.require_namespaces()
        inside.create("epplan-probe")
    except BadInput as error:
        pytest.skip(str(error))
    inside.remove("epplan-probe")


@pytest.fixture
def lab_of(namespaces: None) -> Iterator[Open]:  # noqa: ARG001 - skips
    """Return a function that makes a lab of a cluster, for the length of the test."""
    with ExitStack() as stack:

        def make(cluster: Cluster, **settings: object) -> Lab:
            return stack.enter_context(open_lab(cluster, **settings))  # type: ignore[arg-type]  # the test knows them

        yield make
