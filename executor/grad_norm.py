"""The 2-norm of tensors that are spread over ranks, each entry counted once; in fp64 whatever their type.

What is spread over the same groups of ranks is added up first, so that the groups are asked once each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from executor.transport import Transport


class SquareSum:
    """The sum of squares of all that is added, over all ranks.

    Every rank must add to the same groups in the same order, nothing where it has nothing.

    Attributes:
        device: where the sums are.

    """

    def __init__(self, device: torch.device) -> None:
        """Store the device."""
        self.device = device
        self._parts: dict[tuple[str, ...], tuple[Sequence[Transport], list[Tensor]]] = {}

    def add(self, tensors: Iterable[Tensor], spread: Sequence[Transport]) -> None:
        """Add tensors of this rank, of which the other ranks of each of these groups have other entries."""
        among = [transport for transport in spread if transport.size > 1]
        key = tuple(transport.group.group_name for transport in among if transport.group is not None)
        norms = [torch.linalg.vector_norm(one, dtype=_wide(one)).double() for one in tensors if one.numel()]
        self._parts.setdefault(key, (among, []))[1].extend(norms)

    def total(self) -> Tensor:
        """Return the sum, on all ranks."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for among, norms in self._parts.values():
            part = torch.stack(norms).to(self.device).square().sum() if norms else torch.zeros_like(total)
            for transport in among:
                part = transport.sum_over_ranks("norm of gradients", part)
            total = total + part
        return total


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def shards_of(tensor: Tensor) -> list[Transport]:
    """Return the groups of ranks over which a tensor is sharded; none for a plain one."""
    if not isinstance(tensor, DTensor):
        return []
    placements = enumerate(tensor.placements)
    return [Transport(tensor.device_mesh.get_group(dim)) for dim, one in placements if not isinstance(one, Replicate)]
