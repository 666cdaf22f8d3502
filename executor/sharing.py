"""Ranks that share cores: when each is done, if more of them want to work than there are cores.

Shapes: R ranks.
"""

from __future__ import annotations

import numpy as np

from planner.placement import FloatArray


def finish_R(work_R: FloatArray, cores: float) -> FloatArray:
    """Return when each rank is done with its work, all beginning at 0 (processor sharing).

    A rank runs at full speed while at most `cores` ranks are at work; else all of them share the cores evenly. The
    rank with the least work is done first, and the others have then done as much as it.

    >>> finish_R(np.array([1.0, 3.0, 3.0, 3.0]), cores=2).tolist()
    [2.0, 5.0, 5.0, 5.0]
    """
    finish = np.zeros(len(work_R))
    now = done = 0.0
    for place, rank in enumerate(np.argsort(work_R, kind="stable")):
        at_work = len(work_R) - place
        now += (float(work_R[rank]) - done) * max(at_work / cores, 1.0)
        done = float(work_R[rank])
        finish[rank] = now
    return finish
