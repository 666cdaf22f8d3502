"""What SGLang's expert distribution recorder dumps in `stat` mode: a torch file of a dict with `logical_count`.

Format (sglang/srt/eplb/expert_distribution.py): {"rank", "logical_count" [layers, experts] or [steps, layers,
experts], "average_utilization_rate_over_window"}. The modes per_pass and per_token write one file a rank, each with its
rank's share of the counts, in *physical* slots and with the last of the maps in force: on their own no statistics of
the model, so they are refused.
"""

from __future__ import annotations

import zipfile

import numpy as np

from planner.readers.raw import RawRouting, checked_counts, names_held, summed_steps
from planner.readers.torch_zip import read_torch
from topologies.errors import BadInput


def read_sglang(archive: zipfile.ZipFile, source: str) -> RawRouting:
    """Return the counts of an opened torch file; `source` is the file to name in errors."""
    content = read_torch(archive, source)
    if not isinstance(content, dict):
        raise BadInput(f"{source}: holds a {type(content).__name__}, not a dict with logical_count")
    if "logical_count" not in content:
        hint = ""
        if "records" in content:
            hint = "; a dump of mode per_pass or per_token, record with --expert-distribution-recorder-mode stat"
        raise BadInput(f"{source}: no logical_count; keys: {names_held(content)}{hint}")
    counts = content["logical_count"]
    if not isinstance(counts, np.ndarray):
        raise BadInput(f"{source}: logical_count is a {type(counts).__name__}, not a tensor")
    what = f"{source}: logical_count"
    return RawRouting(counts=summed_steps(checked_counts(counts, what), what)[:, None, :])
