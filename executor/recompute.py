"""Whether a forward pass runs for the first time, or again in backward under activation checkpointing."""

from __future__ import annotations

import torch


def in_backward() -> bool:
    """Return whether autograd is running on this thread: a forward then is one that checkpointing computes again."""
    return torch._C._current_graph_task_id() != -1  # what torch.utils.checkpoint itself asks
