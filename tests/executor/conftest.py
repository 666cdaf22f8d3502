from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.executor.ranks import close_pools


@pytest.fixture(autouse=True, scope="session")
def _no_rank_outlives_the_session() -> Iterator[None]:
    yield
    close_pools()
