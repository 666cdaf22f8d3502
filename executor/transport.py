"""Transport: the collectives of an EP group, on NCCL and on gloo, and their gradients.

Shapes: R ranks; a block is what one rank sends to another: consecutive entries of dimension 0, in order of ranks.

On NCCL an all-to-all is the library's own. gloo's own is uncoordinated and reaches 0.6 of a busy link; rounds of
sends reach 0.93 (facts, executor.md 6.2): every rank posts all its receives, then sends to rank + 1, rank + 2, ..., one
after the other, so that no receiver has two senders as long as the blocks are alike. Empty blocks are skipped. Blocks
inside the rank's domain take other links than those to other domains: where there are both, they go alongside. What is
small altogether goes at once: there the way of a message counts, not its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from executor.roster import Roster

Splits = Sequence[int]
SMALL_BYTES = 64 * 1024  # of all that a rank sends in an exchange


class CallGuard(Protocol):
    """What checks, before each collective, that all ranks are about to make the same call."""

    def check(self, call: str, sends: Splits = (), receives: Splits = ()) -> None:
        """Compare this rank's call with the others'; raises where they differ."""


class Transport:
    """The ranks of an EP group and what they exchange.

    Attributes:
        group: process group of the EP ranks; None stands for a group of one rank, which needs no torch.distributed.
        rank, size: of this rank in the group, and of the group.
        guard: checks every call in debug mode; None otherwise.
        domain_of_rank: which ranks share fast links; None where all do.
        roster: knows who is to blame for a collective that fails; None where nobody asks.

    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        guard: CallGuard | None = None,
        domain_of_rank: Sequence[int] | None = None,
        roster: Roster | None = None,
    ) -> None:
        """Store the group."""
        self.group, self.guard, self.domain_of_rank, self.roster = group, guard, domain_of_rank, roster
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)

    def __deepcopy__(self, memo: dict[int, Any]) -> Transport:
        """Return itself: a copy of a model, as for a running mean of its weights, stays with the same ranks."""
        return self

    @property
    def runs_rounds(self) -> bool:
        """Whether all-to-alls run as rounds of ours."""
        return self.group is not None and dist.get_backend(self.group) == "gloo"

    def inside(self, call: str) -> AbstractContextManager[None]:
        """Tell the roster that this rank stands in a collective; where it fails, RankLost names who is to blame."""
        return nullcontext() if self.roster is None else self.roster.inside(call)

    def outside(self) -> AbstractContextManager[None]:
        """Tell the roster that this rank, inside a collective, is at work that no other rank waits in."""
        return nullcontext() if self.roster is None else self.roster.outside()

    def give_up(self, why: str) -> None:
        """Leave word for the other ranks why this one is about to end."""
        if self.roster is not None:
            self.roster.give_up(why)

    @property
    def device(self) -> torch.device:
        """Where what travels stands, for a rank that has nothing to send."""
        return torch.device("cpu" if self.group is None or self.runs_rounds else "cuda")

    def all_to_all(self, call: str, send: Tensor, sends: Splits, receives: Splits) -> Tensor:
        """Return what all ranks send to this one, in order of ranks; without gradients.

        Args:
            call: name for messages.
            send: [sum(sends), ...], blocks in order of destination.
            sends: entries to every rank.
            receives: entries from every rank.

        """
        return self.all_to_alls(call, (send,), (sends,), (receives,))[0]

    def all_to_alls(
        self, call: str, send: Sequence[Tensor], sends: Sequence[Splits], receives: Sequence[Splits]
    ) -> tuple[Tensor, ...]:
        """Run several all-to-alls at once, each with its own splits."""
        if self.guard is not None:
            for i, (mine, theirs) in enumerate(zip(sends, receives, strict=True)):
                self.guard.check(f"{call}[{i}]" if len(send) > 1 else call, mine, theirs)
        with self.inside(call):
            return self._all_to_alls(send, sends, receives)

    def _all_to_alls(
        self, send: Sequence[Tensor], sends: Sequence[Splits], receives: Sequence[Splits]
    ) -> tuple[Tensor, ...]:
        if self.group is None:
            return tuple(send)
        contiguous = [one.contiguous() for one in send]
        out = tuple(
            one.new_empty((sum(count), *one.shape[1:])) for one, count in zip(contiguous, receives, strict=True)
        )
        if self.runs_rounds:
            self._rounds(contiguous, out, sends, receives)
        else:
            for one, into, mine, theirs in zip(contiguous, out, sends, receives, strict=True):
                dist.all_to_all_single(into, one, list(theirs), list(mine), group=self.group)
        return out

    def _rounds(
        self, send: Sequence[Tensor], out: Sequence[Tensor], sends: Sequence[Splits], receives: Sequence[Splits]
    ) -> None:
        """Exchange the blocks in rounds; `out` is written in place."""
        outgoing = [one.split_with_sizes(list(count)) for one, count in zip(send, sends, strict=True)]
        incoming = [one.split_with_sizes(list(count)) for one, count in zip(out, receives, strict=True)]
        for blocks, into in zip(outgoing, incoming, strict=True):
            into[self.rank].copy_(blocks[self.rank])
        others = [(self.rank + step) % self.size for step in range(1, self.size)]
        pending: list[dist.Work | None] = [
            dist.irecv(into[origin], group=self.group, group_src=origin, tag=tag)
            for origin in others
            for tag, into in enumerate(incoming)
            if into[origin].numel()
        ]
        targets = [to for to in others if any(blocks[to].numel() for blocks in outgoing)]
        near, far = self._lanes(targets, sum(one.numel() * one.itemsize for one in send))
        pending += [work for to in near for work in self._send(outgoing, to)]
        for to in far:
            for work in self._send(outgoing, to):
                work.wait()
        for waiting in pending:
            if waiting is not None:
                waiting.wait()

    def _lanes(self, to: list[int], total_bytes: int) -> tuple[list[int], list[int]]:
        """Split destinations into those sent to at once, over links of their own, and those sent to in turn."""
        if total_bytes < SMALL_BYTES:
            return to, []
        if self.domain_of_rank is None:
            return [], to
        here = self.domain_of_rank[self.rank]
        far = [rank for rank in to if self.domain_of_rank[rank] != here]
        return ([rank for rank in to if rank not in far], far) if far else ([], to)

    def _send(self, outgoing: Sequence[Sequence[Tensor]], to: int) -> list[dist.Work]:
        works = [
            dist.isend(blocks[to], group=self.group, group_dst=to, tag=tag)
            for tag, blocks in enumerate(outgoing)
            if blocks[to].numel()
        ]
        return [work for work in works if work is not None]

    def sum_over_ranks(self, call: str, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks; without gradients."""
        if self.guard is not None:
            self.guard.check(call, [value.numel()] * self.size, [value.numel()] * self.size)
        if self.group is None:
            return value
        total = value.clone()
        with self.inside(call):
            dist.all_reduce(total, group=self.group)
        return total

    def gather(self, call: str, value: Any) -> list[Any]:
        """Return the (picklable, small) values of all ranks, in order of ranks."""
        if self.guard is not None:
            self.guard.check(call)
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        with self.inside(call):
            dist.all_gather_object(values, value, group=self.group)
        return values


class _Exchanged(torch.autograd.Function):
    """All-to-alls forward; backward the same, the other way, for every floating tensor.

    One node carries all tensors of an exchange, so that their backward collectives keep one order on all ranks, and
    whether a rank needs a gradient does not change which collectives it joins.

    Activation checkpointing computes a forward again when backward first asks for a saved tensor, and stops once it
    has the last one: both moments depend on which tensors a rank saves, and a rank without tokens saves fewer. Each
    node saves a token and asks for it before its backward collective. So on every rank all forward collectives run
    again, and do so before the first backward collective.
    """

    @staticmethod
    def forward(
        ctx: Any, transport: Transport, call: str, sends: Sequence[Splits], receives: Sequence[Splits], *send: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.transport, ctx.call, ctx.sends, ctx.receives = transport, call, sends, receives
        out = transport.all_to_alls(call, send, sends, receives)
        out = tuple(one.view_as(one) if one is mine else one for one, mine in zip(out, send, strict=True))
        ctx.floating = [i for i, one in enumerate(out) if one.is_floating_point()]
        ctx.save_for_backward(torch.empty(0))
        ctx.mark_non_differentiable(*(one for one in out if not one.is_floating_point()))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # computes the forward again first, where checkpointing has dropped it
        chosen = ctx.floating
        back = ctx.transport.all_to_alls(
            f"{ctx.call} (backward)",
            [grads[i] for i in chosen],
            [ctx.receives[i] for i in chosen],
            [ctx.sends[i] for i in chosen],
        )
        returned: list[Tensor | None] = [None] * len(grads)
        for i, grad in zip(chosen, back, strict=True):
            returned[i] = grad
        return (None, None, None, None, *returned)


def exchanged(
    transport: Transport, call: str, send: Sequence[Tensor], sends: Sequence[Splits], receives: Sequence[Splits]
) -> tuple[Tensor, ...]:
    """Run several all-to-alls at once, with gradients for the floating tensors."""
    out: tuple[Tensor, ...] = _Exchanged.apply(transport, call, sends, receives, *send)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return out
