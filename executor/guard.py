"""The collective guard: before each collective, all ranks compare what they are about to do.

Ranks that disagree about a collective hang, or exchange garbage. In debug mode each rank first writes its call down in
the job's key-value store, which does not share the fate of the data plane, and reads what the others wrote:

    rank 0: dispatch, sends 4 2, receives 4 1     rank 1 sends 1 entry to rank 0, which takes 1: well
    rank 1: dispatch, sends 1 0, receives 3 0     rank 0 sends 2 entries to rank 1, which takes 3: raised on both ranks

Shapes: R ranks.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from executor.failures import name_ranks
from topologies.errors import EpplanError

Splits = Sequence[int]


class GuardError(EpplanError):
    """Ranks are about to make different collectives, or one did not come; raised on every rank that is left."""

    exit_code = 1


@dataclass(frozen=True)
class _Call:
    """What a rank writes down: a call, a hash of it and all before it, or the verdict with which it gave up."""

    name: str
    history: str
    sends: Splits
    receives: Splits
    verdict: str = ""


class Guard:
    """Compares the collectives of the ranks of one group, one by one.

    Attributes:
        store: a `torch.distributed.Store` of these ranks alone (a `PrefixStore` for each group).
        rank, size: of this rank in the group, and of the group.
        timeout_s: how late a rank may be.

    """

    def __init__(self, store: Any, rank: int, size: int, timeout_s: float = 60.0) -> None:
        self.store, self.rank, self.size, self.timeout_s = store, rank, size, timeout_s
        self._calls = 0
        self._last = _Call("none", "", (), ())

    def check(self, call: str, sends: Splits = (), receives: Splits = ()) -> None:
        """Wait until all ranks are about to make this call.

        Args:
            call: its name, the same on all ranks.
            sends: [R] entries to every rank; what i sends to j must be what j takes from i.
            receives: [R] entries from every rank.

        Raises:
            GuardError: the calls differ, or a rank did not come within `timeout_s`; names the rank and the calls.

        """
        history = hashlib.sha256(f"{self._last.history} {call}".encode()).hexdigest()
        mine = _Call(call, history, tuple(sends), tuple(receives))
        try:
            calls = self._exchange(mine)
        except dist.DistNetworkError as error:
            raise GuardError(
                f"{self._where(call)}: the store is gone, so the process that held it has ended"
            ) from error
        for one in calls:
            if one.verdict:
                raise GuardError(one.verdict)
        problem = _name_problem(calls) or _size_problem(calls)
        if problem:
            raise GuardError(f"{self._where(call)}: {problem}")
        self._calls, self._last = self._calls + 1, mine

    def _exchange(self, mine: _Call) -> list[_Call]:
        """Return what every rank wrote down for this call."""
        keys = [f"{self._calls}/{rank}" for rank in range(self.size)]
        self.store.set(keys[self.rank], json.dumps(asdict(mine)))
        try:
            self.store.wait(keys, timedelta(seconds=self.timeout_s))
        except dist.DistStoreError:
            missing = [rank for rank, key in enumerate(keys) if not self.store.check([key])]
            if missing:
                verdict = (
                    f"{self._where(mine.name)}: {name_ranks(missing)} of {self.size} did not come within "
                    f"{self.timeout_s:g} s (hung or dead); the last call of all ranks was: {self._last.name}"
                )
                self.store.set(keys[self.rank], json.dumps(asdict(replace(mine, verdict=verdict))))  # should they come
                raise GuardError(verdict) from None
        calls = [_Call(**json.loads(text)) for text in self.store.multi_get(keys)]
        if self._calls:  # all ranks are here: nobody reads the call before any more
            self.store.delete_key(f"{self._calls - 1}/{self.rank}")
        return calls

    def _where(self, call: str) -> str:
        return f"collective {self._calls + 1}, {call}, on rank {self.rank}"


def guard_of_group(group: dist.ProcessGroup | None = None, timeout_s: float = 60.0) -> Guard:
    """Return a guard for this rank of a process group (None: of all ranks), over a connection of its own to the store.

    Every rank of the group must call it, once for each group.
    """
    untyped: Any = dist  # hides its stores from type checkers
    one = untyped.group.WORLD if group is None else group
    store = untyped.distributed_c10d._get_default_store().clone()  # torch has no public way to it
    prefixed = untyped.PrefixStore(f"epplan-guard/{one.group_name}", store)
    return Guard(prefixed, dist.get_rank(one), dist.get_world_size(one), timeout_s)


def _name_problem(calls: Sequence[_Call]) -> str:
    """Say which ranks make which call, the odd one out first; empty where all make the same after the same."""
    sides: dict[tuple[str, str], list[int]] = {}
    for rank, one in enumerate(calls):
        sides.setdefault((one.name, one.history), []).append(rank)
    if len(sides) == 1:
        return ""
    ordered = sorted(sides.items(), key=lambda side: len(side[1]))
    after = ", after different calls" if len({name for name, _ in sides}) == 1 else ""
    return "; ".join(f"{name_ranks(ranks)} at {name}" for (name, _), ranks in ordered) + after


def _size_problem(calls: Sequence[_Call]) -> str:
    """Name the rank that is in most of the pairs whose sizes differ, and one such pair; empty where all agree."""
    zeros = (0,) * len(calls)
    pairs = [
        (i, j, sent, taken)
        for i, sender in enumerate(calls)
        for j, receiver in enumerate(calls)
        if (sent := (sender.sends or zeros)[j]) != (taken := (receiver.receives or zeros)[i])
    ]
    if not pairs:
        return ""
    (odd, most), *others = Counter(rank for i, j, *_ in pairs for rank in {i, j}).most_common()
    i, j, sent, taken = pairs[0]
    pair = f"rank {i} sends {sent} entries to rank {j}, which takes {taken}"
    if len(pairs) == 1 or (others and others[0][1] == most):
        return pair
    return f"the sizes of rank {odd} differ from the others' in {most} of {len(pairs)} pairs that disagree; {pair}"
