"""Routing: how many tokens visit each expert of each layer and, where known, which experts each token visits.

Legend of shapes: L layers, S sources, E experts, T tokens, K top_k.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.model import MoEModel
from planner.readers.detect import read_raw
from planner.readers.folder import read_folder
from planner.readers.layers import place_rows
from planner.readers.raw import RawRouting, refuse_huge
from planner.readers.source import Progress, RoutingFile, check_file, is_folder
from topologies.errors import BadInput

MIN_TOTAL = 1e-200
"""The least sum of a layer's counts: what it has to be multiplied by for a step stays far below the largest float64."""


@dataclass(frozen=True, eq=False)
class Routing:
    """Routing statistics of the MoE layers of a model.

    Attributes:
        layers: the index in the model of each row, ascending.
        counts: float64 [L, S, E], token-expert pairs; S == 1 where the source rank is not known.
        trace: integers [L, T, K] of expert ids, -1 where an entry is masked: all tokens, or an even sample where the
            recording is long; None where only counts are known.
        token_source: integers [T], the source rank of each token; None where it is not known.
        name: of the file, for reports.
        sha256: of the file's bytes, in hexadecimal.
        remarks: what the reader left out or had to assume, one sentence each, for the user.
        windows: float64 [W, L, E], counts of all sources in consecutive spans of the recording; None where it does not
            tell times apart.

    """

    layers: tuple[int, ...]
    counts: NDArray[np.float64]
    trace: NDArray[np.integer[Any]] | None = None
    token_source: NDArray[np.integer[Any]] | None = None
    name: str = ""
    sha256: str = ""
    remarks: tuple[str, ...] = ()
    windows: NDArray[np.float64] | None = None

    @property
    def num_layers(self) -> int:
        """MoE layers with statistics."""
        return len(self.layers)

    @property
    def num_experts(self) -> int:
        """Logical experts of a layer."""
        return int(self.counts.shape[2])

    @property
    def num_sources(self) -> int:
        """Source ranks told apart; 1 where they are not known."""
        return int(self.counts.shape[1])

    @property
    def num_tokens(self) -> int | None:
        """Tokens of the trace; None without one."""
        return None if self.trace is None else int(self.trace.shape[1])

    @property
    def expert_counts(self) -> NDArray[np.float64]:
        """float64 [L, E]: counts summed over sources."""
        return np.asarray(self.counts.sum(axis=1))

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """float64 [L, E]: the part of a layer's token-expert pairs that each expert gets; a row sums to 1."""
        counts = self.expert_counts
        return np.asarray(counts / counts.sum(axis=1, keepdims=True))

    def select(self, layers: Iterable[int]) -> Routing:
        """Return the routing of some layers, given by their index in the model, in ascending order.

        Raises:
            BadInput: a layer that is not in `self.layers`, or none at all.

        """
        wanted = sorted(set(layers))
        unknown = [layer for layer in wanted if layer not in self.layers]
        if unknown or not wanted:
            have = f"{self.layers[0]}..{self.layers[-1]} ({len(self.layers)} layers)"
            raise BadInput(f"{self.name}: layer {unknown[0] if unknown else 'list is empty'}; the routing has {have}")
        rows = [self.layers.index(layer) for layer in wanted]
        trace = None if self.trace is None else self.trace[rows]
        windows = None if self.windows is None else self.windows[:, rows]
        return replace(self, layers=tuple(wanted), counts=self.counts[rows], trace=trace, windows=windows)

    def tokens(self, start: int, stop: int | None = None) -> Routing:
        """Return the routing of the tokens `start:stop` of the trace, counted anew.

        Raises:
            BadInput: without a trace, or where a layer would keep no unmasked token.

        """
        if self.trace is None:
            raise BadInput(f"{self.name}: has counts only; tokens need a per-token trace")
        trace = self.trace[:, start:stop]
        source = None if self.token_source is None else self.token_source[start:stop]
        counts = count_trace(trace, self.num_experts, source, self.num_sources)
        if not counts.any(axis=(1, 2)).all():
            raise BadInput(f"{self.name}: tokens {start}:{stop} of {self.num_tokens} leave a layer without any")
        return replace(self, counts=counts, trace=trace, token_source=source, windows=None)

    def split(self, head: float) -> tuple[Routing, Routing]:
        """Return the first `head` part (0 < head < 1) of the trace's tokens, and the rest."""
        if not 0 < head < 1:
            raise BadInput(f"{self.name}: the head of a split is {head}, not between 0 and 1")
        cut = min(max(1, round((self.num_tokens or 2) * head)), (self.num_tokens or 2) - 1)
        return self.tokens(0, cut), self.tokens(cut)


def load_routing(path: str | Path, model: MoEModel | None = None, *, progress: Progress | None = None) -> Routing:
    """Read routing statistics in any known format (see `planner.readers`), told by content.

    Args:
        path: a file, or a folder with the files of all ranks of one recording.
        model: checks the width and the layers, and says which row is which layer. Without it rows without counts are
            taken for dense layers, row numbers for layer numbers, and the largest id of a trace for its last expert.
        progress: called with the bytes read so far and their total.

    Raises:
        BadInput: anything wrong with the file or between it and the model, in one line that names the file, the
            culprit and both values.

    """
    source, path = str(path), Path(path)
    if is_folder(path):
        raw, digest = read_folder(path, progress)
    else:
        check_file(path)
        file = RoutingFile(source, path, progress)
        digest = file.sha256()
        raw = read_raw(file, top_k=None if model is None else model.top_k)
    return assemble(raw, model, source=source, name=path.name, sha256=digest)


def assemble(raw: RawRouting, model: MoEModel | None, *, source: str, name: str = "", sha256: str = "") -> Routing:
    """Match the content of a routing file with a model and leave dense layers out; errors name `source`."""
    experts = None if raw.trace is None else _matched_trace(raw.trace, raw.experts, model, source)
    if raw.counts is not None:
        counts = _matched_counts(raw, model, source)
    elif raw.trace is not None and experts is not None:
        sources = 1 if raw.token_source is None else int(raw.token_source.max()) + 1
        refuse_huge((len(raw.trace), sources, experts), source)
        counts = count_trace(raw.trace, experts, raw.token_source, sources)
    else:
        raise TypeError("a RawRouting holds counts or a trace")
    rows, layers, remarks = place_rows(
        np.asarray(counts.any(axis=(1, 2))), raw.layers, model, source, from_one=raw.from_one
    )
    _refuse_vanishing(counts[rows], layers, source)
    if raw.trace is None and model is not None:
        remarks += _more_than_a_router_sends(counts[rows], layers, model, source)
    windows = raw.windows
    if windows is not None:
        windows = np.pad(windows[:, rows], ((0, 0), (0, 0), (0, counts.shape[2] - windows.shape[2])))
    return Routing(
        layers=layers,
        counts=counts[rows],
        trace=None if raw.trace is None else raw.trace[rows],
        token_source=raw.token_source,
        name=name,
        sha256=sha256,
        remarks=raw.remarks + remarks,
        windows=windows,
    )


def count_trace(
    trace_LTK: NDArray[np.integer[Any]],
    experts: int,
    token_source: NDArray[np.integer[Any]] | None = None,
    sources: int = 1,
) -> NDArray[np.float64]:
    """Return the token-expert pairs float64 [L, S, E] of a trace whose ids are below `experts`; -1 is not counted.

    `token_source` holds numbers below `sources`.
    """
    counts = np.zeros((len(trace_LTK), sources, experts))
    base = None if token_source is None else (token_source.astype(np.int64) * (experts + 1))[:, None]
    for row, ids_TK in enumerate(trace_LTK):
        bins = ids_TK.astype(np.int64) + 1  # bin 0 of every source takes the masked entries
        if base is not None:
            bins += base
        found = np.bincount(bins.ravel(), minlength=sources * (experts + 1))
        counts[row] = found.reshape(sources, experts + 1)[:, 1:]
    return counts


def _matched_counts(raw: RawRouting, model: MoEModel | None, source: str) -> NDArray[np.float64]:
    """Return the counts, as wide as the model; raise BadInput where they are of another number of experts."""
    assert raw.counts is not None
    width = int(raw.counts.shape[2])
    experts = raw.experts if model is None else model.experts
    if raw.experts not in (None, width):
        raise BadInput(f"{source}: experts = {raw.experts}, but counts is {width} wide")
    if experts is None or width == experts:
        return raw.counts
    if raw.listed and width < experts:
        refuse_huge((*raw.counts.shape[:2], experts), source)
        return np.pad(raw.counts, ((0, 0), (0, 0), (0, experts - width)))
    name = model.name if model is not None else "?"
    if raw.listed:
        raise BadInput(f"{source}: lists expert {width - 1}; the model {name} has experts 0..{experts - 1}")
    raise BadInput(f"{source}: counts of {width} experts; the model {name} has {experts}")


def _refuse_vanishing(counts_LSE: NDArray[np.float64], layers: tuple[int, ...], source: str) -> None:
    """Raise BadInput for a layer whose counts (fractions may be counts) cannot be scaled to those of a step."""
    total_L = counts_LSE.sum(axis=(1, 2))
    row = int(total_L.argmin())
    if total_L[row] < MIN_TOTAL:
        raise BadInput(f"{source}: counts of layer {layers[row]} sum to {total_L[row]:g}, less than {MIN_TOTAL:g}")


def _more_than_a_router_sends(
    counts_LSE: NDArray[np.float64], layers: tuple[int, ...], model: MoEModel, source: str
) -> tuple[str, ...]:
    """Return the remark that is due where an expert has more pairs than there are tokens, if all visit top_k experts.

    Tokens that are drawn from such counts cannot reproduce them.
    """
    load_LE = counts_LSE.sum(axis=1)
    part_L = load_LE.max(axis=1) / load_LE.sum(axis=1)
    row = int(part_L.argmax())
    if part_L[row] * model.top_k <= 1 + 1e-9:
        return ()
    return (
        f"{source}: layer {layers[row]}: expert {int(load_LE[row].argmax())} has {part_L[row]:.1%} of the pairs; "
        f"a top-{model.top_k} router gives an expert {1 / model.top_k:.1%} at most",
    )


def _matched_trace(trace: NDArray[np.int16], stated: int | None, model: MoEModel | None, source: str) -> int:
    """Return the number of experts; raise BadInput where the trace, its file and the model differ in it or in top_k."""
    highest, top_k = int(trace.max()), int(trace.shape[2])
    if model is None:
        experts, whose = (highest + 1, "") if stated is None else (stated, "by the file's own count ")
    else:
        experts, whose = model.experts, f"in the model {model.name} "
        if stated not in (None, experts):
            raise BadInput(f"{source}: experts = {stated}; the model {model.name} has {experts}")
        if top_k != model.top_k:
            raise BadInput(f"{source}: topk_ids of {top_k} a token; the model {model.name} has top_k = {model.top_k}")
    if highest >= experts:
        at = [int(i) for i in np.argwhere(trace == highest)[0]]
        raise BadInput(f"{source}: topk_ids{at} = {highest}; {whose}the experts are 0..{experts - 1}")
    return experts
