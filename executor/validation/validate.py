"""Validation in order: probes, fit, prediction, measurement, comparison.

Shapes: R ranks, L directed links, S repeats.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from executor.loads import loads_of
from executor.validation.flows import flow_bytes, flow_patterns, slow_links
from executor.validation.link_loads import MESSAGE_BYTES, PHASES, Links, phase_bytes, phase_messages
from executor.validation.link_model import LinkModel, PhaseLoad, fit_links
from executor.validation.report import Calibration, Case, Disagreement, LinkBytes, Phase, ValidationReport
from executor.validation.timing import Setting, Trial, TrialTimes, time_flows, time_trials, wait_together
from planner import Placement, Workload
from planner.cost import step_cost
from planner.exact_rows import HOPS, exact_traffic
from planner.placement import FloatArray, IntArray
from planner.timing import Exchange, TimingProfile

PROBE_PARTS = (0.25, 0.5, 1.0, 1.5)  # tokens of a uniform probe, as parts of the step's
FLOW_PARTS = (0.5, 1.0, 2.0)  # bytes of a one-to-one probe, as parts of a rank's tokens
LEAST_FLOW_BYTES = 256 * 1024  # a shaped wire lets its burst through at once, which small flows would be made of
SEED = 20_27


class Ranks(Protocol):
    """Who runs functions on all ranks: a `RankPool`, in a lab or not."""

    def run(self, target: Callable[..., Any], *args: Any, timeout_s: float) -> list[Any]:
        """Call `target(rank, size, *args)` on every rank; return the results by rank."""


class LinkCounters(Protocol):
    """Who counts the bytes that links carried: a `Lab`."""

    def link_bytes(self, num_links: int) -> FloatArray:
        """Return the bytes [L] so far, NaN for links that are not counted."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A plan to be measured: its name, exchange, and the placement of each layer that is run."""

    name: str
    exchange: Exchange
    placements: dict[int, Placement]


@dataclass(frozen=True, eq=False)
class Validation:
    """What is validated, where.

    Attributes:
        ranks, counters: what runs functions on all ranks, and what counts bytes (None outside a lab).
        links: of the graph.
        scale: lab bandwidth over the graph's.
        workload, profile: the step; its experts' times (`emulated`) come from the profile.
        ids: for each layer, the experts of every rank's tokens.
        setting: of all trials.
        timeout_s: for one run on all ranks.
        compute: whether a wait stands for the experts.
        real_links: whether the ranks are joined by the links of the graph; else none of these can disagree with it.

    """

    ranks: Ranks
    counters: LinkCounters | None
    links: Links
    scale: float
    workload: Workload
    profile: TimingProfile
    ids: dict[int, list[IntArray]]
    setting: Setting
    timeout_s: float
    compute: bool
    real_links: bool = True

    def load(self, placement: Placement, ids_RTK: Sequence[IntArray], exchange: Exchange, phase: str) -> PhaseLoad:
        """Return what a phase moves."""
        traffic = list(self._traffic(placement, ids_RTK, exchange).values())
        return PhaseLoad((exchange, phase), tuple(phase_bytes(traffic, self.setting.row_bytes, phase)))

    def _traffic(self, placement: Placement, ids_RTK: Sequence[IntArray], exchange: Exchange) -> dict[str, Any]:
        return exact_traffic(
            placement, ids_RTK, exchange, np.array(self.setting.domain_R), np.array(self.setting.rail_R)
        )

    def run(
        self, candidates: Sequence[Candidate], say: Callable[[str], None]
    ) -> tuple[Calibration, list[Case], list[Disagreement]]:
        """Probe, fit, predict and measure; `say` is told what is going on."""
        exchanges = sorted({candidate.exchange for candidate in candidates})
        say(f"probing: one-to-one flows, uniform {', '.join(exchanges)}")
        flows, slow = self._flows()
        uniform = self._uniform(exchanges)
        model = fit_links(flows, uniform, self.links, self.scale)
        calibration = Calibration(
            probes=len(flows) + len(uniform),
            median_error=model.error[0],
            largest_error=model.error[1],
            efficiency=dict(model.efficiency),
            start_us={" ".join(family): us for family, us in model.start_us.items()},
            handling_us_per_byte={" ".join(family): us for family, us in model.handling_us_per_byte.items()},
        )
        cases = []
        for layer in self.ids:
            say(f"measuring layer {layer}: {', '.join(f'{c.name} ({c.exchange})' for c in candidates)}")
            cases += self._measure(layer, candidates, model)
        return calibration, cases, slow

    def _flows(self) -> tuple[list[tuple[PhaseLoad, float]], list[Disagreement]]:
        """Time one-to-one flows; return them as probes, and the links that they find slow."""
        domain_R, rail_R = np.array(self.setting.domain_R), np.array(self.setting.rail_R)
        patterns = flow_patterns(domain_R, rail_R)
        step_bytes = max(len(ids) for ids in next(iter(self.ids.values()))) * self.setting.row_bytes
        sizes = [int(part * max(step_bytes, 2 * LEAST_FLOW_BYTES)) for part in FLOW_PARTS]
        measured, us_of = [], {}
        for entries in sizes:
            of_rank = self.ranks.run(
                time_flows, patterns, entries, self.setting.repeats, self.setting.device, timeout_s=self.timeout_s
            )
            us_PR = np.array(
                [
                    [np.median(of_rank[r][p]) if of_rank[r][p] else np.nan for r in range(len(of_rank))]
                    for p in range(len(patterns))
                ]
            )
            us_of[entries] = us_PR
            # the flows of a pattern are alike, and the median one is not that of a slow link
            measured += [
                (PhaseLoad(("one-to-one", "dispatch"), (flow_bytes(pattern, entries),)), float(np.nanmedian(us_R)))
                for pattern, us_R in zip(patterns, us_PR, strict=True)
            ]
        slow = slow_links(patterns, us_of[sizes[-1]], sizes[-1], self.links, self.scale) if self.real_links else []
        return measured, [Disagreement(link=one.link, reached=one.reached, usual=one.usual) for one in slow]

    def _uniform(self, exchanges: Sequence[Exchange]) -> list[tuple[PhaseLoad, float]]:
        """Time exchanges of evenly random routing on contiguous experts, at several sizes."""
        model, R = self.workload.model, self.workload.num_ranks
        edges = [rank * model.experts // R for rank in range(R + 1)]
        slots = [list(range(a, b)) for a, b in pairwise(edges)]
        placement = Placement.equal_shares(slots, model.experts, self.workload.num_domains)
        tokens = max(len(ids) for ids in next(iter(self.ids.values())))
        measured = []
        for number, part in enumerate(PROBE_PARTS):
            count = max(int(part * tokens), 1)
            ids = np.random.default_rng(SEED + number).random((R, count, model.experts)).argsort(-1)[..., : model.top_k]
            trials = [Trial(placement, list(ids), exchange, [0.0] * R) for exchange in exchanges]
            times = self.ranks.run(time_trials, trials, self.setting, timeout_s=self.timeout_s)
            for i, exchange in enumerate(exchanges):
                measured += [
                    (self.load(placement, list(ids), exchange, phase), _slowest([one[i].us[phase] for one in times])[1])
                    for phase in PHASES
                ]
        return measured

    def _measure(self, layer: int, candidates: Sequence[Candidate], model: LinkModel) -> list[Case]:
        """Measure all candidates on a layer, in turn; then each alone for the bytes that it puts on links."""
        ids, trials = self.ids[layer], []
        for candidate in candidates:
            wait_us = self._compute_us(candidate, layer)
            trials.append(Trial(candidate.placements[layer], ids, candidate.exchange, wait_us.tolist()))
        times = self.ranks.run(time_trials, trials, self.setting, timeout_s=self.timeout_s)
        return [
            self._case(candidate, layer, trial, [of_rank[i] for of_rank in times], model, self._counted(trial))
            for i, (candidate, trial) in enumerate(zip(candidates, trials, strict=True))
        ]

    def _compute_us(self, candidate: Candidate, layer: int) -> FloatArray:
        """Return the time [R] that each rank's experts would take on the cluster, slowed down as the links are."""
        R = self.workload.num_ranks
        if not self.compute:
            return np.zeros(R)
        cost = step_cost(self.workload, self.profile, candidate.exchange, policy=self.links.policy)
        where = np.array(self.setting.domain_R), np.array(self.setting.rail_R)
        loads = loads_of(candidate.placements[layer], self.ids[layer], candidate.exchange, *where)
        us_R: FloatArray = cost.launch_us + cost.slot_us_R * loads.active_R + cost.row_us_R * loads.rows_R
        return us_R / self.scale

    def _counted(self, trial: Trial) -> FloatArray | None:
        """Run a trial alone and return the bytes [L] of one step that the kernel counted; None without counters.

        What it takes to set the ranks up, and to wait for one another between phases, is counted apart and taken off.
        """
        if self.counters is None:
            return None
        steps = 3
        quiet = replace(self.setting, repeats=steps, warmup=0)
        no_wait = replace(trial, compute_us_R=[0.0] * self.workload.num_ranks)
        counts = [self._bytes_of(time_trials, [no_wait], quiet), self._bytes_of(wait_together, 3 * steps)]
        return (counts[0] - counts[1]) / steps

    def _bytes_of(self, target: Callable[..., Any], *args: Any) -> FloatArray:
        """Return the bytes [L] that links carry while a function runs on all ranks."""
        assert self.counters is not None
        num_links = self.links.cluster.num_links
        before = self.counters.link_bytes(num_links)
        self.ranks.run(target, *args, timeout_s=self.timeout_s)
        return self.counters.link_bytes(num_links) - before

    def _case(
        self,
        candidate: Candidate,
        layer: int,
        trial: Trial,
        times: list[TrialTimes],
        model: LinkModel,
        counted_L: FloatArray | None,
    ) -> Case:
        phases = []
        for phase in ("dispatch", "compute", "combine"):
            by_rank, measured_us, quartiles = _slowest([one.us[phase] for one in times])
            if phase == "compute":
                us_R, us, held_up = tuple(trial.compute_us_R), max(trial.compute_us_R), "compute"
            else:
                made = model.predict(self.load(trial.placement, trial.ids_RTK, trial.exchange, phase), self.links)
                us_R, us, held_up = made.us_R, made.us, made.bottleneck
            phases.append(
                Phase(
                    phase=phase,
                    predicted_us=us,
                    measured_us=measured_us,
                    quartiles_us=quartiles,
                    predicted_us_by_rank=us_R,
                    measured_us_by_rank=by_rank,
                    bottleneck=held_up,
                )
            )
        traffic = self._traffic(trial.placement, trial.ids_RTK, trial.exchange)
        crossing = sum(int(hop.rows_RR.sum() - np.trace(hop.rows_RR)) for hop in traffic.values())
        return Case(
            plan=candidate.name,
            layer=layer,
            exchange=candidate.exchange,
            phases=tuple(phases),
            rows=crossing,
            links=() if counted_L is None else tuple(self._link_bytes(trial, counted_L)),
            problems=tuple(_row_problems(trial, traffic, times)),
        )

    def _link_bytes(self, trial: Trial, counted_L: FloatArray) -> list[LinkBytes]:
        """Lay predicted bytes, with their headers, beside counted ones."""
        from executor.lab import wire_bytes  # noqa: PLC0415 - only a lab counts, and it needs pyroute2

        sent_RR = np.zeros((self.workload.num_ranks,) * 2)
        messages_RR = np.zeros_like(sent_RR)
        traffic = list(self._traffic(trial.placement, trial.ids_RTK, trial.exchange).values())
        for phase in PHASES:
            count_RR, sizes_RR = phase_messages(traffic, phase, len(trial.placement.rank_S))
            sent_RR += sum(phase_bytes(traffic, self.setting.row_bytes, phase)) + sizes_RR
            messages_RR += count_RR
        sent_L, back_L = self.links.bytes_L(sent_RR), self.links.bytes_L(sent_RR.T)
        there, back = MESSAGE_BYTES
        around_L = there * self.links.bytes_L(messages_RR) + back * self.links.bytes_L(messages_RR.T)
        predicted_L = wire_bytes(sent_L, back_L) + around_L
        return [
            LinkBytes(
                link=self.links.names[i], predicted_bytes=float(predicted_L[i]), counted_bytes=float(counted_L[i])
            )
            for i in np.flatnonzero(~np.isnan(counted_L) & (sent_L > 0)).tolist()
        ]


def make_report(
    validation: Validation, candidates: Sequence[Candidate], where: str, say: Callable[[str], None]
) -> ValidationReport:
    """Validate candidates and return what came out."""
    calibration, cases, disagreeing = validation.run(candidates, say)
    workload, setting = validation.workload, validation.setting
    return ValidationReport(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        where=where,
        versions={"epplan": version("epplan"), "torch": version("torch"), "python": platform.python_version()},
        cluster=workload.cluster.name,
        policy=validation.links.policy,
        scale=validation.scale,
        compute="emulated" if validation.compute else "none",
        routing=workload.routing.name,
        tokens_per_rank=max(len(ids) for ids in next(iter(validation.ids.values()))),
        row_bytes=setting.row_bytes,
        repeats=setting.repeats,
        calibration=calibration,
        cases=tuple(cases),
        disagreeing=tuple(disagreeing),
    )


def _slowest(us_RS: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], float, tuple[float, float]]:
    """Return the median of each rank, and the median and quartiles over repeats of the slowest rank."""
    table_RS = np.array(us_RS)
    slowest_S = table_RS.max(axis=0)
    low, middle, high = np.quantile(slowest_S, (0.25, 0.5, 0.75)).tolist()
    return tuple(np.median(table_RS, axis=1).tolist()), middle, (low, high)


def _row_problems(trial: Trial, traffic: dict[str, Any], times: Sequence[TrialTimes]) -> list[str]:
    """Return where the rows that ranks sent are not the planner's, as integers."""
    problems = []
    for hop in HOPS[trial.exchange]:
        planned_RR = traffic[hop].rows_RR
        for rank, one in enumerate(times):
            if list(one.hops[hop].sent_R) != planned_RR[rank].tolist():
                problems.append(
                    f"rank {rank} sent {list(one.hops[hop].sent_R)} ({hop}), the plan {planned_RR[rank].tolist()}"
                )
    return problems
