"""LinkModel: the time of an exchange on the links of a graph, fitted to probes.

    phase = start + handling * bytes of all ranks + sum over hops of max over links of (bytes / (efficiency * rate))

`efficiency` belongs to a kind of link, `start` and `handling` (packing and summing rows, on cores that ranks may share)
to an exchange and phase. The hops of a two-level exchange follow one another in the executor, so their times add up
(the planner's profiles for GPUs let the tiers overlap).

The fit has two steps, because in a uniform exchange the bytes of a link and those of all ranks grow alike. One-to-one
flows give the efficiency of each kind of link: the slope of time over nominal time, whatever a transfer costs besides.
Uniform exchanges then give start and handling.

Shapes: R ranks, L directed links, X probes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from executor.validation.link_loads import Links
from planner.placement import FloatArray
from topologies import BadInput

Family = tuple[str, str]  # exchange and phase; ("one-to-one", "dispatch") for probes of single transfers


@dataclass(frozen=True, eq=False)
class PhaseLoad:
    """A phase that was measured or is to be predicted: the bytes [R, R] of each of its all-to-alls."""

    family: Family
    hops: tuple[FloatArray, ...]

    @property
    def moved_bytes(self) -> float:
        """Bytes of all ranks, own ranks included: these are packed too."""
        return float(sum(bytes_RR.sum() for bytes_RR in self.hops))


@dataclass(frozen=True)
class PhasePrediction:
    """Time of a phase, of each rank's part in it, and the link that sets the pace."""

    us: float
    us_R: tuple[float, ...]
    bottleneck: str


@dataclass(frozen=True)
class LinkModel:
    """What the probes taught.

    Attributes:
        scale: lab bandwidth over the graph's; 1 on a real cluster.
        efficiency: of each kind of link that set the pace of a probe; other kinds count as 1.
        start_us, handling_us_per_byte: of each family.
        error: median and largest relative error of the fit on its own probes.

    """

    scale: float
    efficiency: Mapping[str, float]
    start_us: Mapping[Family, float]
    handling_us_per_byte: Mapping[Family, float]
    error: tuple[float, float]

    def predict(self, load: PhaseLoad, links: Links) -> PhasePrediction:
        """Return what a phase should take; raises BadInput for an exchange that was not probed."""
        if load.family not in self.start_us:
            raise BadInput(f"no probe of {' '.join(load.family)}; probed: {sorted(map(' '.join, self.start_us))}")
        fixed = self.start_us[load.family] + self.handling_us_per_byte[load.family] * load.moved_bytes
        speed_L = np.array([self.efficiency.get(kind, 1.0) for kind in links.cluster.link_kinds])
        us_HL = [nominal_us_L(links, bytes_RR, self.scale) / speed_L for bytes_RR in load.hops]
        total = fixed + sum(float(us_L.max(initial=0.0)) for us_L in us_HL)
        us_R = sum((np.where(links.touches_RL, us_L, 0.0).max(axis=1) for us_L in us_HL), np.full(1, fixed))
        slowest = max(us_HL, key=lambda us_L: float(us_L.max(initial=0.0)))
        name = links.names[int(slowest.argmax())] if slowest.size and slowest.max() > 0 else "nothing crosses a link"
        return PhasePrediction(total, tuple(map(float, us_R)), name)


def nominal_us_L(links: Links, bytes_RR: FloatArray, scale: float) -> FloatArray:
    """Return microseconds [L] on every link at the full rate of the graph."""
    us_L: FloatArray = links.bytes_L(bytes_RR) / (np.asarray(links.cluster.link_gbps) * scale * 1e3)
    return us_L


def fit_links(
    flows: Sequence[tuple[PhaseLoad, float]], exchanges: Sequence[tuple[PhaseLoad, float]], links: Links, scale: float
) -> LinkModel:
    """Fit a model to probes: loads, and the microseconds that they took.

    Args:
        flows: one-to-one, several sizes of every pattern.
        exchanges: uniform, several sizes of every family.
        links: of the graph.
        scale: lab bandwidth over the graph's.

    """
    efficiency = _efficiencies(flows, links, scale)
    start_us, handling, errors = {}, {}, []
    for family in sorted({load.family for load, _ in exchanges}):
        mine = [(load, us) for load, us in exchanges if load.family == family]
        us_X, moved_X = np.array([us for _, us in mine]), np.array([load.moved_bytes for load, _ in mine])
        paces = [_pace(load, links, scale) for load, _ in mine]
        wire_X = np.array([sum(us / efficiency.get(kind, 1.0) for kind, us in pace.items()) for pace in paces])
        terms_X2 = np.stack([np.ones(len(mine)), moved_X], axis=1) / us_X[:, None]
        (start, per_byte), _ = nnls(terms_X2, np.maximum(us_X - wire_X, 0.0) / us_X)
        start_us[family], handling[family] = float(start), float(per_byte)
        errors += np.abs((wire_X + start + per_byte * moved_X) / us_X - 1.0).tolist()
    return LinkModel(scale, efficiency, start_us, handling, (float(np.median(errors)), max(errors)))


def _efficiencies(flows: Sequence[tuple[PhaseLoad, float]], links: Links, scale: float) -> dict[str, float]:
    """Return the part of its rate that each kind of link reaches where it sets the pace of a flow."""
    points: dict[str, list[tuple[float, float]]] = {}
    for load, us in flows:
        for kind, nominal_us in _pace(load, links, scale).items():
            points.setdefault(kind, []).append((nominal_us, us))
    found = {}
    for kind, pairs in points.items():
        nominal_X, us_X = np.array(pairs).T
        if len(set(nominal_X)) > 1:
            slope = float(np.polyfit(nominal_X, us_X, 1, w=1.0 / us_X)[0])
            found[kind] = 1.0 / slope if slope > 0 else 1.0
    return found


def _pace(load: PhaseLoad, links: Links, scale: float) -> dict[str, float]:
    """Return the nominal time of the slowest link of each hop, added up by its kind."""
    pace: dict[str, float] = {}
    for bytes_RR in load.hops:
        us_L = nominal_us_L(links, bytes_RR, scale)
        if us_L.max(initial=0.0) > 0:
            kind = links.cluster.link_kinds[int(us_L.argmax())]
            pace[kind] = pace.get(kind, 0.0) + float(us_L.max())
    return pace
