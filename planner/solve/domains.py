"""Domains first: the layer with every domain drawn together into one rank, searched, and packed on its ranks again.

Between domains the traffic is decided, inside them the balance; a layer of D domains is far smaller than one of R
ranks, so that hundreds of swaps between domains cost as little as a few between ranks.

Shapes: C source classes, D domains, E experts, R ranks, S slots of a placement on ranks, U of one on domains.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from planner.cost import Leg, Phase, without_idle_links
from planner.layer import LayerProblem
from planner.placement import IntArray, Placement
from planner.robust import Problem, RobustProblem, scenarios_of
from planner.solve.start import local_shares, pack_ranks
from planner.solve.swaps import descend_by_swaps


def improve_domains(problem: Problem, placement: Placement, max_steps: int, deadline: float | None = None) -> Placement:
    """Return the placement with experts traded between domains while the cost of the drawn-together layer falls.

    Shares come back local first, or equal where the layer has to be even. Copies of an expert in one domain stay copies
    in one domain.
    """
    first = scenarios_of(problem)[0]
    domains = np.arange(first.num_domains)

    def local(on_domains: Placement) -> Placement:
        if problem.even:
            return on_domains.with_equal_shares()
        return on_domains.with_shares(local_shares(on_domains, domains))

    start = local(
        Placement.of_slots(
            placement.expert_S,
            first.domain_R[placement.rank_S],
            first.num_experts,
            first.num_domains,
            first.num_domains,
        )
    )
    drawn: Problem = _drawn_together(first)
    if isinstance(problem, RobustProblem):
        drawn = RobustProblem(tuple(map(_drawn_together, problem.scenarios)), problem.risk)
    found = descend_by_swaps(drawn, start, max_steps, deadline, reshare=local)
    return _on_ranks(problem, found)


def has_domain_traffic(problem: Problem) -> bool:
    """Return whether the drawn-together layer sees the exchange: not where rows are distinct by rank alone."""
    legs = scenarios_of(problem)[0].cost.dispatch.legs
    return problem.num_domains > 1 and any(leg.target == "domain" or not leg.distinct for leg in legs)


def _drawn_together(problem: LayerProblem) -> LayerProblem:
    """Return the layer with domains for ranks: their slots and speed added up, their links taken as evenly loaded."""
    cost, D = problem.cost, problem.num_domains
    ranks_D = np.bincount(problem.domain_R, minlength=D)
    speed_D = np.bincount(problem.domain_R, weights=1.0 / cost.row_us_R, minlength=D)
    slot_us_D = np.bincount(problem.domain_R, weights=cost.slot_us_R, minlength=D) / ranks_D
    drawn_cost = replace(
        cost,
        dispatch=_drawn_phase(problem, cost.dispatch),
        combine=_drawn_phase(problem, cost.combine),
        slot_us_R=slot_us_D / ranks_D,
        row_us_R=1.0 / speed_D,
    )
    slots_D = np.bincount(problem.domain_R, weights=problem.slots_R, minlength=D).astype(np.int64)
    return replace(problem, cost=drawn_cost, domain_R=np.arange(D), slots_R=slots_D)


def _drawn_phase(problem: LayerProblem, phase: Phase) -> Phase:
    """Average the prices of a domain's ranks; legs that count rows distinct by rank have no counterpart."""
    mean_RD = problem.domain_RD / np.bincount(problem.domain_R, minlength=problem.num_domains)
    legs = []
    for leg in phase.legs:
        if leg.target == "domain":
            us_XN = leg.us_XN
        elif not leg.distinct:
            classes = sp.eye_array(len(problem.class_size_C))
            us_XN = sp.csr_array(sp.kron(classes, mean_RD.T) @ leg.us_XN)
        else:
            continue
        legs.append(Leg("rank", leg.distinct, us_XN))
    return without_idle_links(Phase(phase.alpha_us, tuple(legs), phase.link_names))


def _on_ranks(problem: Problem, found: Placement) -> Placement:
    """Pack the copies of each domain on its ranks by the load that their shares give them, of all scenarios."""
    first = scenarios_of(problem)[0]
    copies_DE: IntArray = np.zeros((first.num_domains, first.num_experts), dtype=np.int64)
    np.add.at(copies_DE, (found.rank_S, found.expert_S), 1)
    load_DE = np.zeros(copies_DE.shape)
    for one in scenarios_of(problem):
        rows_CS = one.rows_CE[:, found.expert_S] * found.share_DS[one.class_domain_C]
        np.add.at(load_DE, (found.rank_S, found.expert_S), one.class_size_C @ rows_CS)
    lists = pack_ranks(first, load_DE, copies_DE)
    packed = Placement.equal_shares(lists, first.num_experts, first.num_domains)
    return problem.fitted(packed.with_shares(local_shares(packed, first.domain_R)))
