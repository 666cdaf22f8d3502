"""Slices of tensors: strided cuts and cuts of cuts, beside indexing by lists."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from executor.slices import Slice


def test_gate_and_up_that_follow_each_other() -> None:
    """Rows 0..3 are the gate, 4..7 up: rank 1 of 2 has 2, 3 and 6, 7; FSDP rank 0 of 3 the first two of those.

    whole  g0 g1 g2 g3 u0 u1 u2 u3
    rank 1       g2 g3       u2 u3
    """
    rank = Slice.all_of((8, 2)).cut(0, 1, 2, groups=2)
    assert rank.take(torch.arange(16).view(8, 2))[:, 0].tolist() == [4, 6, 12, 14]
    assert [(box.whole, box.here, box.sizes) for box in rank.boxes()] == [
        ((2, 0), (0, 0), (2, 2)),
        ((6, 0), (2, 0), (2, 2)),
    ]
    assert rank.cut(0, 0, 3).take(torch.arange(16).view(8, 2))[:, 0].tolist() == [4, 6]
    assert not rank.is_whole
    assert Slice.all_of((8, 2)).is_whole


@given(
    half=st.integers(1, 12),
    tp=st.integers(1, 4),
    fsdp=st.integers(1, 5),
    groups=st.sampled_from([1, 2]),
    dims=st.tuples(st.integers(0, 1), st.integers(0, 1)),
)
def test_all_ranks_together_have_every_entry_once(
    half: int, tp: int, fsdp: int, groups: int, dims: tuple[int, int]
) -> None:
    """Cut by tp ranks in groups, then by FSDP ranks in chunks as torch makes them; put together, the whole again."""
    whole = torch.arange(2 * half * tp * 6).view(2 * half * tp, 6) if dims[0] == 0 else None
    whole = torch.arange(2 * half * tp * 6).view(6, 2 * half * tp) if whole is None else whole
    again, count = torch.full_like(whole, -1), 0
    for t in range(tp):
        parts = [part.chunk(tp, dims[0])[t] for part in whole.chunk(groups, dims[0])]
        of_tp = torch.cat(parts, dims[0])
        for f, wanted in enumerate(of_tp.chunk(fsdp, dims[1])):
            here = Slice.all_of(whole.shape).cut(dims[0], t, tp, groups).cut(dims[1], f, fsdp)
            found = here.take(whole)
            assert torch.equal(found, wanted)
            here.put(again, found)
            count += found.numel()
    assert torch.equal(again, whole)
    assert count == whole.numel()
