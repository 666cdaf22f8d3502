"""Slice: which entries of a whole tensor are on this rank, and where.

A tensor-parallel rank has, of a gate_up matrix (2I, H) that holds gate and up one after the other, two spans of rows:

    whole   | gate: rank 0 | gate: rank 1 | up: rank 0 | up: rank 1 |        cut(0, rank, 2, groups=2)
    rank 1                 | gate         |            | up         |

and FSDP2 may cut what is left once more, anywhere. A box is a block of entries that lie together in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, product

from torch import Tensor


@dataclass(frozen=True)
class Box:
    """A block of entries.

    Attributes:
        whole: where it begins in the whole tensor, along every dimension.
        here: where it begins in this rank's.
        sizes: of the block.

    """

    whole: tuple[int, ...]
    here: tuple[int, ...]
    sizes: tuple[int, ...]

    def of(self, tensor: Tensor, begin: Sequence[int]) -> Tensor:
        """Return the view of a tensor that begins at `begin`: `whole` or `here`."""
        return tensor[tuple(slice(first, first + size) for first, size in zip(begin, self.sizes, strict=True))]


@dataclass(frozen=True)
class Slice:
    """A part of a tensor.

    Attributes:
        shape: of the whole tensor.
        spans: along each dimension, the indices that are here, in this order.

    """

    shape: tuple[int, ...]
    spans: tuple[tuple[range, ...], ...]

    @classmethod
    def all_of(cls, shape: Sequence[int]) -> Slice:
        """Return the slice that is the whole tensor."""
        return cls(tuple(shape), tuple((range(length),) for length in shape))

    @property
    def is_whole(self) -> bool:
        """Whether everything is here."""
        return self == Slice.all_of(self.shape)

    def cut(self, dim: int, rank: int, size: int, groups: int = 1) -> Slice:
        """Return what a rank has of this slice if `size` ranks share each of `groups` equal groups along a dimension.

        Where they do not divide evenly, the last ranks have less, as `torch.chunk` does it.
        """
        length = sum(map(len, self.spans[dim])) // groups
        chunk = -(-length // size)
        first, last = min(rank * chunk, length), min((rank + 1) * chunk, length)
        kept = [
            part for group in range(groups) for part in _within(self.spans[dim], group * length + first, last - first)
        ]
        return Slice(self.shape, (*self.spans[:dim], tuple(kept), *self.spans[dim + 1 :]))

    def boxes(self) -> Iterator[Box]:
        """Yield the blocks, in the order of this rank's entries."""
        for corner in product(*map(_placed, self.spans)):
            yield Box(
                whole=tuple(span.start for span, _ in corner),
                here=tuple(begin for _, begin in corner),
                sizes=tuple(len(span) for span, _ in corner),
            )

    def take(self, whole: Tensor) -> Tensor:
        """Return a new tensor: this slice of a whole one."""
        here = whole.new_empty([sum(map(len, spans)) for spans in self.spans])
        for box in self.boxes():
            box.of(here, box.here).copy_(box.of(whole, box.whole))
        return here

    def put(self, whole: Tensor, here: Tensor) -> None:
        """Write this rank's entries into a whole tensor."""
        for box in self.boxes():
            box.of(whole, box.whole).copy_(box.of(here, box.here))


def _within(spans: Sequence[range], first: int, length: int) -> list[range]:
    """Return the indices from the `first`-th on, so many."""
    kept = []
    for span in spans:
        part = span[max(first, 0) : max(first + length, 0)]
        if len(part):
            kept.append(part)
        first -= len(span)
    return kept


def _placed(spans: Sequence[range]) -> list[tuple[range, int]]:
    """Return each span with the place where it begins here."""
    return list(zip(spans, accumulate(map(len, spans), initial=0), strict=False))
