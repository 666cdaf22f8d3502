"""Numbers from the host to a device, without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(
    values: Sequence[int] | Sequence[Sequence[int]], device: torch.device | str, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Return integers as a tensor on a device.

    `torch.tensor(..., device="cuda")` waits until all that was queued before it is done; a copy from pinned memory
    stands in the queue like any kernel.
    """
    numbers = torch.tensor(values, dtype=dtype)
    if torch.device(device).type != "cuda":
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)
