"""What SGLang's expert distribution recorder dumps: torch files of its modes stat, stat_approx, per_pass, per_token.

Format (sgl-project/sglang, srt/eplb/expert_distribution.py @ 02295fe5):

- stat, stat_approx, one file: {"rank", "logical_count" [layers, experts] or [steps, layers, experts],
  "average_utilization_rate_over_window"}, summed over ranks.
- per_pass and per_token, a file a rank: {"records": [...], "last_physical_to_logical_map" [layers, slots]}. A record
  has "forward_pass_id", "rank", "gatherer_key", "global_physical_count" [layers, slots], and for per_token
  "topk_ids_of_layer" [layers, tokens, 8] of slots, -1 where unused. Layers are all transformer layers.

The counts of a detailed dump are of slots. They are translated by the *last* map: where EPLB moved experts while
recording, earlier counts are credited to the wrong experts. With the DeepEP gatherers a rank's counts are what arrived
at its own slots, so that the source ranks are not known; else a rank counts what it sends.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.readers.raw import RawRouting, check_ids, checked_counts, from_steps, names_held, refuse_repeats
from planner.readers.source import RoutingFile
from planner.readers.tally import Tally
from planner.readers.torch_zip import Tensor, open_torch
from planner.readers.zips import open_zip
from topologies.errors import BadInput

IntArray = NDArray[np.int64]


def read_sglang(archive: zipfile.ZipFile, source: str) -> RawRouting:
    """Return the counts of an opened torch file; `source` is the file to name in errors."""
    content = open_torch(archive, source)
    if not isinstance(content, dict):
        raise BadInput(f"{source}: holds a {type(content).__name__}, not a dict with logical_count")
    if "records" in content:
        tally = Tally(source)
        _Dump(content, source).add_to(tally)
        return _finished(tally, 1)
    if "logical_count" not in content:
        raise BadInput(f"{source}: no logical_count; keys: {names_held(content)}")
    counts = content["logical_count"]
    if not isinstance(counts, Tensor):
        raise BadInput(f"{source}: logical_count is a {type(counts).__name__}, not a tensor")
    what = f"{source}: logical_count"
    return from_steps(checked_counts(counts.read(), what), what)


def read_ranks(files: Sequence[RoutingFile], source: str) -> RawRouting:
    """Return the routing of the detailed dumps of several ranks of one recording; `source` names them all."""
    tally = Tally(source)
    for file in files:
        with file.open() as stream, open_zip(stream, file.source) as archive:
            content = open_torch(archive, file.source)
            if not isinstance(content, dict) or "records" not in content:
                raise BadInput(
                    f"{file.source}: not a dump of mode per_pass or per_token; a folder holds those of the ranks of "
                    "one recording (a dump of mode stat holds all ranks: name the file)"
                )
            _Dump(content, file.source).add_to(tally)
    return _finished(tally, len(files))


def _finished(tally: Tally, files: int) -> RawRouting:
    note = f"{tally.source}: slots are translated by the last map; wrong if experts moved while recording"
    alone = (f"{tally.source}: the dump of one rank; name the folder to read those of all",) if files == 1 else ()
    return tally.result(stated=False, remarks=(note, *alone))


class _Dump:
    """The content of one rank's file.

    Attributes:
        received: the rank counted what arrived at its own slots; told by a first pass that knows at most half of them.

    """

    def __init__(self, content: dict[Any, Any], source: str) -> None:
        self.source = source
        self.records = content["records"]
        mapped = content.get("last_physical_to_logical_map")
        if not isinstance(self.records, list) or not isinstance(mapped, Tensor):
            raise BadInput(f"{source}: records and last_physical_to_logical_map are not a list and a tensor")
        self.map_LP: IntArray = mapped.read().astype(np.int64)
        check_ids(self.map_LP, f"{source}: last_physical_to_logical_map")
        if self.map_LP.ndim != 2 or not self.map_LP.size or self.map_LP.min() < 0:
            raise BadInput(
                f"{source}: last_physical_to_logical_map of shape {list(self.map_LP.shape)}, not [layers, slots]"
            )
        self.experts = int(self.map_LP.max()) + 1
        self.received: bool | None = None

    def add_to(self, tally: Tally) -> None:
        """Count the records."""
        for index, record in enumerate(self.records):
            what = f"{self.source}: records[{index}]"
            if not isinstance(record, dict):
                raise BadInput(f"{what}: a {type(record).__name__}, not a dict")
            rank, step = (self._integer(record, key, what) for key in ("rank", "forward_pass_id"))
            if "topk_ids_of_layer" in record:
                self._add_tokens(record, rank, step, what, tally)
            else:
                self._add_counts(record, rank, step, what, tally)

    def _integer(self, record: dict[Any, Any], key: str, what: str) -> int:
        value = record.get(key)
        if type(value) is not int or not 0 <= value < 2**31:
            shown = str(value)[:40] if isinstance(value, int | float | str) else type(value).__name__
            raise BadInput(f"{what}: {key} = {shown!r} is not an integer of at least 0")
        return value

    def _tensor(self, record: dict[Any, Any], key: str, what: str) -> NDArray[Any]:
        value = record.get(key)
        if not isinstance(value, Tensor):
            raise BadInput(f"{what}: {key} is a {type(value).__name__}, not a tensor")
        return value.read()

    def _add_counts(self, record: dict[Any, Any], rank: int, step: int, what: str, tally: Tally) -> None:
        name = f"{what}.global_physical_count"
        count_LP = checked_counts(self._tensor(record, "global_physical_count", what), name)
        if count_LP.shape != self.map_LP.shape:
            raise BadInput(f"{name}: shape {list(count_LP.shape)}, the map's is {list(self.map_LP.shape)}")
        busy_P = np.asarray(count_LP.any(axis=0))
        if not busy_P.any():
            return
        if self.received is None:
            self.received = 2 * int(busy_P.sum()) <= len(busy_P)
        for layer in np.flatnonzero(count_LP.any(axis=1)).tolist():
            count_E = np.bincount(self.map_LP[layer], count_LP[layer], self.experts)
            tally.add(layer, 0 if self.received else rank, step, count_E)

    def _add_tokens(self, record: dict[Any, Any], rank: int, step: int, what: str, tally: Tally) -> None:
        name = f"{what}.topk_ids_of_layer"
        slot_LTK = self._tensor(record, "topk_ids_of_layer", what)
        check_ids(slot_LTK, name)
        if slot_LTK.ndim != 3 or len(slot_LTK) != len(self.map_LP):
            raise BadInput(f"{name}: shape {list(slot_LTK.shape)}, not [{len(self.map_LP)} layers, tokens, top_k]")
        if slot_LTK.size and int(slot_LTK.max()) >= self.map_LP.shape[1]:
            raise BadInput(f"{name}: slot {int(slot_LTK.max())}; the map has slots 0..{self.map_LP.shape[1] - 1}")
        used = np.flatnonzero((slot_LTK >= 0).any(axis=(0, 1)))
        if not used.size:
            return
        slot_LTK = slot_LTK[:, :, : int(used[-1]) + 1].astype(np.int64)
        layer_L = np.arange(len(self.map_LP))[:, None, None]
        ids_LTK = np.where(slot_LTK < 0, -1, self.map_LP[layer_L, np.maximum(slot_LTK, 0)])
        for layer, ids_TK in enumerate(ids_LTK):
            refuse_repeats(ids_TK, f"{name}[{layer}]")
            tally.add_ids(layer, rank, step, ids_TK)
        tally.tokens.add(rank, dict(enumerate(ids_LTK)))
