"""RoutingRecorder: which experts the tokens of a running model visit, in files that the planner reads.

    recorder = RoutingRecorder(num_experts=64)
    recorder.attach({3: model.layers[3].mlp, 4: model.layers[4].mlp})    # any layers with an attribute `recorder`
    ...                                                                  # train or serve
    recorder.save("trace.npz", transport)                                # epplan plan --routing trace.npz ...

Every routing is counted. Of the tokens themselves every n-th is kept, the same ones in every layer; n begins at 1 and
doubles whenever `max_tokens` are kept, so that memory is bounded and the tokens are spread over the whole run. Nothing
is read from the device before the end.

A forward pass that runs inside a backward pass is one that activation checkpointing computes again: it routes tokens
that have been recorded, and is passed over.

Shapes: L layers, T tokens, K top_k, E experts, R ranks.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from executor.capacity import count_ids
from executor.recompute import in_backward
from executor.transport import Transport
from topologies.errors import BadInput
from topologies.files import write_bytes

MAX_TOKENS = 16384  # what the planner uses of a trace (planner.workload.MAX_TRACE_TOKENS)


@dataclass(eq=False)
class LayerRecord:
    """What one layer has routed.

    Attributes:
        num_experts: E.
        max_tokens: kept at most.
        seen: tokens.
        stride: every how manieth of them is kept.

    """

    num_experts: int
    max_tokens: int
    seen: int = 0
    stride: int = 1
    _count_E: Tensor | None = None
    _kept: list[Tensor] = field(default_factory=list)

    def record(self, ids_TK: Tensor) -> None:
        """Count and sample the experts of T tokens, -1 where masked; a recomputed forward is passed over."""
        if in_backward():
            return
        ids_TK = ids_TK.detach()
        count_E = count_ids(ids_TK, self.num_experts)
        self._count_E = count_E if self._count_E is None else self._count_E + count_E
        chosen = ids_TK[-self.seen % self.stride :: self.stride]
        if len(chosen) or not self._kept:
            self._kept.append(chosen.to(torch.int16, copy=True))
        self.seen += len(ids_TK)
        while -(-self.seen // self.stride) > self.max_tokens:
            self._kept = [torch.cat(self._kept)[::2].clone()]
            self.stride *= 2

    @property
    def has_run(self) -> bool:
        """Whether the layer has run, if only with no tokens."""
        return bool(self._kept)

    def total_E(self) -> Tensor:
        """Return int64 [E], the token-expert pairs of all tokens that were seen."""
        return torch.zeros(self.num_experts, dtype=torch.int64) if self._count_E is None else self._count_E

    def sample(self, stride: int) -> NDArray[np.int16]:
        """Return every `stride`-th token that was seen, [T, K]; a multiple of the layer's own stride."""
        ids_TK: NDArray[np.int16] = torch.cat(self._kept)[:: stride // self.stride].cpu().numpy()
        return ids_TK


class _Recorded(Protocol):
    recorder: Any


@dataclass(frozen=True)
class _Head:
    """What a rank says of its records: what is wrong, its layers, and how many tokens each has seen and skipped."""

    problem: str
    layers: tuple[int, ...]
    seen: int
    stride: int


class RoutingRecorder:
    """Records the routing of some layers on this rank.

    Attributes:
        num_experts: E, of every layer.
        max_tokens: kept at most, on each rank and in a file of all ranks.
        layers: what was recorded, by the layer's index in the model.

    """

    def __init__(self, num_experts: int, max_tokens: int = MAX_TOKENS) -> None:
        self.num_experts, self.max_tokens = num_experts, max_tokens
        self.layers: dict[int, LayerRecord] = {}
        self._attached: list[_Recorded] = []

    def attach(self, layers: Mapping[int, _Recorded]) -> None:
        """Listen to layers, given by their index in the model."""
        for number, layer in layers.items():
            layer.recorder = self.layers.setdefault(number, LayerRecord(self.num_experts, self.max_tokens))
            self._attached.append(layer)
        self.layers = dict(sorted(self.layers.items()))

    def detach(self) -> None:
        """Stop listening; what was recorded stays."""
        for layer in self._attached:
            layer.recorder = None
        self._attached.clear()

    def save(self, path: str | Path, transport: Transport | None = None) -> None:
        """Write the kept tokens of every layer as `.npz` with `topk_ids`, whole or not at all.

        Args:
            path: of the file.
            transport: of ranks that each route their own tokens: rank 0 writes the tokens of all ranks, each with its
                source rank, and every rank must call. Without it this rank's tokens are written.

        Raises:
            BadInput: on all ranks, nothing was recorded, or the layers have not seen the same tokens.

        """
        heads = self._agreed_heads(transport)
        stride = max(head.stride for head in heads)
        while sum(-(-head.seen // stride) for head in heads) > self.max_tokens:
            stride *= 2
        trace_LTK = np.stack([record.sample(stride) for record in self.layers.values()])
        traces = [trace_LTK] if transport is None else transport.gather("recorded tokens", trace_LTK)
        arrays: dict[str, Any] = {"topk_ids": np.concatenate(traces, axis=1)}
        if transport is not None:
            arrays["token_source"] = np.repeat(np.arange(len(traces)), [trace.shape[1] for trace in traces])
        self._write(path, arrays, transport)

    def save_counts(self, path: str | Path, transport: Transport | None = None) -> None:
        """Write the counts of all tokens as `.npz` with `counts` [L, R, E]; arguments and errors as of `save`."""
        self._agreed_heads(transport)
        count_LE = np.stack([record.total_E().cpu().numpy() for record in self.layers.values()])
        counts = [count_LE] if transport is None else transport.gather("recorded counts", count_LE)
        self._write(path, {"counts": np.stack(counts, axis=1)}, transport)

    def _agreed_heads(self, transport: Transport | None) -> list[_Head]:
        """Return what every rank has seen; raises on all ranks where one has nothing to save."""
        head = self._head()
        heads = [head] if transport is None else transport.gather("what was recorded", head)
        for rank, one in enumerate(heads):
            if one.problem or one.layers != heads[0].layers:
                problem = one.problem or f"recorded layers {one.layers}, rank 0 layers {heads[0].layers}"
                raise BadInput(problem if transport is None else f"rank {rank}: {problem}")
        if not any(one.seen for one in heads):
            raise BadInput("the recorded layers have seen no token")
        return heads

    def _head(self) -> _Head:
        seen = {number: record.seen for number, record in self.layers.items()}
        problem = ""
        if not seen or not all(record.has_run for record in self.layers.values()):
            problem = "a recorded layer has not run" if seen else "no layer is recorded"
        elif len(set(seen.values())) > 1:
            least, most = min(seen, key=seen.__getitem__), max(seen, key=seen.__getitem__)
            problem = f"layer {least} has seen {seen[least]} tokens, layer {most} {seen[most]}; record whole passes"
        first = next(iter(self.layers.values()), LayerRecord(self.num_experts, self.max_tokens))
        return _Head(problem, tuple(self.layers), first.seen, first.stride)

    def _write(self, path: str | Path, arrays: Mapping[str, Any], transport: Transport | None) -> None:
        if transport is not None and transport.rank:
            return
        stream = io.BytesIO()
        np.savez_compressed(stream, layers=np.array(list(self.layers)), experts=np.array([self.num_experts]), **arrays)
        write_bytes(path, stream.getvalue())
