"""Pieces: a tensor of which this rank has a slice, as torch.distributed.checkpoint takes and fills it.

It asks such tensors what to write and what to read by the three methods of `torch.distributed._checkpointable`, and
puts boxes of other ranks, plans, and numbers of ranks together by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from executor.slices import Box, Slice


class Pieces(Tensor):
    """Looks like the whole tensor; a checkpoint sees the boxes of the slice in it. Nothing can be computed with it.

    Attributes:
        boxes: of this rank.
        here: the entries of this rank, which loading overwrites.

    """

    boxes: list[Box]
    here: Tensor

    @staticmethod
    def __new__(cls, kept: Slice, here: Tensor) -> Pieces:
        """Return the tensor of which `here` is this slice."""
        pieces: Pieces = Tensor._make_wrapper_subclass(cls, kept.shape, dtype=here.dtype, device=here.device)
        pieces.boxes, pieces.here = list(kept.boxes()), here
        return pieces

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch names the types that it does not check
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Refuse to compute."""
        raise NotImplementedError(f"{func}{types, args, kwargs}: only a checkpoint can use pieces of a tensor")

    def __repr__(self) -> str:  # type: ignore[override]  # torch's takes the contents, which are not here
        """Return shape and boxes."""
        return f"Pieces({tuple(self.shape)}, {len(self.boxes)} boxes)"

    def __create_write_items__(self, fqn: str, _object: Any) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.here)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.shape),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(box.whole), torch.Size(box.sizes)) for box in self.boxes]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        box = next(box for box in self.boxes if index.offset == torch.Size(box.whole))
        return box.of(self.here, box.here)
