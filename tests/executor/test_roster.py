"""Who is to blame, from the lines in a store: ranks that are gone, that do not come, that have said why they ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]  # it is public

from executor import roster as roster_module
from executor.failures import RankLost
from executor.roster import Roster


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Roster], None]]:
    """Return a function that keeps a rank's line moving."""
    monkeypatch.setattr(roster_module, "WITHOUT_SIGN_S", 0.4)
    monkeypatch.setattr(roster_module, "BEAT_S", 0.1)
    done, threads = threading.Event(), []

    def keep(one: Roster) -> None:
        def beat() -> None:
            while not done.wait(0.02):
                one._write()

        one._write()
        threads.append(threading.Thread(target=beat))
        threads[-1].start()

    yield keep
    done.set()
    for thread in threads:
        thread.join()


def ranks(size: int) -> list[Roster]:
    store = HashStore()
    return [Roster(store, rank, size) for rank in range(size)]


def verdict(one: Roster, call: str = "dispatch") -> str:
    with pytest.raises(RankLost) as error, one.inside(call):
        raise RuntimeError("Connection closed by peer")
    return str(error.value)


def test_a_rank_whose_line_stands_still_is_gone(alive: Callable[[Roster], None]) -> None:
    zero, one, two = ranks(3)
    with two.inside("combine"):
        two._write()
    alive(zero)
    alive(one)
    with one.inside("dispatch"):
        assert verdict(zero) == (
            "dispatch on rank 0: rank 2 of 3 gives no sign of life (ended, killed, stopped, or cut off);"
            " last seen in combine"
        )
    assert verdict(one, "gather").startswith("gather on rank 1: rank 2 of 3 gives no sign"), "it adopts the verdict"


def test_a_rank_that_does_not_come_is_named_with_its_place(alive: Callable[[Roster], None]) -> None:
    zero, one = ranks(2)
    alive(zero)
    alive(one)
    one._since -= 61
    said = verdict(zero)
    assert said.startswith("dispatch on rank 0: rank 1 of 2 has been outside any exchange for 6")
    assert ".py:" in said, "where its main thread stands: here it is that of both ranks"


def test_a_rank_in_another_collective_is_named(alive: Callable[[Roster], None]) -> None:
    zero, one = ranks(2)
    alive(zero)
    alive(one)
    with one.inside("combine"):
        assert verdict(zero) == "dispatch on rank 0: rank 1 of 2 stands in combine"


def test_an_error_of_its_own_stays_what_it_is_and_the_others_hear_of_it(alive: Callable[[Roster], None]) -> None:
    zero, one = ranks(2)
    alive(zero)
    alive(one)
    with one.inside("dispatch"), pytest.raises(RuntimeError, match=r"^shapes differ$"), zero.inside("dispatch"):
        raise RuntimeError("shapes differ")
    assert verdict(one) == "dispatch on rank 1: rank 0 of 2 raised RuntimeError in dispatch: shapes differ"


def test_the_reason_that_a_rank_left_is_what_the_others_say(alive: Callable[[Roster], None]) -> None:
    zero, one = ranks(2)
    alive(zero)
    one.give_up("rank 1, layer 3: its router gives no number")
    assert verdict(zero) == "dispatch on rank 0: rank 1, layer 3: its router gives no number"


class Silent:
    """A store behind a link that was cut."""

    def check(self, _: list[str]) -> bool:
        time.sleep(60)
        return False

    def multi_get(self, _: list[str]) -> list[str]:
        return []

    def set(self, *_: str) -> None:
        time.sleep(60)


def test_a_store_that_is_silent_does_not_hold_anyone_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster_module, "STORE_TIMEOUT_S", 0.2)
    started = time.monotonic()
    assert "the job's store gives no answer: this rank is cut off" in verdict(Roster(Silent(), 0, 2))
    assert time.monotonic() - started < 20
