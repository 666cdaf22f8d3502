"""One layer as flows on the cluster graph: dispatch, experts, combine, message by message.

The closed form (`planner.layer`) takes the busiest link of each phase as its time. Here every message is a flow that
pays its start-up and then shares its links fairly with all others; a rank starts its experts when its own tokens are
in, and sends results back when it is done; in a two-level exchange a message is forwarded when it has arrived. So it
shows what the closed form cannot: small messages that share a link with large ones, many senders to one receiver,
links that idle while others work, fast ranks that do not wait for slow ones.

A two-level exchange forwards whole messages, as our executor does: one tier after the other. The closed form lets the
tiers overlap perfectly, as engines come close to that forward piece by piece. So a simulated layer is longer by about
the time of the faster tier: 1.26 times the closed form for DeepSeek-V3 on four hgx-h100 hosts, where NVLink takes a
third of what the NICs take. With `pieces` messages are forwarded in parts, and the difference goes.

Shapes: R ranks, D domains, F flows, N links.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp

from planner.cost import StepCost, link_byte_us, step_cost
from planner.flows import Flows, Timeline, run_flows
from planner.layer import LayerCost, layer_problem
from planner.placement import FloatArray, IntArray, Placement
from planner.prices import exchange_prices
from planner.timing import Exchange, TimingProfile, rows_per_peer
from planner.workload import Workload
from topologies import BadInput, Cluster, rail_peers
from topologies.groups import shared_routes

Phase = Literal["dispatch", "combine"]
EXACT_FLOWS = 256  # up to so many flows every single end is handled on its own
STEPS = 1000  # moments of a larger simulation, roughly


@dataclass(frozen=True, eq=False)
class Message:
    """The flows of one hop of one phase.

    Attributes:
        source_F, target_F: ranks.
        bytes_F: sizes.
        name: of the hop, for people.

    """

    source_F: IntArray
    target_F: IntArray
    bytes_F: FloatArray
    name: str


@dataclass(frozen=True, eq=False)
class Simulation:
    """What happened in one layer, in microseconds from its start.

    Attributes:
        hops: the flows, hop by hop; `timeline` has them in the same order.
        tokens_in_R, experts_done_R, back_R: when a rank had all its tokens, was done with its experts, and had all
            results for its own tokens back.
        closed_form: the same layer by the closed form.
        link_names: [N] of all links of the cluster.

    """

    layer: int
    hops: tuple[Message, ...]
    timeline: Timeline
    tokens_in_R: FloatArray
    experts_start_R: FloatArray
    experts_done_R: FloatArray
    back_R: FloatArray
    closed_form: LayerCost
    link_names: tuple[str, ...]

    @property
    def layer_us(self) -> float:
        """Time until the last rank has its results."""
        return float(self.back_R.max())

    @property
    def dispatch_us(self) -> float:
        """Time until the last rank has its tokens."""
        return float(self.tokens_in_R.max())

    @property
    def combine_us(self) -> float:
        """Time from the end of the last experts to the last result."""
        return self.layer_us - float(self.experts_done_R.max())


def simulate_layer(
    workload: Workload,
    placement: Placement,
    row: int,
    profile: TimingProfile,
    exchange: Exchange,
    *,
    barriers: bool = False,
    pieces: int = 1,
    resolution_us: float | None = None,
    on_percent: Callable[[int], None] = lambda _: None,
) -> Simulation:
    """Simulate layer `row` (0..L-1) of a workload under a placement.

    With `barriers` the phases wait for each other, as the closed form assumes: every phase then takes at least as long
    as there, and exactly as long where one link holds all of it up. A two-level exchange forwards every message in
    `pieces`: 1 as our executor does, the more the closer to tiers that overlap perfectly. `resolution_us` bounds how
    far ends of flows are put together (0: exact; the default is exact for small layers). `on_percent` is called with
    the part of the flows that are done.
    """
    if placement.replica_choice == "cover":
        raise BadInput("the simulation deals tokens to copies by their shares; it has no replica choice cover")
    cost = step_cost(workload, profile, exchange)
    problem = layer_problem(workload, cost, np.full(workload.num_ranks, workload.num_experts), row)
    closed = problem.evaluate(placement, every_link=True)
    rows_RT = _rows_by_source(workload, cost, closed, placement, row)
    network = _Network(workload, profile, exchange, cost)
    compute_us_R = cost.launch_us + closed.compute_us_R
    builder = _Builder(network, rows_RT, compute_us_R, barriers=barriers)
    hops, flows = builder.two_level(pieces) if exchange == "two-level" else builder.direct()
    if resolution_us is None:
        resolution_us = 0.0 if len(flows.bytes_F) <= EXACT_FLOWS else closed.layer_us / STEPS
    timeline = run_flows(flows, resolution_us, on_percent)
    in_R = timeline.group_G[: workload.num_ranks]
    ready_R = np.full(workload.num_ranks, in_R.max()) if barriers else in_R
    done_R = ready_R + compute_us_R
    back_R = np.maximum(timeline.group_G[builder.back_group : builder.back_group + workload.num_ranks], done_R)
    names = tuple(f"{link.kind} {link.source} -> {link.target}" for link in workload.cluster.links)
    return Simulation(workload.layers[row], hops, timeline, in_R, ready_R, done_R, back_R, closed, names)


def _rows_by_source(
    workload: Workload, cost: StepCost, closed: LayerCost, placement: Placement, row: int
) -> dict[str, FloatArray]:
    """Return the rows that each rank sends to each target [R, T]: to ranks and, where it counts so, to domains."""
    class_R = workload.class_of_rank_R
    distinct = {leg.target for leg in cost.dispatch.legs if leg.distinct}
    if not distinct:
        share_CS = placement.share_DS[workload.class_domain_C]
        rows_CS = workload.rows_LCE[row][:, placement.expert_S] * share_CS
        rows_CR: FloatArray = np.stack(
            [np.bincount(placement.rank_S, rows_S, workload.num_ranks).astype(float) for rows_S in rows_CS]
        )
        return {"rank": rows_CR[class_R]}
    return {target: closed.counted[target].rows_CT[class_R] for target in distinct}


class _Network:
    """Routes, the cost of a byte on every link in each phase, and start-ups."""

    def __init__(self, workload: Workload, profile: TimingProfile, exchange: Exchange, cost: StepCost) -> None:
        self.cluster: Cluster = workload.cluster
        self.num_ranks = workload.num_ranks
        self.route_PN = sp.csr_array(shared_routes(self.cluster))
        self.row_bytes = {"dispatch": workload.model.dispatch_row_bytes, "combine": workload.model.combine_row_bytes}
        self.alpha_us = {"dispatch": cost.dispatch.alpha_us, "combine": cost.combine.alpha_us}
        top_k = workload.rows_LCE.sum() / (workload.num_layers * workload.rows_LCE.shape[1] * workload.tokens_per_rank)
        peer_rows = rows_per_peer(exchange, workload.tokens_per_rank, top_k, self.num_ranks, self.cluster.num_domains)
        self.byte_us_N = {
            phase: link_byte_us(
                self.cluster,
                exchange_prices(
                    profile, self.cluster, exchange, phase, tokens=workload.tokens_per_rank,
                    dtype=workload.model.dispatch_dtype if phase == "dispatch" else "bf16",
                    message_bytes=peer_rows * row_bytes,
                ).efficiency,
                profile.name,
            )
            for phase, row_bytes in self.row_bytes.items()
        }  # fmt: skip

    def us_FN(self, source_F: IntArray, target_F: IntArray, phase: Phase) -> sp.csr_array:
        """Return microseconds of every link for a byte of each flow."""
        pairs = sp.csr_array(self.route_PN[source_F * self.num_ranks + target_F])
        return sp.csr_array(pairs @ sp.diags_array(self.byte_us_N[phase]))


@dataclass(frozen=True, eq=False)
class _Hop:
    """Rows from rank to rank, and the (source, domain) pair whose message they belong to; -1 for none."""

    source_F: IntArray
    target_F: IntArray
    rows_F: FloatArray
    pair_F: IntArray


class _Builder:
    """Puts the flows of a layer together.

    Groups: 0..R-1 the tokens of each rank; `back_group` + rank the results of each rank; then what hops need.
    """

    def __init__(
        self, network: _Network, rows_RT: dict[str, FloatArray], compute_us_R: FloatArray, *, barriers: bool
    ) -> None:
        self.network, self.rows_RT, self.barriers = network, rows_RT, barriers
        self.compute_us_R = np.full_like(compute_us_R, compute_us_R.max()) if barriers else compute_us_R
        self.R = network.num_ranks
        self.back_group = self.R
        self.groups = 2 * self.R
        self.hops: list[Message] = []
        self.parts: list[tuple[sp.csr_array, IntArray, FloatArray, IntArray]] = []
        self.all_in = -1

    def direct(self) -> tuple[tuple[Message, ...], Flows]:
        """One hop there and one hop back."""
        source_F, target_F = np.nonzero(self.rows_RT["rank"] * (1 - np.eye(self.R)))
        rows_F = self.rows_RT["rank"][source_F, target_F]
        self._add("dispatch", source_F, target_F, rows_F, wait=np.full(len(rows_F), -1), member=target_F)
        self._add("combine", target_F, source_F, rows_F, wait=target_F, member=self.back_group + source_F)
        return self._result()

    def two_level(self, pieces: int) -> tuple[tuple[Message, ...], Flows]:
        """Out to the rank of the same rail in each domain, forwarded inside it; back the same way.

        Each message is cut in `pieces`, which are forwarded on their own, one after the other.
        """
        cluster = self.network.cluster
        domain_R, peer_RD = np.asarray(cluster.domain_of_rank), rail_peers(cluster.domain_of_rank, cluster.rail_of_rank)
        away_RD = domain_R[:, None] != np.arange(cluster.num_domains)
        out_s, out_d = np.nonzero((self.rows_RT["domain"] > 0) & away_RD)
        pair_RD = np.full(away_RD.shape, -1)
        pair_RD[out_s, out_d] = np.arange(len(out_s))
        out = _Hop(out_s, peer_RD[out_s, out_d], self.rows_RT["domain"][out_s, out_d], np.arange(len(out_s)))
        src, dst = np.nonzero(self.rows_RT["rank"])
        relay, pair = peer_RD[src, domain_R[dst]], pair_RD[src, domain_R[dst]]
        rows = np.where(relay != dst, self.rows_RT["rank"][src, dst], 0.0)
        near, far = (pair < 0) & (relay != dst), pair >= 0
        inside = _Hop(src[near], dst[near], rows[near], pair[near])
        onward = _Hop(relay[far], dst[far], rows[far], pair[far])
        start = np.full(len(inside.rows_F), -1)
        self._add("dispatch", inside.source_F, inside.target_F, inside.rows_F, wait=start, member=inside.target_F)
        back = self.back_group + inside.source_F
        self._add("combine", inside.target_F, inside.source_F, inside.rows_F, wait=inside.target_F, member=back)
        arrived_P = gathered_P = np.full(len(out_s), -1)
        for piece in range(pieces):
            arrived_P = self._there(out, onward, arrived_P, 1 / pieces, first=piece == 0)
            gathered_P = self._back(out, onward, gathered_P, 1 / pieces, first=piece == 0)
        return self._result()

    def _there(self, out: _Hop, onward: _Hop, before_P: IntArray, part: float, *, first: bool) -> IntArray:
        """Add a piece on its way to the experts, after the one before; return the group of each pair's message."""
        arrived_P = self._new_groups(len(before_P))
        follows = np.full(len(before_P), not first)
        self._add("dispatch", out.source_F, out.target_F, part * out.rows_F, wait=before_P, member=arrived_P,
                  forwarded=follows)  # fmt: skip
        self._add("dispatch", onward.source_F, onward.target_F, part * onward.rows_F, wait=arrived_P[onward.pair_F],
                  member=onward.target_F, forwarded=np.ones(len(onward.rows_F), dtype=bool))  # fmt: skip
        return arrived_P

    def _back(self, out: _Hop, onward: _Hop, before_P: IntArray, part: float, *, first: bool) -> IntArray:
        """Add a piece on its way back: gathered in the domain of the experts, then sent home."""
        gathered_P = self._new_groups(len(before_P))
        wait_F = onward.target_F if first else before_P[onward.pair_F]
        self._add("combine", onward.target_F, onward.source_F, part * onward.rows_F, wait=wait_F,
                  member=gathered_P[onward.pair_F], forwarded=np.full(len(wait_F), not first))  # fmt: skip
        self._add("combine", out.target_F, out.source_F, part * out.rows_F, wait=gathered_P,
                  member=self.back_group + out.source_F, forwarded=np.ones(len(before_P), dtype=bool))  # fmt: skip
        return gathered_P

    def _new_groups(self, count: int) -> IntArray:
        self.groups += count
        return np.arange(self.groups - count, self.groups)

    def _add(
        self,
        phase: Phase,
        source_F: IntArray,
        target_F: IntArray,
        rows_F: FloatArray,
        *,
        wait: IntArray,
        member: IntArray,
        forwarded: IntArray | None = None,
    ) -> None:
        """Add the flows of one hop; a forwarded flow pays no start-up again, one that waits for experts their time."""
        first_hop = np.ones(len(rows_F), dtype=bool) if forwarded is None else ~np.asarray(forwarded, dtype=bool)
        delay_F = np.where(first_hop, self.network.alpha_us[phase], 0.0)
        if phase == "combine":
            delay_F = delay_F + np.where(first_hop, self.compute_us_R[source_F], 0.0)
        bytes_F = rows_F * self.network.row_bytes[phase]
        if self.barriers and phase == "combine":
            wait = np.where(first_hop, self._everything_in(), wait)
        self.hops.append(Message(source_F, target_F, bytes_F, phase))
        self.parts.append((self.network.us_FN(source_F, target_F, phase), wait, delay_F, member))

    def _everything_in(self) -> int:
        """Return the group of all dispatched tokens."""
        if self.all_in < 0:
            self.all_in = int(self._new_groups(1)[0])
        return self.all_in

    def _result(self) -> tuple[tuple[Message, ...], Flows]:
        bytes_F = np.concatenate([hop.bytes_F for hop in self.hops])
        us_FN = sp.csr_array(sp.vstack([part[0] for part in self.parts]))
        wait_F, delay_F, member_F = (np.concatenate([part[i] for part in self.parts]) for i in (1, 2, 3))
        if self.all_in >= 0:  # the ranks' own groups tell when tokens are in; the barrier waits for the last of them
            return tuple(self.hops), _with_barrier(
                Flows(bytes_F, us_FN, wait_F, delay_F, member_F, self.groups), self.all_in, self.R
            )
        return tuple(self.hops), Flows(bytes_F, us_FN, wait_F, delay_F, member_F, self.groups)


def _with_barrier(flows: Flows, barrier: int, num_ranks: int) -> Flows:
    """Add an empty flow that waits for each rank's tokens and belongs to the barrier."""
    ranks = np.arange(num_ranks)
    nothing = sp.csr_array((num_ranks, flows.us_FN.shape[1]))
    return Flows(
        bytes_F=np.concatenate([flows.bytes_F, np.zeros(num_ranks)]),
        us_FN=sp.csr_array(sp.vstack([flows.us_FN, nothing])),
        group_F=np.concatenate([flows.group_F, ranks]),
        delay_F=np.concatenate([flows.delay_F, np.zeros(num_ranks)]),
        member_F=np.concatenate([flows.member_F, np.full(num_ranks, barrier)]),
        num_groups=flows.num_groups,
    )
