"""Rails in a two-level exchange: through which rank of a domain each rank reaches it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


def rail_peers(domain_R: IntArray, rail_R: IntArray) -> IntArray:
    """Return, for a two-level exchange, the rank [R, D] to which each rank sends what is meant for each domain.

    It is the rank of that domain on the same rail; where several are, the one of the same position among them; and
    where none is, the one of the same position in the domain. In its own domain a rank is its own peer.
    """
    members = [np.flatnonzero(domain_R == d) for d in range(int(domain_R.max()) + 1)]
    by_rail = [{r: group[rail_R[group] == r] for r in np.unique(rail_R[group]).tolist()} for group in members]
    peers = np.empty((len(domain_R), len(members)), dtype=np.int64)
    for own, group in enumerate(members):
        for src in group.tolist():
            on_rail = by_rail[own][int(rail_R[src])]
            place = int(np.searchsorted(on_rail, src))
            for d, others in enumerate(members):
                candidates = by_rail[d].get(int(rail_R[src]))
                if candidates is None:
                    candidates, place_there = others, int(np.searchsorted(group, src))
                else:
                    place_there = place
                peers[src, d] = candidates[place_there % len(candidates)]
            peers[src, own] = src
    return peers
